"""Ground truth of faces and persons: an annotation list, or CSVs of Open Images."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.annotations import ImageAnnotation, labelled_classes, read_annotations
from data.config import CLASS_LABELS, CLASS_NAMES
from data.predictions import offsets_of
from data.truths import Truths
from utils.cli import DataError, UsageError, warn
from utils.image_names import image_key, is_odd

if TYPE_CHECKING:
    import polars


def read_ground_truth(
    path: Path, image_labels: Path | None = None, descriptions: Path | None = None, legacy: bool = False
) -> Truths:
    """Reads an annotation list (``.txt``), a box CSV (``.csv``, ``.csv.gz``), or a folder with one of them.

    Args:
        path: the file or folder.
        image_labels: CSV of verified image-level labels, for a box CSV.
        descriptions: class description CSV, for a box CSV.
        legacy: read a list as the original did: an image listed twice counts twice, both times with the
            boxes that come last.

    Raises:
        DataError: no such ground truth, or a faulty one.
        UsageError: CSV options for a list.
    """
    path = _the_file(path)
    if ".csv" in path.suffixes:
        return read_csv(path, image_labels, descriptions)
    if image_labels or descriptions:
        raise UsageError(
            f"--image_labels and --class_descriptions go with a box CSV; the ground truth is {path}"
        )
    return read_list(path, legacy)


def _the_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise DataError(
                f"{path}: no such ground truth; give an annotation list or a box CSV of Open Images as -g"
            )
        return path
    files = [file for file in sorted(path.iterdir()) if ".csv" in file.suffixes or file.suffix == ".txt"]
    if len(files) != 1:
        raise DataError(
            f"{path}: found {len(files)} lists and CSVs in this folder; expected one, or give it as -g FILE"
        )
    return files[0]


def read_list(path: Path, legacy: bool = False) -> Truths:
    """Reads an annotation list; of an image that is listed twice the first entry is taken."""
    annotations = read_annotations(path)
    odd = [annotation.path for annotation in annotations if is_odd(annotation.path)]
    if odd:
        warn(f"{path}: {len(odd)} entries do not name an image and are skipped: {', '.join(odd)}")
        annotations = [annotation for annotation in annotations if not is_odd(annotation.path)]
    if not annotations:
        raise DataError(f"{path}: no image in it; expected lines '# <image path>' and 'label x y w h'")
    counts = Counter(image_key(annotation.path) for annotation in annotations)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        named = f"{len(twice)} images are listed more than once: {', '.join(twice)}"
        warn(
            f"{path}: {named}; "
            f"{'each entry counts, with the last boxes' if legacy else 'the first entry counts'}"
        )
        annotations = list(_as_original(annotations) if legacy else _firsts(annotations))
    truths = Truths.from_annotations(annotations)
    labelled = labelled_classes(path)
    truths.verified = {
        label: np.zeros(len(truths.images), bool)
        for label, name in CLASS_NAMES.items()
        if name not in labelled
    }
    return truths


def _firsts(annotations: list[ImageAnnotation]) -> Iterable[ImageAnnotation]:
    return {
        image_key(annotation.path): annotation for annotation in reversed(annotations)
    }.values().__reversed__()


def _as_original(annotations: list[ImageAnnotation]) -> Iterable[ImageAnnotation]:
    """Every entry, with the boxes of the image's last entry that has some."""
    last = {image_key(annotation.path): annotation for annotation in annotations if len(annotation)}
    return (last.get(image_key(annotation.path), annotation) for annotation in annotations)


def read_csv(path: Path, image_labels: Path | None = None, descriptions: Path | None = None) -> Truths:
    """Reads a box CSV: person is Person, Man, Woman, Boy and Girl; group-of boxes keep their mark.

    With ``image_labels``, images are those of either file, and a class is known on an image where a label
    of it is verified present, where it is verified absent (for persons: Person, which all of them are), or
    where it is boxed.
    """
    import polars as pl

    from data.open_images import DISPLAY_NAMES, label_ids

    ids = {name: label_ids(names, descriptions) for name, names in DISPLAY_NAMES.items()}
    labels = {mid: CLASS_LABELS[name] for name, mids in ids.items() for mid in mids.values()}
    table = _read_columns(path, "ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
    images = table["ImageID"].unique(maintain_order=True).to_list()
    chosen = table.filter(pl.col("LabelName").is_in(list(labels)))
    boxes = chosen.unique(maintain_order=True)
    if len(boxes) < len(chosen):
        warn(f"{path}: {len(chosen) - len(boxes)} rows are there more than once and count once")
    verified = {}
    if image_labels:
        known = _read_columns(image_labels, "ImageID", "LabelName", "Confidence")
        images = list(dict.fromkeys(images + known["ImageID"].unique(maintain_order=True).to_list()))
        for label, name in CLASS_NAMES.items():
            whole = next(iter(ids[name].values()))  # Person before its parts; Human face alone
            there = known.filter(
                pl.col("LabelName").is_in(list(ids[name].values())), pl.col("Confidence") > 0
            )
            absent = known.filter(pl.col("LabelName") == whole, pl.col("Confidence") == 0)
            boxed = boxes.filter(pl.col("LabelName").is_in(list(ids[name].values())))
            sure = {key for part in (there, absent, boxed) for key in part["ImageID"].to_list()}
            verified[label] = np.array([key in sure for key in images], bool)
    index = {key: i for i, key in enumerate(images)}
    at = np.array([index[key] for key in boxes["ImageID"].to_list()], np.int64)
    order = np.argsort(at, kind="stable")
    x1, x2, y1, y2 = boxes.select("XMin", "XMax", "YMin", "YMax").to_numpy()[order].T
    if not (
        np.isfinite([x1, x2, y1, y2]).all() and (x1 <= x2).all() and (y1 <= y2).all() and (x2 <= 2).all()
    ):
        raise DataError(
            f"{path}: boxes with XMin > XMax, YMin > YMax or coordinates that are not normalised to 0..1"
        )
    return Truths(
        images,
        offsets_of(np.bincount(at, minlength=len(images))),
        np.stack([x1, y1, x2 - x1, y2 - y1], 1),
        np.array([labels[mid] for mid in boxes["LabelName"].to_list()], np.int64)[order],
        boxes["IsGroupOf"].to_numpy()[order] == 1,
        verified,
    )


def _read_columns(path: Path, *names: str) -> polars.DataFrame:
    """Columns of a CSV by header name; numbers but for the first two.

    Raises:
        DataError: no such file, a column is missing, or a cell is no number.
    """
    import polars as pl

    types = dict(zip(names, [pl.String] * 2 + [pl.Float64] * (len(names) - 2), strict=True))
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        header = content.split(b"\n", 1)[0].decode().strip().split(",")
        missing = [name for name in names if name not in header]
        if missing:
            raise DataError(
                f"{path}:1: no column {', '.join(missing)}; expected a CSV of Open Images with its header"
            )
        return pl.read_csv(content, columns=list(names), schema_overrides=types).select(names)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a CSV of Open Images") from None
    except (pl.exceptions.PolarsError, UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a CSV of Open Images ({str(error).splitlines()[0]})") from None
