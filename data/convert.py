"""Annotated sets of other tools to annotation lists, and lists to such sets."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data.annotations import check_labelled_classes, image_folder, write_list
from data.coco import read_coco, write_coco
from data.config import CLASS_LABELS
from data.crowdhuman import BOXES, read_crowdhuman
from data.foreign import (
    NONE,
    PARTS,
    SPLITS,
    Part,
    match_classes,
    parse_categories,
    split_folders,
    tell_next,
    warn_of_missing,
)
from data.voc import read_voc
from data.yolo import YAML_SUFFIXES, read_yolo, write_yolo
from utils.cli import OK, DataError, UsageError, option, warn


def export_arguments(parser: argparse.ArgumentParser) -> None:
    lists = "annotation lists; yolo: one a part, folder or file named after train, val or test"
    option(parser, "lists", lists, Path, nargs="+")
    images = "folder of the images (default: that of each list)"
    option(parser, "--images --images_dir", images, Path, metavar="FOLDER")
    option(parser, "--format", "what to write", choices=["coco", "yolo"], required=True)
    option(
        parser, "--output --out", "JSON file for coco, folder for yolo", Path, required=True, metavar="PATH"
    )


def export(args: argparse.Namespace) -> int:
    """Lists as a YOLO folder with their parts, a list as COCO JSON. The classes are those that the lists are
    labelled for; a YOLO folder links to the images.

    Example:
      python3 prep_data.py export datasets/oi/val/wider_val_gt.txt --format coco --output val.json
      python3 prep_data.py export set/train/wider_train_gt.txt set/val/wider_val_gt.txt --format yolo \\
          --output set_yolo
    """
    if args.format == "coco":
        if len(args.lists) > 1:
            raise UsageError(f"--format coco: expected one list a file, got {len(args.lists)}")
        images, boxes = write_coco(args.output, args.lists[0], image_folder(args.lists[0], args.images))
    else:
        lists = part_names(args.lists)
        folders = {part: image_folder(path, args.images) for part, path in lists.items()}
        images, boxes = write_yolo(args.output, lists, folders)
        if "val" not in lists:
            warn(f"{args.output}/data.yaml: no val, which training with YOLO asks for; give that list too")
    print(f"{args.output}: {images} images, {boxes} boxes")
    return OK


def part_names(lists: list[Path]) -> dict[str, Path]:
    """The lists by part, as their folder or file is named; one alone is train where nothing is said.

    Raises:
        UsageError: several of one part, or of none.
    """
    found: dict[str, Path] = {}
    for path in lists:
        words = [path.absolute().parent.name, *re.split(r"[\W_]+", path.stem)]
        part = next((SPLITS[word.lower()] for word in words if word.lower() in SPLITS), "")
        part = part or ("train" if len(lists) == 1 else "")
        if not part or part in found:
            what = f"another {part} than {found[part]}" if part else "neither train, val nor test by its name"
            raise UsageError(f"{path}: {what}; expected one list a part, e.g. train/list.txt val/list.txt")
        found[part] = path
    return found


def import_arguments(parser: argparse.ArgumentParser) -> None:
    source = (
        "data.yaml, folder of an export, COCO JSON, folder of YOLO labels or of Pascal VOC XML, "
        "CrowdHuman's .odgt"
    )
    option(parser, "source", source, Path)
    option(parser, "--format", "what the source is (default: recognised)", choices=list(_READERS))
    images = "folder of the images (default: where the source has them)"
    option(parser, "--images --images_dir", images, Path, metavar="FOLDER")
    boxes = "CrowdHuman's boxes: the whole person, also hidden, or what shows of it (default: full)"
    option(parser, "--boxes", boxes, choices=list(BOXES))
    categories = (
        "classes whose names do not say what they are, by name, or by number where they have none: "
        "head=face 0=person helmet=none"
    )
    option(parser, "--category", categories, default=[], nargs="+", metavar="NAME=CLASS")
    output = "folder for the lists, or one list, FILE.txt (default: datasets/<name of the source>)"
    option(parser, "--output --out", output, Path, metavar="PATH")


def import_(args: argparse.Namespace) -> int:
    """An export of Roboflow, ultralytics, CVAT or another tool to lists: YOLO, COCO or Pascal VOC, all its
    parts at once, or CrowdHuman. Classes are matched by name; what a name does not say has to be said. The
    lists know where their images are.

    Example:
      python3 prep_data.py import people.v3i.yolov8/ --output datasets/people
      python3 prep_data.py import instances_val.json --images val2017/ --output coco/val/wider_val_gt.txt
      python3 prep_data.py import labels/ --images photos/ --category 0=person --output datasets/mine
      python3 prep_data.py import annotation_val.odgt --images Images/ --boxes visible
    """
    source, images_dir = args.source, args.images and image_folder(args.source, args.images)
    given = parse_categories(args.category, [*CLASS_LABELS, NONE])
    kind = args.format or kind_of(source, images_dir)
    if args.boxes and kind != "crowdhuman":
        raise UsageError(f"--boxes {args.boxes}: goes with CrowdHuman's .odgt; {source} is {kind}")
    parts = _READERS[kind](source, images_dir, **({"boxes": args.boxes} if args.boxes else {}))
    parts = [part for part in parts if part.images]
    if not parts:
        raise DataError(f"{source}: names no image")
    if len({part.name for part in parts}) < len(parts):
        raise DataError(f"{source}: found {parts[-1].name} twice, e.g. as val and valid; keep one")
    for part in parts:
        warn_of_missing(part, source)
    classes = match_classes(source, parts, given)
    named = {*given.values(), *(classes[name] for part in parts for name in part.names)}
    labelled = [name for name in CLASS_LABELS if name in named]
    targets = {part.name: target(args.output or default_output(source), part.name) for part in parts}
    if len(parts) > 1 and args.output and args.output.suffix == ".txt":
        raise UsageError(f"--output {args.output}: expected a folder, for {' and '.join(targets)}")
    for part in parts:
        check_labelled_classes(targets[part.name], labelled, part.images_dir)
    for part in parts:
        write_list(targets[part.name], part.annotations(classes), labelled, part.images_dir)
    tell(parts, classes, labelled)
    for part in parts:
        where = os.path.normpath(part.images_dir) if part.images_dir else "a folder that is not known"
        print(f"{targets[part.name]}: images in {where}")
    if all(part.images_dir for part in parts):
        tell_next(targets)
    return OK


def kind_of(source: Path, images_dir: Path | None) -> str:
    """A name in `_READERS`, by what is in ``source``.

    Raises:
        DataError: nothing of them.
        UsageError: several of them.
    """
    suffix = source.suffix.lower()
    if source.is_file() and suffix in (".json", *YAML_SUFFIXES):
        return "coco" if suffix == ".json" else "yolo"
    if source.is_file() and suffix == ".odgt":
        return "crowdhuman"
    if source.is_file() and suffix == ".zip":
        raise DataError(
            f"{source}: an archive; unpack it: python3 prep_data.py unpack {source} --save_folder NAME"
        )
    texts = [source] if source.is_file() else [*source.glob("*.txt"), *source.glob("*/*.txt")]
    if any(text.suffix == ".txt" and text.read_bytes()[:1] == b"#" for text in texts):
        raise DataError(f"{source}: an annotation list already; check, merge and the others take it as it is")
    if not source.is_dir():
        what = "not an export" if source.exists() else "no such file or folder"
        raise DataError(f"{source}: {what}; expected data.yaml, COCO JSON, .odgt, or the folder of an export")
    places = [source, *(place for _, place in split_folders(source))]
    has_labels = any((place / "labels").is_dir() for place in places)
    yolo = has_labels or any(path.suffix.lower() in YAML_SUFFIXES for path in source.iterdir())
    found = {
        "coco": any(coco_files(place) for place in places),
        "voc": any(next(place.rglob("*.xml"), None) for place in places),
        "yolo": yolo or (images_dir is not None and any(source.glob("*.txt"))),
    }
    kinds = [kind for kind, there in found.items() if there]
    if len(kinds) > 1:
        raise UsageError(
            f"{source}: found {' and '.join(kinds)}; say which to read, e.g. --format {kinds[0]}"
        )
    if not kinds and texts:
        raise UsageError(
            f"{source}: text files alone; if they are YOLO labels, give the images with --images"
        )
    if not kinds:
        raise DataError(
            f"{source}: no export of a kind that is known; expected data.yaml or labels/ (YOLO), "
            f"_annotations.coco.json (COCO) or XML files (Pascal VOC), there or in train/, valid/, test/"
        )
    return kinds[0]


def coco_files(folder: Path) -> list[Path]:
    """JSON files of a folder that may be COCO annotations: those named so, or all."""
    named = sorted(folder.glob("*.coco.json"))
    return named or [path for path in sorted(folder.glob("*.json")) if path.name != "dataset.json"]


def _read_crowdhuman_set(source: Path, images_dir: Path | None, boxes: str = "full") -> list[Part]:
    return [read_crowdhuman(source, images_dir, boxes)]


def _read_coco_set(source: Path, images_dir: Path | None) -> list[Part]:
    if source.is_file():
        return [read_coco(source, images_dir)]
    places = [("", source)] if coco_files(source) else split_folders(source)
    parts = []
    for name, place in places:
        files = coco_files(place)
        if len(files) > 1:
            raise DataError(
                f"{place}: found {', '.join(file.name for file in files)}; give one of them itself"
            )
        parts += [read_coco(file, images_dir, name) for file in files]
    if not parts:
        raise DataError(f"{source}: no COCO JSON there or in train/, valid/, test/; give the file itself")
    return parts


def _read_voc_set(source: Path, images_dir: Path | None) -> list[Part]:
    places = [(name, place) for name, place in split_folders(source) if any(place.rglob("*.xml"))]
    return [read_voc(place, images_dir, name) for name, place in places or [("", source)]]


def _read_yolo_set(source: Path, images_dir: Path | None) -> list[Part]:
    return sorted(read_yolo(source, images_dir), key=lambda part: PARTS.index(part.name))


_READERS = {
    "yolo": _read_yolo_set,
    "coco": _read_coco_set,
    "voc": _read_voc_set,
    "crowdhuman": _read_crowdhuman_set,
}


def default_output(source: Path) -> Path:
    """Where the lists of a source go if nobody says: never into the project's own folders."""
    source = source.resolve()
    name = source.stem if source.is_file() else source.name
    return Path("datasets", source.parent.name if source.suffix.lower() in YAML_SUFFIXES else name)


