"""Annotation files of other tools: COCO (read and written), Pascal VOC, CrowdHuman and WIDER FACE (read)."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.annotations import COORDINATE_LIMIT, labelled_classes
from data.config import CLASS_LABELS, label_name
from data.foreign import ForeignImage, Part, bounds
from data.lists import iter_sizes
from utils.box_utils import xywh_to_xyxy, xyxy_to_xywh
from utils.cli import DataError
from utils.files import read_json, read_text, write_text
from utils.image_names import check_image_name, image_of
from utils.images import read_size

#: What looking up and converting values raises where a file has another form.
_MALFORMED = (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")

#: Columns of a face in WIDER FACE's text: x1 y1 w h blur expression illumination invalid occlusion pose.
WIDER_COLUMNS = 10
_INVALID = 7

#: CrowdHuman's box of a person by the option's value.
CROWDHUMAN_BOXES = {"full": "fbox", "visible": "vbox"}

_PERSON_REGION = label_name(-CLASS_LABELS["person"])


def read_coco(path: Path, images_dir: Path | None = None, name: str = "") -> Part:
    """A COCO annotation file; crowd boxes are kept, polygons without a box become one.

    Without ``images_dir`` the images are beside the file, or in ``images`` there.

    Raises:
        DataError: not such a file, an id twice, or a box that is none; with the entry.
    """
    content = read_json(path, "a COCO annotation file")
    try:
        names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        above = {e.get("supercategory") for e in content["categories"] if e.get("supercategory") != e["name"]}
        images = {
            entry["id"]: (entry["file_name"], _number(entry["width"]), _number(entry["height"]))
            for entry in content["images"]
        }
        if not all(isinstance(name, str) and width > 0 < height for name, width, height in images.values()):
            raise ValueError("an image without name, width or height")
        entries = list(content["annotations"])
        kinds = ("categories", "images", "annotations")
        ids = {kind: Counter(entry["id"] for entry in content[kind] if "id" in entry) for kind in kinds}
    except _MALFORMED as error:
        raise DataError(
            f"{path}: not a COCO annotation file ({error!r:.120}); expected categories, images with id, "
            f"file_name, width and height, and annotations"
        ) from None
    for kind, found in ids.items():
        if repeated := [one for one, times in found.items() if times > 1]:
            raise DataError(f"{path}: several {kind} have the id {repeated[0]!r:.40}; expected one each")
    for index, (file_name, _, _) in enumerate(images.values()):
        check_image_name(file_name, f"{path}: image {index}")
    boxes: dict[object, list[tuple]] = {image_id: [] for image_id in images}
    for index, entry in enumerate(entries):
        try:
            _, width, height = images[entry["image_id"]]
            x, y, w, h = map(_number, entry.get("bbox") or _around(entry["segmentation"]))
            box = [x / width, y / height, w / width, h / height]
            if w < 0 or h < 0 or max(map(abs, box)) > COORDINATE_LIMIT or entry["category_id"] not in names:
                raise ValueError
        except _MALFORMED:
            raise DataError(
                f"{path}: annotation {index}: found {entry!r:.120}; expected category_id, the image_id "
                f"of one of its images and a bbox x y w h of four finite numbers, none a negative size"
            ) from None
        boxes[entry["image_id"]].append((names[entry["category_id"]], *box))
    found = []
    for image_id, (file_name, _, _) in images.items():
        rows = np.reshape([box for _, *box in boxes[image_id]], (-1, 4))
        found.append(ForeignImage(file_name, [row[0] for row in boxes[image_id]], rows))
    # Roboflow puts the project's name first, as a category above the others that no box has.
    used = {name for image in found for name in image.names}
    kept = [name for name in dict.fromkeys(names.values()) if name in used or name not in above]
    folders = [images_dir] if images_dir else [path.parent, path.parent / "images"]
    there = (folder for folder in folders if found and (folder / found[0].path).is_file())
    return Part(name, next(there, images_dir), kept, found)


def _number(value: object) -> float:
    """A finite number that is one in JSON too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no finite number")
    return float(value)


def _around(polygons: Iterable[list[float]]) -> list[float]:
    """x y w h around polygons x1 y1 x2 y2 and so on."""
    return bounds(np.concatenate([np.reshape([_number(v) for v in one], (-1, 2)) for one in polygons]))


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


