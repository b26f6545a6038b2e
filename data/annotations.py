"""Annotation lists: the only reader and writer of ``# image`` / ``label x y w h`` text.

A list names an image in a line ``# <path>``, then gives one box a line: label (1 face, 2 person), x and y
of the top left corner, width and height, all divided by the image's width or height:

    # 0--Parade/0_Parade_marchingband_1_849.jpg
    1 0.4385 0.3289 0.1191 0.1076

A negative label makes the box an ignore region: whether the class -1 (face) or -2 (person) is inside is not
known, so that training takes nothing there for background and no evaluation counts it.

An image without boxes is a header alone.

A file ``dataset.json`` beside a list, or one folder above it, says which classes the boxes were drawn for,
and which folder the paths start in, seen from that file (without: ``images`` beside the list). An unlabelled
class is unknown in those images, not absent:

    {"labelled_classes": ["face"], "images": "../../photos"}
"""

from __future__ import annotations

import argparse
import codecs
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from data.config import CLASS_LABELS, CLASS_NAMES
from utils.box_utils import xywh_to_xyxy
from utils.cli import DataError, option
from utils.files import atomic_path, output_path, read_json, reading, write_text
from utils.image_names import check_image_name

DATASET_INFO = "dataset.json"

_BLOCK_BYTES = 1 << 20
_WHAT = "an annotation list; prep_data.py import makes one of another tool's export"

#: Labels of boxes and of ignore regions.
_LABELS = (*CLASS_NAMES, *(-label for label in CLASS_NAMES))

#: Coordinates beyond are none: boxes may leave the image, but not by that many of its sizes.
COORDINATE_LIMIT = 1e6


@dataclass(slots=True)
class ImageAnnotation:
    """Labelled boxes of one image.

    Attributes:
        path: image path as the list has it, with forward slashes.
        labels: int64[N], 1 face, 2 person; negative for ignore regions.
        boxes_xywh_norm: float64[N, 4], x y of the top left corner, width, height; normalised, as read.
        line: line of the image's header in the file it was read from (0: not read).
    """

    path: str
    labels: np.ndarray = ()
    boxes_xywh_norm: np.ndarray = ()
    line: int = 0

    def __post_init__(self) -> None:
        self.labels = np.asarray(self.labels, np.int64)
        self.boxes_xywh_norm = np.asarray(self.boxes_xywh_norm, np.float64).reshape(-1, 4)
        if len(self.labels) != len(self.boxes_xywh_norm):
            raise ValueError(f"{self.path}: {len(self.labels)} labels of {len(self.boxes_xywh_norm)} boxes")

    def __len__(self) -> int:
        return len(self.labels)

    def without_regions(self) -> ImageAnnotation:
        """The boxes alone, without ignore regions."""
        kept = self.labels > 0
        return ImageAnnotation(self.path, self.labels[kept], self.boxes_xywh_norm[kept], self.line)

    def boxes(self, image_size: tuple[int, int]) -> np.ndarray:
        """float64[N, 4], x1 y1 x2 y2 in pixels of an image of (height, width) ``image_size``."""
        height, width = image_size
        return xywh_to_xyxy(self.boxes_xywh_norm) * [width, height, width, height]


