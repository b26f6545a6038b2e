"""COCO annotation files: reading those of any tool, writing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data.annotations import COORDINATE_LIMIT, labelled_classes
from data.config import CLASS_LABELS
from data.foreign import ForeignImage, Part, bounds, check_image_name
from data.lists import iter_sizes
from utils.cli import DataError
from utils.files import read_json, write_text

#: What looking up and converting values raises where a JSON file has another form.
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError)


def read_coco(path: Path, images_dir: Path | None = None, name: str = "") -> Part:
    """A COCO annotation file; crowd boxes are kept, polygons without a box become one.

    Args:
        path: the JSON file.
        images_dir: folder of its images; None: that of the file, or ``images`` in it.
        name: of the part.

    Raises:
        DataError: not such a file, an id twice, or a box that is none; with the entry.
    """
    content = read_json(path, "a COCO annotation file")
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        above = {
            entry.get("supercategory")
            for entry in content["categories"]
            if entry.get("supercategory") != entry["name"]
        }
        images = {
            entry["id"]: (entry["file_name"], _number(entry["width"]), _number(entry["height"]))
            for entry in content["images"]
        }
        if not all(isinstance(name, str) and width > 0 < height for name, width, height in images.values()):
            raise ValueError("an image without name, width or height")
        entries = list(content["annotations"])
    except _MALFORMED as error:
        raise DataError(
            f"{path}: not a COCO annotation file ({error!r:.120}); expected categories, images with id, "
            f"file_name, width and height, and annotations"
        ) from None
    for kind in ("categories", "images", "annotations"):
        _refuse_repeats(path, kind, content[kind])
    for index, (file_name, _, _) in enumerate(images.values()):
        check_image_name(file_name, f"{path}: image {index}")
    places = {key: place for place, key in enumerate(names)}
    rows: dict[object, list[list[float]]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        try:
            _, width, height = images[entry["image_id"]]
            x, y, w, h = map(_number, entry.get("bbox") or _around(entry["segmentation"]))
            box = [x / width, y / height, w / width, h / height]
            if w < 0 or h < 0 or max(map(abs, box)) > COORDINATE_LIMIT:
                raise ValueError
            row = [places[entry["category_id"]], *box]
        except _MALFORMED:
            raise DataError(
                f"{path}: annotation {index}: found {entry!r:.120}; expected category_id, the image_id "
                f"of one of its images and a bbox x y w h of four finite numbers, none a negative size"
            ) from None
        rows[entry["image_id"]].append(row)
    # Roboflow puts the project's name first, as a category above the others that no box has.
    used = {row[0] for of_image in rows.values() for row in of_image}
    kept = [place for key, place in places.items() if place in used or names[key] not in above]
    numbers = {place: number for number, place in enumerate(kept)}
    found = []
    for image_id, (file_name, _, _) in images.items():
        table = np.reshape(rows[image_id], (-1, 5))
        found.append(ForeignImage(file_name, [numbers[place] for place in table[:, 0]], table[:, 1:]))
    folders = [images_dir] if images_dir else [path.parent, path.parent / "images"]
    first = found[0].path if found else ""
    folder = next((folder for folder in folders if first and (folder / first).is_file()), images_dir)
    listed = list(names.values())
    return Part(name, folder, [listed[place] for place in kept], found)


def _number(value: object) -> float:
    """A finite number that is one in JSON too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no finite number")
    return float(value)


def _around(polygons: Iterable[list[float]]) -> list[float]:
    """x y w h around polygons x1 y1 x2 y2 and so on."""
    return bounds(np.concatenate([np.reshape([_number(v) for v in one], (-1, 2)) for one in polygons]))


def _refuse_repeats(path: Path, kind: str, entries: list[dict]) -> None:
    seen: dict[object, int] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or "id" not in entry:
            continue  # ids of annotations are for nobody
        try:
            earlier = seen.setdefault(entry["id"], index)
        except TypeError:
            continue
        if earlier != index:
            raise DataError(
                f"{path}: {kind} {earlier} and {index} have one id, {entry['id']!r:.40}; expected one each"
            )


def write_coco(output: Path, list_path: Path, images_dir: Path) -> tuple[int, int]:
    """Writes a list as a COCO annotation file; returns the numbers of images and boxes.

    Categories are the classes that the list is labelled for, their ids the class labels; image ids count from
    1, boxes are x y w h in pixels.

    Raises:
        DataError: an image that cannot be read; its size is needed.
    """
    images: list[dict] = []
    boxes: list[dict] = []
    labelled = {CLASS_LABELS[name]: name for name in labelled_classes(list_path)}
    for image_id, (annotation, (height, width)) in enumerate(iter_sizes(list_path, images_dir), 1):
        images.append({"id": image_id, "file_name": annotation.path, "width": width, "height": height})
        pixels = (annotation.boxes_xywh_norm * [width, height, width, height]).round(6).tolist()
        for label, box in zip(annotation.labels.tolist(), pixels, strict=True):
            if label in labelled:
                entry = {"id": len(boxes) + 1, "image_id": image_id, "category_id": label, "bbox": box}
                boxes.append(entry | {"area": round(box[2] * box[3], 6), "iscrowd": 0})
    categories = [{"id": label, "name": name} for label, name in labelled.items()]
    write_text(output, json.dumps({"categories": categories, "images": images, "annotations": boxes}))
    return len(images), len(boxes)