def read_voc(folder: Path, images_dir: Path | None = None, name: str = "") -> Part:
    """Pascal VOC: all XML files below a folder, by path; an image without one is not in the set.

    Without ``images_dir`` the images are in ``JPEGImages`` beside ``Annotations``, else beside the XML.

    Raises:
        DataError: no XML, or one of another form; with the file.
    """
    annotations = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    if images_dir is None:
        beside = annotations.parent / "JPEGImages"
        images_dir = beside if beside.is_dir() else annotations
    files = sorted(path for path in annotations.rglob("*.xml") if path.is_file())
    if not files:
        raise DataError(f"{folder}: no XML files; expected Pascal VOC annotations")
    images = [_read_voc_file(path, images_dir, path.parent.relative_to(annotations)) for path in files]
    return Part(
        name, images_dir, list(dict.fromkeys(name for image in images for name in image.names)), images
    )


def _read_voc_file(path: Path, images_dir: Path, inner: Path) -> ForeignImage:
    """One XML file, whose image is in the folder ``inner`` of ``images_dir``."""
    text = read_text(path, "a Pascal VOC annotation")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not XML ({error}); expected a Pascal VOC annotation") from None
    if root.tag != "annotation":
        raise DataError(f"{path}: found <{root.tag}>; expected a Pascal VOC <annotation>")
    line = text.count("\n", 0, max(0, text.find("<filename>"))) + 1
    written = (root.findtext("filename") or "").strip() or f"{path.stem}.jpg"
    image = images_dir / inner / check_image_name(written, f"{path}:{line}")
    if not image.is_file():  # renamed afterwards: then it is called as the XML file is
        image = image_of(images_dir / inner, path.stem)
    names, corners = [], []
    for index, entry in enumerate(root.findall("object")):
        found = {corner: entry.findtext(f"bndbox/{corner}") for corner in _CORNERS}
        try:
            x1, y1, x2, y2 = numbers = [float(value) for value in found.values()]
            name = entry.findtext("name").strip()
            if not np.isfinite(numbers).all() or x2 < x1 or y2 < y1:
                raise ValueError
        except _MALFORMED:
            expected = f"a name and a bndbox with {', '.join(_CORNERS)}"
            raise DataError(f"{path}: object {index}: found {found}; expected {expected}") from None
        names.append(name)
        corners.append(numbers)
    boxes = np.maximum(np.reshape(corners, (-1, 4)) - 1, 0)  # the first pixel is 1; some tools count from 0
    if names:
        height, width = _voc_size(root) or read_size(image)
        boxes = xyxy_to_xywh(boxes) / [width, height, width, height]
    return ForeignImage(image.relative_to(images_dir).as_posix(), names, boxes)


def _voc_size(root: ElementTree.Element) -> tuple[float, float] | None:
    """(height, width) that the XML says, if it is one."""
    try:
        size = float(root.findtext("size/height")), float(root.findtext("size/width"))
    except _MALFORMED:
        return None
    return size if min(size) > 0 and np.isfinite(size).all() else None


def read_crowdhuman(path: Path, images_dir: Path | None, boxes: str) -> Part:
    """CrowdHuman's ``.odgt``, one JSON object a line and image, boxes x y w h in pixels:

        {"ID": "273271,1a0d6000b9e1f5b7", "gtboxes": [
            {"tag": "person", "fbox": [x, y, w, h], "vbox": [...], "hbox": [...], "extra": {...}},
            {"tag": "mask", "fbox": [x, y, w, h], "extra": {"ignore": 1}}]}

    Persons become boxes; what is no person by its tag (a crowd, a reflection or the like) or to be ignored by
    its ``extra`` becomes an ignore region. Boxes are cut to the image, as the benchmark's own evaluation
    does. Heads are not faces, and are left out.

    Args:
        path: the ``.odgt`` file.
        images_dir: folder of the images, whose sizes the file does not have.
        boxes: of `CROWDHUMAN_BOXES`, the whole person, also hidden, or what shows of it; a region that has no
            visible box keeps its full one.

    Raises:
        DataError: no folder, an image that is not in it, or a line of another form; with file and line.
    """
    if images_dir is None:
        raise DataError(f"{path}: it has no sizes of its images; give their folder with --images")
    images, lines = [], {}
    text = read_text(path, "annotations of CrowdHuman, one JSON object a line")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        stem, names, rows = _read_odgt_line(f"{path}:{number}", line, CROWDHUMAN_BOXES[boxes])
        file = image_of(images_dir, stem)
        name = file.relative_to(images_dir).as_posix()
        if (first := lines.setdefault(name, number)) != number:
            raise DataError(f"{path}:{number}: {name} again, as in line {first}; keep one of them")
        try:
            height, width = read_size(file)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        sides = [width, height, width, height]
        cut = xywh_to_xyxy(np.reshape(rows, (-1, 4))).clip(0, sides)
        images.append(ForeignImage(name, names, xyxy_to_xywh(cut) / sides))
    return Part("", images_dir, ["person", _PERSON_REGION], images)


