"""Box CSVs of Open Images to annotation lists, the step ``openimages`` of prep_data.py."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from data.annotations import check_labelled_classes, format_table, labelled_classes, write_labelled_classes
from data.config import CLASS_LABELS, CLASS_NAMES
from data.open_images import ATTRIBUTES, DISPLAY_NAMES, count_rows, label_ids, read_boxes, read_rows
from utils.cli import OK, DataError, UsageError, option, print_rows, warn
from utils.files import atomic_path

#: What becomes of marked boxes, by attribute.
MARKED = {"group_of": "keep", "depiction": "drop", "inside": "keep"}

_SLICE_ROWS = 500_000


def openimages_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "csv", "box CSV, plain or .gz", Path, nargs="+")
    text = "list to write; dataset.json goes beside it"
    option(parser, "--output --out", text, Path, required=True, metavar="FILE")
    group = parser.add_argument_group("classes")
    for name, names in DISPLAY_NAMES.items():
        text = f"names of the boxes that become {name}; none to leave the class out"
        text = f"{text} (default: {', '.join(names)})"
        option(group, f"--{name}", text, default=names, nargs="*", metavar="NAME")
    text = "label ids and names, e.g. oidv7-class-descriptions-boxable.csv (default: the six names above)"
    option(group, "--class_descriptions", text, Path, metavar="CSV")
    text = "take the persons from these MIAP files, which box all of them, and only the images in them"
    option(group, "--miap", text, Path, nargs="+", default=[], metavar="CSV")
    group = parser.add_argument_group("choices")
    for name, what in (
        ("group_of", "one box around more than five that touch"),
        ("depiction", "drawings, statues and the like"),
        ("inside", "seen from within"),
    ):
        text = f"boxes marked so ({what}): keep, drop them, or drop their images"
        option(group, f"--{name}", text, default=MARKED[name], choices=["keep", "drop", "drop_image"])
    text = (
        "images with boxes of one class alone, where the other may be there unlabelled: keep, drop, or "
        "split them into the folders both, face and person beside --output, each with its dataset.json"
    )
    option(group, "--one_class", text, default="keep", choices=["keep", "drop", "split"])
    text = "human-verified image labels; a class that is verified, present or absent, counts as labelled"
    option(group, "--image_labels", text, Path, nargs="+", default=[], metavar="CSV")
    option(group, "--images", "leave out images that are not there", Path, metavar="FOLDER")
    option(group, "--skip_bad", "pass over faulty rows, counted (default: stop at the first)")


def openimages(args: argparse.Namespace) -> int:
    """Open Images box CSVs (V4 to V7, MIAP) to an annotation list. All boxes of the chosen classes are
    taken, whichever class an image was picked for.

    Example:
      python3 prep_data.py openimages train-annotations-bbox.csv --output data/oi/train/wider_train_gt.txt
    """
    labels = {
        mid: label
        for name, label in CLASS_LABELS.items()
        for mid in label_ids(getattr(args, name), args.class_descriptions).values()
    }
    if not labels:
        raise UsageError("no class is left: give names to --face or --person")
    counts: Counter[str] = Counter()
    bad_rows: list[str] | None = [] if args.skip_bad else None
    lists = convert(
        args.csv,
        args.output,
        labels,
        counts,
        marked={name: getattr(args, name) for name in ATTRIBUTES},
        one_class=args.one_class,
        miap=args.miap,
        images=args.images,
        image_labels=args.image_labels,
        bad_rows=bad_rows,
    )
    for message in (bad_rows or [])[:10]:
        warn(message)
    print_rows([*counts.items(), ("faulty rows passed over", len(bad_rows or []))])
    for path, images in lists.items():
        print(f"{path}: {images} images, labelled for {' and '.join(labelled_classes(path))}")
    alone = counts["  of face alone"] + counts["  of person alone"]
    if args.one_class == "keep" and alone and args.face and args.person:
        warn("images of one class may hold the other, unlabelled: see pseudo_label and --one_class split")
    return OK


def convert(
    paths: Sequence[Path],
    output: Path,
    labels: Mapping[str, int],
    counts: Counter[str],
    marked: Mapping[str, str] = MARKED,
    one_class: str = "keep",
    miap: Sequence[Path] = (),
    images: Path | None = None,
    image_labels: Iterable[Path] = (),
    bad_rows: list[str] | None = None,
) -> dict[Path, int]:
    """Writes the annotation list of box CSVs: every box of the chosen classes, images in CSV order.

    Args:
        paths: box CSVs; boxes of an image that several name are joined.
        output: list to write, with ``dataset.json`` beside it.
        labels: class label by label id.
        counts: what was found and left out is counted here.
        marked: by attribute, what becomes of boxes that have it: ``keep``, ``drop`` or ``drop_image``.
        one_class: what becomes of images that only carry one of the classes (the other may be there,
            unlabelled): ``keep``, ``drop`` or ``split``, which writes lists of the name of ``output`` in the
            folders ``both``, ``face`` and ``person`` beside it.
        miap: MIAP CSVs, from which the persons are taken, and which images there are.
        images: folder; images without a file ``<id>.jpg`` there are left out.
        image_labels: CSVs of human-verified image-level labels; a class with a verified label, present or
            absent, counts as labelled on that image even without a box.
        bad_rows: as in `read_rows`.

    Returns:
        Images by written list.

    Raises:
        DataError: a CSV that cannot be used, with file and line; nothing is written.
    """
    wanted = [CLASS_NAMES[label] for label in sorted(set(labels.values()))]
    if one_class != "split":
        check_labelled_classes(output, wanted)
    boxes, refused = _read(paths, miap, labels, marked, counts, bad_rows)
    if boxes.is_empty():
        found = f"none of its {counts['rows read']} rows is a box of the chosen classes"
        raise DataError(f"{paths[0]}: {found}; check the class names and that this is a box CSV")
    found = _classes_of_images(boxes, counts)
    boxes = _joined(boxes, counts)
    if len(refused):
        found = found.filter(~_is_in(refused))
    if images is not None:
        has_file = (found["image"] + ".jpg").is_in([path.name for path in images.iterdir()])
        counts["images without a file, left out"] += (~has_file).sum()
        found = found.filter(has_file)
    if one_class == "keep" or len(wanted) == 1:
        parts = {"": found["image"]}
    else:
        verified = [read_rows(path, labels, bad_rows=bad_rows) for path in image_labels]
        parts = _by_labelled_classes(found, verified)
    if one_class == "drop":
        parts = {"": parts.get("both", parts.get(""))}
    lists = {}
    for name, ids in parts.items():
        path = output.parent / name / output.name
        _write(path, boxes if len(ids) == counts["images with boxes"] else boxes.filter(_is_in(ids)))
        write_labelled_classes(path, [name] if name in CLASS_LABELS else wanted)
        lists[path] = len(ids)
    return lists


def _read(
    paths: Sequence[Path],
    miap: Sequence[Path],
    labels: Mapping[str, int],
    marked: Mapping[str, str],
    counts: Counter[str],
    bad_rows: list[str] | None,
) -> tuple[pl.DataFrame, pl.Series]:
    """The boxes that are not dropped for a mark, and the ids of images that are to go for one."""
    sources = [(paths, labels)]
    if miap:
        persons = {mid: label for mid, label in labels.items() if label == CLASS_LABELS["person"]}
        faces = {mid: label for mid, label in labels.items() if mid not in persons}
        sources = [(miap, persons), (paths, faces)]
    attributes = [name for name in ATTRIBUTES if marked.get(name, "keep") != "keep"]
    refused = pl.Series(dtype=pl.String)
    tables: list[pl.DataFrame] = []
    for files, chosen in sources:
        boxes = read_boxes(files, chosen, attributes, bad_rows)
        counts["rows read"] += sum(map(count_rows, files))
        if tables:
            boxes = boxes.filter(_is_in(tables[0]["image"]))
        for name in attributes:
            if boxes[name].any():
                counts[f"boxes marked {name}, {marked[name]}"] += boxes[name].sum()
            if marked[name] == "drop_image":
                refused = refused.append(boxes["image"].filter(boxes[name]))
            boxes = boxes.filter(~pl.col(name))
        tables.append(boxes)
    return pl.concat(tables), refused


def _is_in(ids: pl.Series) -> pl.Expr:
    return pl.col("image").is_in(ids.unique().implode())


def _joined(boxes: pl.DataFrame, counts: Counter[str]) -> pl.DataFrame:
    """The boxes of an image together, where the first one is."""
    ids = boxes["image"]
    heads = ids.filter(ids.ne_missing(ids.shift(1)))
    if len(heads) > counts["images with boxes"]:
        counts["images whose rows were apart, joined"] = heads.filter(heads.is_duplicated()).n_unique()
        row = pl.col("row")
        boxes = boxes.with_row_index("row").sort(row.min().over("image"), row).drop("row")
    return boxes


def _classes_of_images(boxes: pl.DataFrame, counts: Counter[str]) -> pl.DataFrame:
    """Images in the order of ``boxes``: columns ``image``, ``face`` and ``person`` (bool)."""
    has = [(pl.col("label") == label).any().alias(name) for name, label in CLASS_LABELS.items()]
    found = boxes.group_by("image", maintain_order=True).agg(has)
    for name, label in CLASS_LABELS.items():
        counts[f"boxes of {name}"] = (boxes["label"] == label).sum()
    counts["images with boxes"] = len(found)
    counts["  of both"] = (found["face"] & found["person"]).sum()
    counts["  of face alone"] = (~found["person"]).sum()
    counts["  of person alone"] = (~found["face"]).sum()
    return found


def _by_labelled_classes(found: pl.DataFrame, verified: list[pl.DataFrame]) -> dict[str, pl.Series]:
    """Ids of images that are labelled for both classes, for faces and for persons alone."""
    face, person = found["face"], found["person"]
    for table in verified:
        of_faces = pl.col("label") == CLASS_LABELS["face"]
        face |= found["image"].is_in(table.filter(of_faces)["image"].implode())
        person |= found["image"].is_in(table.filter(~of_faces)["image"].implode())
    return {
        "both": found["image"].filter(face & person),
        "face": found["image"].filter(~person),
        "person": found["image"].filter(~face),
    }


def _write(path: Path, boxes: pl.DataFrame) -> None:
    is_first = boxes["image"].ne_missing(boxes["image"].shift(1))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for part in boxes.with_columns(is_first=is_first).iter_slices(_SLICE_ROWS):
            first_rows = part["is_first"].arg_true()
            file.write(format_table(part, first_rows.to_numpy(), part["image"].gather(first_rows) + ".jpg"))