def list_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds ``list`` and the group "input" with ``--images``, of a step that reads a list and its images."""
    option(parser, "list", "annotation list", Path)
    images = "folder of the images (default: that in dataset.json, else images beside the list)"
    group = parser.add_argument_group("input")
    option(group, "--images --images_dir", images, Path, metavar="FOLDER")
    return group


def iter_annotations(path: str | os.PathLike) -> Iterator[ImageAnnotation]:
    """Reads an annotation list image by image, in file order, in constant memory.

    Raises:
        DataError: no such file, not text, a box before the first image, a line that is not
            ``label x y w h``, an unknown label or a number beyond `COORDINATE_LIMIT`; with file and line.
    """
    with reading(path, _WHAT), Path(path).open("rb") as file:
        number, unfinished = 1, b""
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        while content := file.read(_BLOCK_BYTES):
            unfinished += content
            end = unfinished.rfind(b"\n#") + 1
            block, unfinished = unfinished[:end], unfinished[end:]
            yield from _parse_block(path, number, block)
            number += block.count(b"\n")
        yield from _parse_block(path, number, unfinished)


def read_annotations(path: str | os.PathLike) -> list[ImageAnnotation]:
    """All images of an annotation list, in file order; errors as in `iter_annotations`."""
    return list(iter_annotations(path))


def _parse_block(path: str | os.PathLike, number: int, block: bytes) -> Iterator[ImageAnnotation]:
    """The images of ``block``, whose first line is line ``number`` of the file."""
    lines = block.splitlines()
    headers = [i for i, line in enumerate(lines) if line.startswith(b"#")]
    if any(line.strip() for line in lines[: headers[0] if headers else None]):
        raise DataError(f"{path}:{number}: a box before the first image; expected a line '# <image path>'")
    table, first = _parse_rows(block), 0
    plain = bool(headers) and table is not None and len(table) == len(lines) - headers[0] - len(headers)
    for header, end in pairwise([*headers, len(lines)]):
        count = end - header - 1
        if plain:
            rows, first = table[first : first + count], first + count
        else:
            rows = _parse_carefully(path, number + header + 1, lines[header + 1 : end])
        name = lines[header][1:].decode("utf-8", "surrogateescape").strip()
        check_image_name(name, f"{path}:{number + header}")
        yield ImageAnnotation(name, rows[:, 0], rows[:, 1:], number + header)


def _parse_rows(block: bytes) -> np.ndarray | None:
    """The boxes of ``block`` as float64[N, 5], or None where a line of it needs a closer look."""
    schema = dict.fromkeys(("label", "x", "y", "w", "h"), pl.Float64)
    options = {"has_header": False, "separator": " ", "quote_char": None, "comment_prefix": "#"}
    try:
        rows = pl.read_csv(block, schema=schema, **options).to_numpy()
    except pl.exceptions.PolarsError:
        return None
    valid = (np.abs(rows) <= COORDINATE_LIMIT).all() and np.isin(rows[:, 0], _LABELS).all()
    return np.ascontiguousarray(rows) if valid else None


def _parse_carefully(path: str | os.PathLike, first: int, lines: list[bytes]) -> np.ndarray:
    """float64[N, 5] of the boxes of one image, line by line; says which of ``lines`` is faulty."""
    rows = []
    for number, line in enumerate(lines, first):
        if not line.strip():
            continue
        try:
            row = [float(value) for value in line.split()]
        except ValueError:
            row = []
        if len(row) != 5 or not (np.abs(row) <= COORDINATE_LIMIT).all():
            found = line.decode("utf-8", "replace").strip()[:80]
            raise DataError(
                f"{path}:{number}: found {found!r}; expected five numbers 'label x y w h', all but the label "
                f"divided by the image's width and height"
            )
        if row[0] not in _LABELS:
            known = ", ".join(f"{label} {name}" for label, name in CLASS_NAMES.items())
            expected = f"expected one of: {known}, or negative to ignore a region"
            raise DataError(f"{path}:{number}: found label {row[0]:g}; {expected}")
        rows.append(row)
    return np.reshape(rows, (-1, 5))


def write_annotations(path: str | os.PathLike, annotations: Iterable[ImageAnnotation]) -> int:
    """Writes an annotation list atomically, coordinates with nine decimals; returns the number of images.

    Raises:
        DataError: an image's path or a box that would not read back.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for annotation in annotations:
            count += 1
            check_image_name(annotation.path, str(path))
            if not (np.abs(annotation.boxes_xywh_norm) <= COORDINATE_LIMIT).all():
                what = f"a box beyond {COORDINATE_LIMIT:g} times the image's size; correct it"
                raise DataError(f"{annotation.path}: {what}")
            rows = zip(annotation.labels.tolist(), annotation.boxes_xywh_norm.tolist(), strict=True)
            lines = [f"{label} {x:.9f} {y:.9f} {w:.9f} {h:.9f}\n" for label, (x, y, w, h) in rows]
            file.write("".join([f"# {annotation.path}\n", *lines]))
    return count


def format_table(boxes: pl.DataFrame, first_rows: np.ndarray, paths: pl.Series) -> bytes:
    """The lines of many boxes at once; they read back as those of `write_annotations`, much faster.

    Args:
        boxes: columns ``label`` (int) and ``x y w h`` (float64, as in a list), in list order.
        first_rows: int[M], rows before which a header goes.
        paths: M image paths for these headers.
    """
    # Rounded beforehand, as writing with a fixed number of decimals takes twice the time.
    table = boxes.select(pl.col("label").cast(pl.String), pl.col("x", "y", "w", "h").round(9))
    labels = table["label"]
    parts = pl.lit("# "), paths, pl.lit("\n"), labels.gather(first_rows)
    headed = pl.select(pl.concat_str(parts)).to_series()
    if len(headed):
        table = table.with_columns(labels.scatter(first_rows, headed))
    buffer = io.BytesIO()
    table.write_csv(buffer, include_header=False, separator=" ", quote_style="never")
    return buffer.getvalue()


