"""Annotation lists to and from COCO JSON and YOLO folders, as other tools read and write them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation
from data.config import CLASS_LABELS, CLASS_NAMES
from utils.cli import DataError
from utils.files import atomic_path, locked, read_json, read_text, write_text
from utils.image_names import images_below
from utils.images import read_sizes


def write_coco(
    path: str | os.PathLike, annotations: Iterable[ImageAnnotation], images_dir: Path
) -> tuple[int, int]:
    """Writes a COCO annotation file; returns the numbers of images and boxes.

    Category ids are the class labels, image ids count from 1, boxes are x y w h in pixels.

    Raises:
        DataError: an image that cannot be read; its size is needed.
    """
    images = boxes = 0
    annotations = iter(annotations)
    entries = []
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        categories = [{"id": label, "name": name} for label, name in CLASS_NAMES.items()]
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        while block := list(islice(annotations, 1024)):
            sizes = read_sizes(images_dir, (annotation.path for annotation in block))
            for annotation, size in zip(block, sizes, strict=True):
                if isinstance(size, DataError):
                    raise DataError(f"{annotation.path} (line {annotation.line} of the list): {size}")
                height, width = size
                images += 1
                image = {"id": images, "file_name": annotation.path, "width": width, "height": height}
                file.write(("," if images > 1 else "") + "\n" + json.dumps(image))
                pixels = (annotation.boxes_xywh_norm * [width, height, width, height]).round(6)
                for label, box in zip(annotation.labels.tolist(), pixels.tolist(), strict=True):
                    boxes += 1
                    entries.append((boxes, images, label, box))
        file.write('],\n"annotations": [')
        for box_id, image_id, label, box in entries:
            entry = {
                "id": box_id,
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
                "area": round(box[2] * box[3], 6),
                "iscrowd": 0,
            }
            file.write(("," if box_id > 1 else "") + "\n" + json.dumps(entry))
        file.write("]}\n")
    return images, boxes


def read_coco(
    path: str | os.PathLike, categories: dict[str, str]
) -> tuple[set[str], Iterator[ImageAnnotation]]:
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
    try:
        classes = {name: name for name in CLASS_LABELS} | categories
        labels = {
            entry["id"]: CLASS_LABELS[classes[entry["name"]]]
            for entry in content["categories"]
            if entry["name"] in classes
        }
        names = ", ".join(entry["name"] for entry in content["categories"])
        images = {
            entry["id"]: (entry["file_name"], int(entry["width"]), int(entry["height"]))
            for entry in content["images"]
        }
        if not all(isinstance(name, str) and width > 0 < height for name, width, height in images.values()):
            raise ValueError("an image without name, width or height")
        entries = list(content["annotations"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path}: not a COCO annotation file ({error!r}); expected categories, images with id, "
            f"file_name, width and height, and annotations"
        ) from None
    if not labels:
        raise DataError(
            f"{path}: none of its categories is face or person: {names}; name them with --category"
        )
    rows: dict[object, list[list[float]]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        try:
            label = labels.get(entry["category_id"])
            _, width, height = images[entry["image_id"]]
            x, y, w, h = map(float, entry["bbox"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"{path}: annotation {index}: found {str(entry)[:120]}; expected category_id, the image_id "
                f"of one of its images and a bbox of four numbers"
            ) from None
        if label is not None:
            rows[entry["image_id"]].append([label, x / width, y / height, w / width, h / height])
    for image_id, table in rows.items():
        if not np.isfinite(np.reshape(table, (-1, 5))).all():
            raise DataError(f"{path}: image {images[image_id][0]}: a box that is not finite")

    def annotations() -> Iterator[ImageAnnotation]:
        for image_id, (name, _, _) in images.items():
            table = np.reshape(rows[image_id], (-1, 5))
            yield ImageAnnotation(name, table[:, 0], table[:, 1:])

    return {CLASS_NAMES[label] for label in labels.values()}, annotations()


def write_yolo(
    folder: str | os.PathLike, annotations: Iterable[ImageAnnotation], images_dir: Path
) -> tuple[int, int]:
    """Writes a YOLO folder: ``labels/<image>.txt``, the link ``images`` and ``data.yaml``.

    A line is ``class cx cy w h``, normalised, classes counted from 0. The labels are written to the side and
    moved into place together.

    Raises:
        DataError: the folder holds other labels, or two images would share a label file.
    """
    folder = Path(folder)
    with locked(folder):
        if (folder / "labels").exists():
            raise DataError(f"{folder / 'labels'}: there already; remove it or take another folder")
        unfinished = folder / ".labels.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        images = boxes = 0
        try:
            unfinished.mkdir()
            for annotation in annotations:
                target = unfinished / Path(annotation.path).with_suffix(".txt")
                if ".." in target.parts or not target.is_relative_to(unfinished):
                    raise DataError(f"{annotation.path!r} leads out of the folder of the images")
                if target.exists():
                    raise DataError(
                        f"{annotation.path}: another image has the label file {target.name} already"
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                centred = annotation.boxes_xywh_norm.copy()
                centred[:, :2] += centred[:, 2:] / 2
                lines = [
                    f"{label - 1} {' '.join(f'{value:.9f}' for value in box)}\n"
                    for label, box in zip(annotation.labels.tolist(), centred.tolist(), strict=True)
                ]
                target.write_text("".join(lines), encoding="utf-8")
                images += 1
                boxes += len(lines)
            unfinished.replace(folder / "labels")
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (folder / "images").exists():
            (folder / "images").symlink_to(images_dir.resolve(), target_is_directory=True)
        names = "".join(f"  {label - 1}: {name}\n" for label, name in CLASS_NAMES.items())
        write_text(folder / "data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")
    return images, boxes


def read_yolo(
    labels_folder: str | os.PathLike, images_dir: Path, classes: dict[int, str]
) -> Iterator[ImageAnnotation]:
    """Images of a folder and their YOLO labels, by path; an image without a label file has no boxes.

    Args:
        labels_folder: ``<image>.txt`` files, in the same folders as the images.
        images_dir: folder of the images.
        classes: class name by YOLO class; boxes of others are left out.

    Raises:
        DataError: no images, or a line of another form, with file and line.
    """
    labels_folder = Path(labels_folder)
    if not labels_folder.is_dir():
        raise DataError(f"{labels_folder}: no such folder; expected the label files")
    names = images_below(images_dir)
    if not names:
        raise DataError(f"{images_dir}: no images")
    for name in names:
        file = labels_folder / Path(name).with_suffix(".txt")
        lines = read_text(file, "YOLO labels").split("\n") if file.exists() else []
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                label, *box = map(float, line.split())
                if len(box) != 4 or label != int(label) or not np.isfinite(box).all():
                    raise ValueError
            except (ValueError, OverflowError):
                raise DataError(f"{file}:{number}: found {line[:80]!r}; expected 'class cx cy w h'") from None
            if int(label) in classes:
                cx, cy, w, h = box
                rows.append([CLASS_LABELS[classes[int(label)]], cx - w / 2, cy - h / 2, w, h])
        table = np.reshape(rows, (-1, 5))
        yield ImageAnnotation(name, table[:, 0], table[:, 1:])
