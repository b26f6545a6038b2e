"""Pascal VOC annotations: a folder of XML files, one an image."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from data.foreign import ForeignImage, Part, check_image_name
from utils.cli import DataError
from utils.files import read_text
from utils.image_names import IMAGE_SUFFIXES
from utils.images import read_size

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: Path, images_dir: Path | None = None, name: str = "") -> Part:
    """All XML files below a folder, by path; an image without one is not in the set.

    VOC counts pixels from 1: the first is (1, 1), so 1 is taken off each corner.

    Args:
        folder: of the XML files.
        images_dir: folder of the images; None: ``JPEGImages`` beside ``Annotations``, else that of the XML.
        name: of the part.

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
    names: dict[str, int] = {}
    images = [_read_image(path, path.parent.relative_to(annotations), images_dir, names) for path in files]
    return Part(name, images_dir, list(names), images)


def _read_image(path: Path, inner: Path, images_dir: Path, names: dict[str, int]) -> ForeignImage:
    """One XML file; names that are new are added to ``names`` with their number."""
    text = read_text(path, "a Pascal VOC annotation")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not XML ({error}); expected a Pascal VOC annotation") from None
    if root.tag != "annotation":
        raise DataError(f"{path}: found <{root.tag}>; expected a Pascal VOC <annotation>")
    written = (root.findtext("filename") or "").strip()
    line = text.count("\n", 0, max(0, text.find("<filename>"))) + 1
    file_name = check_image_name(written or path.with_suffix(".jpg").name, f"{path}:{line}")
    image = (inner / file_name).as_posix()
    if not (images_dir / image).is_file():  # renamed afterwards: then it is called as the XML file is
        stem = images_dir / inner / path.stem
        endings = [ending for ending in IMAGE_SUFFIXES if stem.with_name(stem.name + ending).is_file()]
        image = (inner / f"{path.stem}{endings[0]}").as_posix() if endings else image
    classes, corners = [], []
    for index, entry in enumerate(root.findall("object")):
        box = entry.find("bndbox")
        found = [None if box is None else box.findtext(corner) for corner in _CORNERS]
        try:
            numbers = [float(value) for value in found]
            label = entry.findtext("name").strip()
            if not np.isfinite(numbers).all() or numbers[2] < numbers[0] or numbers[3] < numbers[1]:
                raise ValueError
        except (TypeError, ValueError, AttributeError):
            raise DataError(
                f"{path}: object {index}: found {dict(zip(_CORNERS, found, strict=True))}; expected a name "
                f"and a bndbox with xmin, ymin, xmax, ymax"
            ) from None
        classes.append(names.setdefault(label, len(names)))
        corners.append(numbers)
    if not corners:
        return ForeignImage(image, [], np.zeros((0, 4)))
    height, width = _size(root, images_dir / image)
    boxes = np.maximum(np.array(corners) - 1, 0)  # some tools count from 0
    boxes[:, 2:] -= boxes[:, :2]
    return ForeignImage(image, classes, boxes / [width, height, width, height])


def _size(root: ElementTree.Element, image: Path) -> tuple[float, float]:
    """(height, width) that the XML says, else that of the image."""
    try:
        size = float(root.findtext("size/height")), float(root.findtext("size/width"))
        if min(size) > 0 and np.isfinite(size).all():
            return size
    except (TypeError, ValueError):
        pass
    return read_size(image)