def labelled_classes(list_path: str | os.PathLike) -> tuple[str, ...]:
    """Classes that the images of a list are labelled for, in label order; both where no file says so.

    Raises:
        DataError: the ``dataset.json`` found is not of the form shown above.
    """
    return _read_info(list_path)[0]


def images_of(list_path: str | os.PathLike) -> Path:
    """Where the images of a list should be: the folder in its ``dataset.json``, else ``images`` beside it."""
    return _read_info(list_path)[1] or Path(list_path).parent / "images"


def image_folder(list_path: str | os.PathLike, given: str | os.PathLike | None = None) -> Path:
    """Folder of a list's images: the given one, else `images_of` the list; DataError if there is none."""
    folder = Path(given) if given is not None else images_of(list_path)
    if not folder.is_dir():
        with reading(list_path, _WHAT):
            Path(list_path).stat()  # where it is missing, so is its folder
        raise DataError(
            f"{folder}: no such folder; expected the images of {list_path}: give theirs with --images, or "
            f"for good: python3 prep_data.py link FOLDER {Path(list_path).parent}"
        )
    return folder


def known_images(list_path: str | os.PathLike, given: str | os.PathLike | None = None) -> Path | None:
    """`image_folder` of a step that can do without; None where nothing is given and there is none."""
    return image_folder(list_path, given) if given is not None or images_of(list_path).is_dir() else None


def _read_info(list_path: str | os.PathLike) -> tuple[tuple[str, ...], Path | None]:
    """Labelled classes and folder of the images by the ``dataset.json`` of a list."""
    folder, known = Path(list_path).resolve().parent, list(CLASS_LABELS)
    for path in (folder / DATASET_INFO, folder.parent / DATASET_INFO):
        if not path.exists():
            continue
        content = read_json(path, "a table with the key labelled_classes")
        names = content.get("labelled_classes") if isinstance(content, dict) else content
        if not names or not isinstance(names, list) or any(name not in known for name in names):
            raise DataError(
                f'{path}: expected {{"labelled_classes": [...]}} with one or more of {", ".join(known)}; '
                f"found {names!r:.80}"
            )
        images = content.get("images")
        if "images" in content and not (isinstance(images, str) and images and "\0" not in images):
            raise DataError(f'{path}: expected a folder, "images": "..."; found {images!r:.80}')
        place = Path(os.path.normpath(path.parent / images)) if images else None
        return tuple(name for name in known if name in names), place
    return tuple(known), None


def check_labelled_classes(
    list_path: str | os.PathLike, names: Iterable[str], images: str | os.PathLike | None = None
) -> None:
    """Makes sure that a list can be written, and ``dataset.json`` beside it with ``names`` and ``images``.

    Raises:
        DataError: another list in the folder is labelled for other classes or has its images elsewhere; the
            list is a folder.
    """
    list_path = output_path(list_path)
    path, change = list_path.parent / DATASET_INFO, ""
    if path.exists() and set(names) != set(before := labelled_classes(list_path)):
        change = f"labelled for {', '.join(before)}, {list_path.name} for {', '.join(names)}"
    elif images is not None and (place := known_images(list_path)) and not place.samefile(images):
        change = f"with its images in {place}, those of {list_path.name} are in {images}"
    for other in sorted(list_path.parent.glob("*.txt")) if change else ():
        with other.open("rb") as file:
            is_list = file.read(1) == b"#"
        if is_list and other.name != list_path.name:
            raise DataError(f"{path}: about {other.name}, {change}: write it to another folder")


def write_labelled_classes(
    list_path: str | os.PathLike, names: Iterable[str], images: str | os.PathLike | None = None
) -> None:
    """Writes the ``dataset.json`` beside a list, without ``images`` with the folder that it named before,
    whatever other lists are there: see `check_labelled_classes`."""
    names, path = set(names), Path(list_path).parent / DATASET_INFO
    if images is None and path.exists():
        images = _read_info(list_path)[1]
    content: dict[str, object] = {"labelled_classes": [name for name in CLASS_LABELS if name in names]}
    if images is not None:
        content["images"] = os.path.relpath(Path(images).resolve(), path.parent.resolve())
    write_text(path, json.dumps(content) + "\n")


def write_list(
    path: str | os.PathLike,
    annotations: Iterable[ImageAnnotation],
    names: Iterable[str],
    images: str | os.PathLike | None = None,
) -> int:
    """`write_annotations` and, beside it, `write_labelled_classes`; returns the number of images."""
    names = tuple(names)
    check_labelled_classes(path, names, images)
    count = write_annotations(path, annotations)
    write_labelled_classes(path, names, images)
    return count