def target(output: Path, part: str) -> Path:
    """The list of a part."""
    if output.suffix == ".txt":
        return output
    return output / part / f"wider_{part}_gt.txt" if part else output / "wider_gt.txt"


def tell(parts: list[Part], classes: dict[str, str], labelled: Iterable[str]) -> None:
    """Prints images and boxes by part, and what was left out; warns of what looks wrong."""
    left_out: Counter[str] = Counter()
    total: Counter[str] = Counter()
    print("part   images  empty" + "".join(f"{name:>8}" for name in CLASS_LABELS))
    for part in parts:
        boxes: Counter[str] = Counter()
        for name, number in part.counts().items():
            boxes[classes[name]] += number
            left_out[name] += number * (classes[name] == NONE)
        total += boxes
        empty = sum(not image.classes for image in part.images)
        counts = "".join(f"{boxes[name]:8}" for name in CLASS_LABELS)
        print(f"{part.name or 'all':5}{len(part.images):8}{empty:7}{counts}")
    taken = sorted(name for name, own in classes.items() if own != NONE)
    print("taken: " + ", ".join(f"{name} as {classes[name]}" for name in taken))
    if left_out := +left_out:
        told = ", ".join(f"{number} of {name}" for name, number in left_out.most_common())
        print(f"left out: {told} (taken with e.g. --category {left_out.most_common(1)[0][0]}=person)")
    print(f"labelled for {' and '.join(labelled)}")
    for name in labelled:
        if not total[name]:
            warn(f"no box of {name}; if nobody labelled it, take it out with --category NAME=none")
    for one in parts:
        for other in parts:
            same = {image.path for image in one.images} & {image.path for image in other.images}
            if one.name < other.name and same and one.images_dir == other.images_dir:
                warn(f"{len(same)} images are in {one.name} and in {other.name}")
