"""The official WIDER FACE annotation text (``wider_face_*_bbx_gt.txt``) to annotation lists.

An image is its path, the number of its faces, then a line a face: ``x1 y1 w h`` in pixels and six
attributes. An image without faces has the count 0 and one line of zeros.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation
from data.config import CLASS_LABELS
from utils.cli import DataError
from utils.files import read_text
from utils.images import read_sizes

#: Columns of a face: x1 y1 w h blur expression illumination invalid occlusion pose.
COLUMNS = 10
_INVALID = 7
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass
class WiderImage:
    """Faces of one image as the text has them.

    Attributes:
        path: of the image.
        line: where it is named.
        boxes_xywh: float64[N, 4], pixels.
        invalid: bool[N], marked as too unclear to be used.
    """

    path: str
    line: int
    boxes_xywh: np.ndarray
    invalid: np.ndarray


def read_wider_text(path: str | os.PathLike) -> Iterator[WiderImage]:
    """Reads the annotation text image by image.

    Raises:
        DataError: not such a text, with file and line.
    """
    lines = read_text(path, "wider_face_train_bbx_gt.txt or its like").rstrip("\n").split("\n")
    number = 0
    while number < len(lines):
        name = lines[number].strip()
        if not name:
            number += 1
            continue
        if not name.lower().endswith(_IMAGE_ENDINGS):
            raise DataError(f"{path}:{number + 1}: found {name[:80]!r}; expected the path of an image")
        count_text = lines[number + 1].strip() if number + 1 < len(lines) else "the end of the file"
        if not count_text.isdecimal() or len(count_text) > 9:
            raise DataError(
                f"{path}:{number + 2}: found {count_text[:80]!r}; expected the number of faces of {name}"
            )
        count, first = int(count_text), number + 2
        rows = np.array([_row(path, lines, i) for i in range(first, first + count)]).reshape(-1, COLUMNS)
        yield WiderImage(name, number + 1, rows[:, :4], rows[:, _INVALID] == 1)
        number = first + count
        if count == 0 and number < len(lines) and _is_row(lines[number]):
            number += 1  # the dummy line


def _is_row(line: str) -> bool:
    return not line.strip().lower().endswith(_IMAGE_ENDINGS)


def _row(path: str | os.PathLike, lines: list[str], index: int) -> list[float]:
    if index >= len(lines):
        raise DataError(f"{path}:{len(lines)}: cut off in the faces of an image; get the file again")
    try:
        values = [float(value) for value in lines[index].split()]
    except ValueError:
        values = []
    if len(values) != COLUMNS or not np.isfinite(values).all():
        raise DataError(
            f"{path}:{index + 1}: found {lines[index][:80]!r}; expected {COLUMNS} numbers of a face"
        )
    return values


def wider_annotations(
    path: str | os.PathLike,
    images_dir: Path,
    counts: Counter[str],
    keep_invalid: bool = False,
    skip_missing: bool = False,
) -> Iterator[ImageAnnotation]:
    """Faces of the annotation text as list entries; images without faces are kept, as negatives.

    Args:
        path: the annotation text.
        images_dir: folder of the images, whose sizes are needed.
        counts: what was found and left out is counted here.
        keep_invalid: keep faces that are marked invalid.
        skip_missing: leave out images that are not in the folder, counted.

    Raises:
        DataError: the text or an image cannot be used, with file and line.
    """
    images = read_wider_text(path)
    while block := list(islice(images, 1024)):
        sizes = read_sizes(images_dir, (image.path for image in block))
        for image, size in zip(block, sizes, strict=True):
            if isinstance(size, DataError):
                if not skip_missing:
                    raise DataError(f"{path}:{image.line}: {size}; leave such images out with --skip_missing")
                counts["images without a usable file, left out"] += 1
                continue
            height, width = size
            positive = (image.boxes_xywh[:, 2:] > 0).all(1)
            kept = positive & (keep_invalid | ~image.invalid)
            counts["images"] += 1
            counts["images without faces, kept"] += not len(kept)
            counts["faces"] += int(kept.sum())
            counts["faces without area, left out"] += int((~positive).sum())
            counts["faces marked invalid, left out"] += int((positive & ~kept).sum())
            boxes = image.boxes_xywh[kept] / [width, height, width, height]
            yield ImageAnnotation(image.path, np.full(len(boxes), CLASS_LABELS["face"]), boxes, image.line)