def _read_odgt_line(place: str, line: str, key: str) -> tuple[str, list[str], list[list[float]]]:
    """Name of an image, names of its boxes, and the boxes x y w h in pixels."""
    try:
        content = json.loads(line)
        name, entries = content["ID"], content["gtboxes"]
        if not isinstance(name, str) or not isinstance(entries, list):
            raise TypeError
    except _MALFORMED:
        raise DataError(f"{place}: found {line!r:.80}; expected a JSON object with ID and gtboxes") from None
    names, rows = [], []
    for index, entry in enumerate(entries):
        try:
            is_region = entry["tag"] != "person" or entry.get("extra", {}).get("ignore", 0) != 0
            _, _, w, h = row = [_number(v) for v in entry[key if key in entry or not is_region else "fbox"]]
            if w < 0 or h < 0:
                raise ValueError
        except _MALFORMED:
            raise DataError(
                f"{place}: box {index}: found {json.dumps(entry):.120}; expected a tag and {key} x y w h, "
                f"four finite numbers, none a negative size"
            ) from None
        names.append(_PERSON_REGION if is_region else "person")
        rows.append(row)
    return check_image_name(name, place), names, rows


class WiderImage(NamedTuple):
    """Faces of one image as WIDER FACE's text has them: the line that names it, boxes float64[N, 4] in
    pixels, and bool[N], which are marked as too unclear to be used."""

    path: str
    line: int
    boxes_xywh: np.ndarray
    invalid: np.ndarray


def read_wider_text(path: str | os.PathLike) -> Iterator[WiderImage]:
    """Reads the official WIDER FACE annotation text (``wider_face_*_bbx_gt.txt``) image by image.

    An image is its path, the number of its faces, then a line a face: ``x1 y1 w h`` in pixels and six
    attributes. An image without faces has the count 0 and one line of zeros.

    Raises:
        DataError: not such a text, with file and line.
    """
    text = read_text(path, "wider_face_train_bbx_gt.txt or its like").rstrip("\n")
    lines = [line.strip() for line in text.split("\n")]
    number = 0
    while number < len(lines):
        name = lines[number]
        if not name:
            number += 1
            continue
        place = f"{path}:{number + 1}"
        if not _is_wider_image(name):
            raise DataError(f"{place}: found {name[:80]!r}; expected the path of an image")
        check_image_name(name, place)
        count = lines[number + 1] if number + 1 < len(lines) else "the end of the file"
        if not count.isdecimal() or len(count) > 9:
            found = f"found {count[:80]!r}; expected the number of faces of {name}"
            raise DataError(f"{path}:{number + 2}: {found}")
        first, end = number + 2, number + 2 + int(count)
        faces = np.reshape([_face(path, lines, i) for i in range(first, end)], (-1, WIDER_COLUMNS))
        yield WiderImage(name, number + 1, faces[:, :4], faces[:, _INVALID] == 1)
        has_dummy = first == end < len(lines) and not _is_wider_image(lines[end])
        number = end + has_dummy


def _is_wider_image(line: str) -> bool:
    return line.lower().endswith((".jpg", ".jpeg", ".png"))


def _face(path: str | os.PathLike, lines: list[str], index: int) -> list[float]:
    if index >= len(lines):
        raise DataError(f"{path}:{len(lines)}: cut off in the faces of an image; get the file again")
    try:
        values = [float(value) for value in lines[index].split()]
        if len(values) != WIDER_COLUMNS or not np.isfinite(values).all():
            raise ValueError
    except ValueError:
        found = f"found {lines[index][:80]!r}; expected {WIDER_COLUMNS} numbers of a face"
        raise DataError(f"{path}:{index + 1}: {found}") from None
    return values
