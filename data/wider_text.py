"""The official WIDER FACE annotation text (``wider_face_*_bbx_gt.txt``) to annotation lists.

An image is its path, the number of its faces, then a line a face: ``x1 y1 w h`` in pixels and six
attributes. An image without faces has the count 0 and one line of zeros.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation, image_folder, write_list
from data.config import CLASS_LABELS
from utils.cli import OK, DataError, option, print_rows
from utils.files import read_text
from utils.image_names import leads_out
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


def widerface_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "text", "official text annotation, wider_face_{train,val}_bbx_gt.txt", Path)
    option(parser, "--images --images_dir", "images, by event", Path, required=True, metavar="FOLDER")
    text = "list to write; dataset.json goes beside it"
    option(parser, "--output --out", text, Path, required=True, metavar="FILE")
    option(parser, "--skip_missing", "leave out images without a usable file")


def widerface(args: argparse.Namespace) -> int:
    """The official WIDER FACE text annotation to an annotation list of faces. Images without faces are
    kept; faces without area or marked invalid are left out and counted.

    Example:
      python3 prep_data.py widerface wider_face_val_bbx_gt.txt --images WIDER_val/images \\
          --output datasets/widerface/val/wider_val_gt.txt
    """
    counts: Counter[str] = Counter()
    folder = image_folder(args.text, args.images)
    faces = _annotations(args.text, folder, counts, args.skip_missing)
    images = write_list(args.output, faces, ["face"], folder)
    print_rows(counts.items())
    print(f"{args.output}: {images} images, labelled for face")
    return OK


def _annotations(
    path: Path, folder: Path, counts: Counter[str], skip_missing: bool
) -> Iterator[ImageAnnotation]:
    """Faces of the annotation text as list entries; what was found and left out is counted."""
    images, named = tee(read_wider_text(path))
    sizes = read_sizes(folder, (image.path for image in named))
    for image, size in zip(images, sizes, strict=True):
        if isinstance(size, DataError):
            if not skip_missing:
                raise DataError(f"{path}:{image.line}: {size}; leave such images out with --skip_missing")
            counts["images without a usable file, left out"] += 1
            continue
        height, width = size
        has_area = (image.boxes_xywh[:, 2:] > 0).all(1)
        kept = has_area & ~image.invalid
        counts["images"] += 1
        counts["images without faces, kept"] += not len(kept)
        counts["faces"] += int(kept.sum())
        counts["faces without area, left out"] += int((~has_area).sum())
        counts["faces marked invalid, left out"] += int((has_area & image.invalid).sum())
        boxes = image.boxes_xywh[kept] / [width, height, width, height]
        yield ImageAnnotation(image.path, np.full(len(boxes), CLASS_LABELS["face"]), boxes, image.line)


def read_wider_text(path: str | os.PathLike) -> Iterator[WiderImage]:
    """Reads the annotation text image by image.

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
        if not _is_image(name):
            raise DataError(f"{path}:{number + 1}: found {name[:80]!r}; expected the path of an image")
        if leads_out(name):
            raise DataError(
                f"{path}:{number + 1}: {name[:80]!r} leads out of the images; expected event/image"
            )
        count = lines[number + 1] if number + 1 < len(lines) else "the end of the file"
        if not count.isdecimal() or len(count) > 9:
            found = f"found {count[:80]!r}; expected the number of faces of {name}"
            raise DataError(f"{path}:{number + 2}: {found}")
        first, end = number + 2, number + 2 + int(count)
        faces = np.array([_face(path, lines, i) for i in range(first, end)]).reshape(-1, COLUMNS)
        yield WiderImage(name, number + 1, faces[:, :4], faces[:, _INVALID] == 1)
        has_dummy = first == end < len(lines) and not _is_image(lines[end])
        number = end + has_dummy


def _is_image(line: str) -> bool:
    return line.lower().endswith(_IMAGE_ENDINGS)


def _face(path: str | os.PathLike, lines: list[str], index: int) -> list[float]:
    if index >= len(lines):
        raise DataError(f"{path}:{len(lines)}: cut off in the faces of an image; get the file again")
    try:
        values = [float(value) for value in lines[index].split()]
    except ValueError:
        values = []
    if len(values) != COLUMNS or not np.isfinite(values).all():
        found = f"found {lines[index][:80]!r}; expected {COLUMNS} numbers of a face"
        raise DataError(f"{path}:{index + 1}: {found}")
    return values
