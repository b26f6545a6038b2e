"""Annotated sets of other tools to annotation lists, and lists to such sets."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation, check_labelled_classes, image_folder, write_list
from data.config import CLASS_LABELS
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
from data.formats import CROWDHUMAN_BOXES, read_coco, read_crowdhuman, read_voc, read_wider_text, write_coco
from data.yolo import YAML_SUFFIXES, read_yolo, write_yolo
from utils.cli import OK, DataError, UsageError, option, print_rows, warn
from utils.images import read_size

#: What `import` reads.
FORMATS = ("yolo", "coco", "voc", "crowdhuman")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    lists = "annotation lists; for yolo one a part, its folder or file named after train, val or test"
    option(parser, "lists", lists, Path, nargs="+")
    group = parser.add_argument_group("input")
    images = "folder of the images (default: that of each list)"
    option(group, "--images --images_dir", images, Path, metavar="FOLDER")
    group = parser.add_argument_group("output")
    option(group, "--format", "what to write", choices=["coco", "yolo"], required=True)
    output = "JSON file for coco, folder for yolo"
    option(group, "--output --out", output, Path, required=True, metavar="PATH")


def export(args: argparse.Namespace) -> int:
    """Writes lists as the parts of a YOLO folder, or one list as COCO JSON. The classes are those that the
    lists are labelled for; a YOLO folder links to the images.

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
    """The lists by part, as their folder or file is named; one alone is train where nothing is said."""
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
    source = """data.yaml, folder of an export, COCO JSON, folder of YOLO labels or of Pascal VOC XML,
        CrowdHuman's .odgt"""
    option(parser, "source", source, Path)
    group = parser.add_argument_group("input")
    option(group, "--format", "what the source is (default: recognised)", choices=FORMATS)
    images = "folder of the images (default: where the source has them)"
    option(group, "--images --images_dir", images, Path, metavar="FOLDER")
    boxes = "CrowdHuman's boxes: the whole person, also hidden, or what shows of it (default: full)"
    option(group, "--boxes", boxes, choices=list(CROWDHUMAN_BOXES))
    categories = """classes whose names do not say what they are, by name, or by number where they have none:
        head=face 0=person helmet=none"""
    option(group, "--category", categories, default=[], nargs="+", metavar="NAME=CLASS")
    group = parser.add_argument_group("output")
    output = "folder for the lists, or one list, FILE.txt (default: datasets/<name of the source>)"
    option(group, "--output --out", output, Path, metavar="PATH")


