"""Annotation lists to and from COCO JSON and YOLO folders, as other tools read and write them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data.annotations import (
    ImageAnnotation,
    iter_annotations,
    labelled_classes,
    list_arguments,
    write_list,
)
from data.config import CLASS_LABELS, CLASS_NAMES
from data.lists import iter_sizes
from utils.box_utils import cxcywh_to_xywh, xywh_to_cxcywh
from utils.cli import OK, DataError, UsageError, option
from utils.files import read_json, read_text, write_text
from utils.image_names import images_below
from utils.images import image_folder

#: What looking up and converting values raises where a JSON file has another form.
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError)


def export_arguments(parser: argparse.ArgumentParser) -> None:
    list_arguments(parser)
    option(parser, "--format", "what to write", choices=["coco", "yolo"], required=True)
    option(
        parser, "--output --out", "JSON file for coco, folder for yolo", Path, required=True, metavar="PATH"
    )


def export(args: argparse.Namespace) -> int:
    """A list as COCO JSON or as a YOLO folder.

    Example:
      python3 prep_data.py export data/oi/val/wider_val_gt.txt --format coco --output val.json
    """
    images_dir = image_folder(args.list, args.images)
    if args.format == "coco":
        images, boxes = write_coco(args.output, args.list, images_dir)
    else:
        images, boxes = write_yolo(args.output, iter_annotations(args.list), images_dir)
    print(f"{args.output}: {images} images, {boxes} boxes")
    return OK


def import_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "source", "JSON file for coco, folder of label files for yolo", Path)
    option(parser, "--format", "what to read", choices=["coco", "yolo"], required=True)
    option(parser, "--images --images_dir", "images; needed for yolo", Path, metavar="FOLDER")
    categories = (
        "coco: names of categories, besides face and person; yolo: numbers (default: 0=face 1=person)"
    )
    option(parser, "--category", categories, default=[], nargs="+", metavar="NAME=CLASS")
    option(parser, "--output --out", "list to write", Path, required=True, metavar="FILE")


def import_(args: argparse.Namespace) -> int:
    """COCO JSON or YOLO labels to a list. The classes that the source names count as labelled.

    Example:
      python3 prep_data.py import instances_val.json --format coco --output data/coco/val/wider_val_gt.txt
    """
    classes = parse_categories(args.category, CLASS_LABELS)
    if args.format == "coco":
        labelled, found = read_coco(args.source, classes)
    else:
        if args.images is None:
            raise UsageError("a YOLO label file does not name its image: give the images with --images")
        if not all(name.isdecimal() for name in classes):
            raise UsageError("expected class numbers in --category, e.g. 0=person")
        numbers = {int(k): v for k, v in classes.items()} or {v - 1: k for k, v in CLASS_LABELS.items()}
        labelled = set(numbers.values())
        found = read_yolo(args.source, image_folder(args.source, args.images), numbers)
    images = write_list(args.output, found, labelled)
    print(f"{args.output}: {images} images, labelled for {' and '.join(labelled_classes(args.output))}")
    return OK


def parse_categories(texts: Iterable[str], classes: Iterable[str]) -> dict[str, str]:
    """Class name by category, of texts ``NAME=CLASS``.

    Raises:
        UsageError: a text of another form, or with a class that is none of ``classes``.
    """
    found = {}
    for text in texts:
        name, _, class_name = text.rpartition("=")
        if not name or class_name not in classes:
            raise UsageError(f"--category {text}: expected NAME=CLASS with one of {', '.join(classes)}")
        found[name] = class_name
    return found


def write_coco(output: Path, list_path: Path, images_dir: Path) -> tuple[int, int]:
    """Writes a list as a COCO annotation file; returns the numbers of images and boxes.

    Category ids are the class labels, image ids count from 1, boxes are x y w h in pixels.

    Raises:
        DataError: an image that cannot be read; its size is needed.
    """
    images: list[dict] = []
    boxes: list[dict] = []
    for image_id, (annotation, (height, width)) in enumerate(iter_sizes(list_path, images_dir), 1):
        annotation = annotation.without_regions()
        images.append({"id": image_id, "file_name": annotation.path, "width": width, "height": height})
        pixels = (annotation.boxes_xywh_norm * [width, height, width, height]).round(6).tolist()
        for label, box in zip(annotation.labels.tolist(), pixels, strict=True):
            entry = {"id": len(boxes) + 1, "image_id": image_id, "category_id": label, "bbox": box}
            boxes.append(entry | {"area": round(box[2] * box[3], 6), "iscrowd": 0})
    categories = [{"id": label, "name": name} for label, name in CLASS_NAMES.items()]
    write_text(output, json.dumps({"categories": categories, "images": images, "annotations": boxes}))
    return len(images), len(boxes)


def read_coco(path: Path, categories: dict[str, str]) -> tuple[set[str], Iterator[ImageAnnotation]]:
    """A COCO annotation file; crowd boxes are kept, boxes of other categories not.

    Args:
        path: the JSON file.
        categories: class by name of the category, e.g. ``{"Face": "face"}``; face and person are known.

    Returns:
        The classes that its categories stand for, and the images in their order.

    Raises:
        DataError: not such a file; with the entry.
    """
    content = read_json(path, "a COCO annotation file")
    classes = {name: name for name in CLASS_LABELS} | categories
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        images = {
            entry["id"]: (entry["file_name"], int(entry["width"]), int(entry["height"]))
            for entry in content["images"]
        }
        if not all(isinstance(name, str) and width > 0 < height for name, width, height in images.values()):
            raise ValueError("an image without name, width or height")
        entries = list(content["annotations"])
    except _MALFORMED as error:
        raise DataError(
            f"{path}: not a COCO annotation file ({error!r}); expected categories, images with id, "
            f"file_name, width and height, and annotations"
        ) from None
    labels = {key: CLASS_LABELS[classes[name]] for key, name in names.items() if name in classes}
    if not labels:
        found = ", ".join(names.values())
        raise DataError(f"{path}: none of its categories is face or person: {found}; name some by --category")
    rows: dict[object, list[list[float]]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        try:
            label = labels.get(entry["category_id"], 0)
            _, width, height = images[entry["image_id"]]
            x, y, w, h = map(float, entry["bbox"])
            row = [label, x / width, y / height, w / width, h / height]
            if not np.isfinite(row).all():
                raise ValueError
        except _MALFORMED:
            raise DataError(
                f"{path}: annotation {index}: found {entry!r:.120}; expected category_id, the image_id "
                f"of one of its images and a bbox of four finite numbers"
            ) from None
        if label:
            rows[entry["image_id"]].append(row)
    tables = ((name, np.reshape(rows[image_id], (-1, 5))) for image_id, (name, _, _) in images.items())
    annotations = (ImageAnnotation(name, table[:, 0], table[:, 1:]) for name, table in tables)
    return {CLASS_NAMES[label] for label in labels.values()}, annotations


def write_yolo(folder: Path, annotations: Iterable[ImageAnnotation], images_dir: Path) -> tuple[int, int]:
    """Writes a YOLO folder: ``labels/<image>.txt``, the link ``images`` and ``data.yaml``.

    A line is ``class cx cy w h``, normalised, classes counted from 0. The labels are written to the side and
    moved into place together. Returns the numbers of images and boxes.

    Raises:
        DataError: the folder holds other labels, or two images would share a label file.
    """
    labels = folder / "labels"
    if labels.exists():
        raise DataError(f"{labels}: there already; remove it or take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    images = boxes = 0
    with TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        unfinished = Path(temporary, "labels")
        unfinished.mkdir()
        for annotation in map(ImageAnnotation.without_regions, annotations):
            target = unfinished / Path(annotation.path).with_suffix(".txt")
            if ".." in target.parts or not target.is_relative_to(unfinished):
                raise DataError(f"{annotation.path!r} leads out of the folder of the images")
            if target.exists():
                raise DataError(f"{annotation.path}: another image has the label file {target.name} already")
            target.parent.mkdir(parents=True, exist_ok=True)
            centred = xywh_to_cxcywh(annotation.boxes_xywh_norm).tolist()
            rows = zip(annotation.labels.tolist(), centred, strict=True)
            lines = [f"{label - 1} {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n" for label, (x, y, w, h) in rows]
            target.write_text("".join(lines), encoding="utf-8")
            images, boxes = images + 1, boxes + len(lines)
        unfinished.replace(labels)
    if not (folder / "images").exists():
        (folder / "images").symlink_to(images_dir.resolve(), target_is_directory=True)
    names = "".join(f"  {label - 1}: {name}\n" for label, name in CLASS_NAMES.items())
    write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")
    return images, boxes


def read_yolo(labels_folder: Path, images_dir: Path, classes: dict[int, str]) -> Iterator[ImageAnnotation]:
    """Images of a folder and their YOLO labels, by path; an image without a label file has no boxes.

    Args:
        labels_folder: ``<image>.txt`` files, in the same folders as the images.
        images_dir: folder of the images.
        classes: class name by YOLO class; boxes of others are left out.

    Raises:
        DataError: no images, or a line of another form, with file and line.
    """
    if not labels_folder.is_dir():
        raise DataError(f"{labels_folder}: no such folder; expected the label files")
    names = images_below(images_dir)
    if not names:
        raise DataError(f"{images_dir}: no images")
    for name in names:
        file = labels_folder / Path(name).with_suffix(".txt")
        rows = []
        for number, line in enumerate(read_text(file, "labels").split("\n") if file.exists() else (), 1):
            if not line.strip():
                continue
            try:
                yolo_class, *box = map(float, line.split())
                if len(box) != 4 or yolo_class % 1 or not np.isfinite(box).all():
                    raise ValueError
            except ValueError:
                raise DataError(f"{file}:{number}: found {line[:80]!r}; expected 'class cx cy w h'") from None
            if yolo_class in classes:
                rows.append([CLASS_LABELS[classes[int(yolo_class)]], *box])
        table = np.reshape(rows, (-1, 5))
        yield ImageAnnotation(name, table[:, 0], cxcywh_to_xywh(table[:, 1:]))