def import_(args: argparse.Namespace) -> int:
    """Turns an export of Roboflow, ultralytics, CVAT or another tool into lists: YOLO, COCO or Pascal VOC,
    all its parts at once, or CrowdHuman. Classes are matched by name; where a name is unclear, --category
    is asked for. The lists know where their images are.

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
    found = [part for part in read_parts(kind, source, images_dir, args.boxes or "full") if part.images]
    if not found:
        raise DataError(f"{source}: names no image")
    parts = {part.name: part for part in sorted(found, key=lambda part: PARTS.index(part.name))}
    if len(parts) < len(found):
        raise DataError(f"{source}: found {found[-1].name} twice, e.g. as val and valid; keep one")
    for part in parts.values():
        warn_of_missing(part, source)
    classes = match_classes(source, list(parts.values()), given)
    labelled = [name for name in CLASS_LABELS if name in {*given.values(), *classes.values()}]
    if len(parts) > 1 and args.output and args.output.suffix == ".txt":
        raise UsageError(f"--output {args.output}: expected a folder, for {' and '.join(parts)}")
    targets = {name: target(args.output or default_output(source), name) for name in parts}
    for name, part in parts.items():
        check_labelled_classes(targets[name], labelled, part.images_dir)
    for name, part in parts.items():
        write_list(targets[name], part.annotations(classes), labelled, part.images_dir)
    tell(list(parts.values()), classes, labelled)
    for name, part in parts.items():
        where = os.path.normpath(part.images_dir) if part.images_dir else "a folder that is not known"
        print(f"{targets[name]}: images in {where}")
    if all(part.images_dir for part in parts.values()):
        tell_next(targets)
    return OK


def kind_of(source: Path, images_dir: Path | None) -> str:
    """One of `FORMATS`, by what is in ``source``; an error if it is none of them, or several."""
    kinds = {".json": "coco", ".odgt": "crowdhuman"} | dict.fromkeys(YAML_SUFFIXES, "yolo")
    if source.is_file() and source.suffix.lower() in kinds:
        return kinds[source.suffix.lower()]
    texts = [source] if source.is_file() else [*source.glob("*.txt"), *source.glob("*/*.txt")]
    if any(text.suffix == ".txt" and text.read_bytes()[:1] == b"#" for text in texts):
        raise DataError(f"{source}: an annotation list already; check, merge and the others take it as it is")
    if not source.is_dir():
        what = "not an export" if source.exists() else "no such file or folder"
        raise DataError(
            f"{source}: {what}; expected data.yaml, COCO JSON, .odgt, or the folder of an export (of an "
            f"archive: python3 prep_data.py unpack)"
        )
    places = [source, *(place for _, place in split_folders(source))]
    has_labels = any((place / "labels").is_dir() for place in places)
    has_yaml = any(path.suffix.lower() in YAML_SUFFIXES for path in source.iterdir())
    found = {
        "coco": any(coco_files(place) for place in places),
        "voc": any(next(place.rglob("*.xml"), None) for place in places),
        "yolo": has_labels or has_yaml or (images_dir is not None and any(source.glob("*.txt"))),
    }
    there = [kind for kind, is_there in found.items() if is_there]
    if len(there) > 1:
        raise UsageError(f"{source}: found {' and '.join(there)}; say which, e.g. --format {there[0]}")
    if not there and texts:
        what = "text files alone; if they are YOLO labels, give the images with --images"
        raise UsageError(f"{source}: {what}")
    if not there:
        raise DataError(
            f"{source}: no export of a kind that is known; expected data.yaml or labels/ (YOLO), "
            f"_annotations.coco.json (COCO) or XML files (Pascal VOC), there or in train/, valid/, test/"
        )
    return there[0]


def coco_files(folder: Path) -> list[Path]:
    """JSON files of a folder that may be COCO annotations: those named so, or all."""
    named = sorted(folder.glob("*.coco.json"))
    return named or [path for path in sorted(folder.glob("*.json")) if path.name != "dataset.json"]


def read_parts(kind: str, source: Path, images_dir: Path | None, boxes: str) -> list[Part]:
    """The parts of a set of one of `FORMATS`; ``boxes`` of CrowdHuman alone."""
    if kind == "crowdhuman":
        return [read_crowdhuman(source, images_dir, boxes)]
    if kind == "yolo":
        return read_yolo(source, images_dir)
    if kind == "voc":
        places = [(name, place) for name, place in split_folders(source) if any(place.rglob("*.xml"))]
        return [read_voc(place, images_dir, name) for name, place in places or [("", source)]]
    if source.is_file():
        return [read_coco(source, images_dir)]
    parts = []
    for name, place in [("", source)] if coco_files(source) else split_folders(source):
        files = coco_files(place)
        if len(files) > 1:
            raise DataError(f"{place}: found {', '.join(f.name for f in files)}; give one of them itself")
        parts += [read_coco(file, images_dir, name) for file in files]
    if not parts:
        raise DataError(f"{source}: no COCO JSON there or in train/, valid/, test/; give the file itself")
    return parts


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
        empty = sum(not image.names for image in part.images)
        counts = "".join(f"{boxes[name]:8}" for name in CLASS_LABELS)
        print(f"{part.name or 'all':5}{len(part.images):8}{empty:7}{counts}")
    renamed = sorted(name for name, own in classes.items() if own not in (NONE, name))
    if renamed:
        print("taken: " + ", ".join(f"{name} as {classes[name]}" for name in renamed))
    if left_out := +left_out:
        told = ", ".join(f"{number} of {name}" for name, number in left_out.most_common())
        print(f"left out: {told} (taken with e.g. --category {left_out.most_common(1)[0][0]}=person)")
    print(f"labelled for {' and '.join(labelled)}")
    for name in labelled:
        if not total[name]:
            warn(f"no box of {name}; if nobody labelled it, take it out with --category NAME=none")
    for one, other in combinations(parts, 2):
        same = {image.path for image in one.images} & {image.path for image in other.images}
        if same and one.images_dir == other.images_dir:
            warn(f"{len(same)} images are in {one.name} and in {other.name}")


def widerface_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "text", "official text annotation, wider_face_{train,val}_bbx_gt.txt", Path)
    group = parser.add_argument_group("input")
    images = "folder of the images, one subfolder an event"
    option(group, "--images --images_dir", images, Path, required=True, metavar="FOLDER")
    option(group, "--skip_missing", "leave out images without a usable file")
    group = parser.add_argument_group("output")
    text = "list to write; dataset.json goes beside it"
    option(group, "--output --out", text, Path, required=True, metavar="FILE")


def widerface(args: argparse.Namespace) -> int:
    """Turns the official WIDER FACE text annotation into an annotation list of faces. Images without faces
    are kept; faces without area or marked invalid are left out and counted.

    Example:
      python3 prep_data.py widerface wider_face_val_bbx_gt.txt --images WIDER_val/images \\
          --output datasets/widerface/val/wider_val_gt.txt
    """
    counts: Counter[str] = Counter()
    folder = image_folder(args.text, args.images)

    def faces() -> Iterator[ImageAnnotation]:
        for image in read_wider_text(args.text):
            try:
                height, width = read_size(folder / image.path)
            except DataError as error:
                if not args.skip_missing:
                    hint = "leave such images out with --skip_missing"
                    raise DataError(f"{args.text}:{image.line}: {error}; {hint}") from None
                counts["images without a usable file, left out"] += 1
                continue
            has_area = (image.boxes_xywh[:, 2:] > 0).all(1)
            kept = has_area & ~image.invalid
            counts["images"] += 1
            counts["images without faces, kept"] += not len(kept)
            counts["faces"] += int(kept.sum())
            counts["faces without area, left out"] += int((~has_area).sum())
            counts["faces marked invalid, left out"] += int((has_area & image.invalid).sum())
            boxes = image.boxes_xywh[kept] / [width, height, width, height]
            yield ImageAnnotation(image.path, np.full(len(boxes), CLASS_LABELS["face"]), boxes, image.line)

    images = write_list(args.output, faces(), ["face"], folder)
    print_rows(counts.items())
    print(f"{args.output}: {images} images, labelled for face")
    return OK
