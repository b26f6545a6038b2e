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
from data.predictions import BoxTable, offsets_of
from utils.cli import DataError, UsageError, warn
from utils.image_names import image_key, is_odd

if TYPE_CHECKING:
    import polars


def read_ground_truth(
    path: Path, image_labels: Path | None = None, descriptions: Path | None = None, legacy: bool = False
) -> BoxTable:
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


def read_list(path: Path, legacy: bool = False) -> BoxTable:
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
    truths = BoxTable.from_annotations(annotations)
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


def read_csv(path: Path, image_labels: Path | None = None, descriptions: Path | None = None) -> BoxTable:
    """Reads a box CSV: person is Person, Man, Woman, Boy and Girl; group-of boxes keep their mark.

    With ``image_labels``, images are those of either file, and a class is known on an image where a label
    of it is verified present, where it is verified absent (for persons: Person, which all of them are), or
    where it is boxed.
    """
    import polars as pl

    from data.open_images import DISPLAY_NAMES, label_ids

    ids = {name: list(label_ids(names, descriptions).values()) for name, names in DISPLAY_NAMES.items()}
    labels = {mid: CLASS_LABELS[name] for name, mids in ids.items() for mid in mids}
    table = _read_columns(path, "ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
    images = table["ImageID"]
    chosen = table.filter(pl.col("LabelName").is_in(list(labels)))
    boxes = chosen.unique(maintain_order=True)
    if len(boxes) < len(chosen):
        warn(f"{path}: {len(chosen) - len(boxes)} rows are there more than once and count once")
    verified = {}
    if image_labels:
        known = _read_columns(image_labels, "ImageID", "LabelName", "Confidence")
        images = images.append(known["ImageID"])
    images = images.unique(maintain_order=True)
    for label, name in CLASS_NAMES.items() if image_labels else ():
        of_class = pl.col("LabelName").is_in(ids[name])
        whole = pl.col("LabelName") == ids[name][0]  # Person before its parts; Human face alone
        sure = known.filter((of_class & (pl.col("Confidence") > 0)) | (whole & (pl.col("Confidence") == 0)))
        sure = {*sure["ImageID"], *boxes.filter(of_class)["ImageID"]}
        verified[label] = np.array([image in sure for image in images], bool)
    order = {image: i for i, image in enumerate(images)}
    at = np.array([order[image] for image in boxes["ImageID"]], np.int64)
    boxes = boxes[np.argsort(at, kind="stable")]
    corners = boxes.select("XMin", "YMin", "XMax", "YMax").to_numpy(order="c")
    if not (np.isfinite(corners).all() and (corners[:, :2] <= corners[:, 2:]).all() and (corners <= 2).all()):
        raise DataError(
            f"{path}: boxes with XMin > XMax, YMin > YMax or coordinates that are not normalised to 0..1"
        )
    return BoxTable(
        images.to_list(),
        offsets_of(np.bincount(at, minlength=len(images))),
        corners,
        np.array([labels[mid] for mid in boxes["LabelName"]], np.int64),
        group_of=boxes["IsGroupOf"].to_numpy() == 1,
        verified=verified,
    )


def _read_columns(path: Path, *names: str) -> polars.DataFrame:
    """Columns of a CSV by header name; numbers but for the first two.

    Raises:
        DataError: no such file, a column is missing, or a cell is no number.
    """
    import polars as pl

    types = dict(zip(names, [pl.String] * 2 + [pl.Float64] * (len(names) - 2), strict=True))
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        return pl.read_csv(content, columns=list(names), schema_overrides=types).select(names)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a CSV of Open Images") from None
    except (pl.exceptions.ColumnNotFoundError, pl.exceptions.NoDataError):
        raise DataError(
            f"{path}:1: expected a CSV of Open Images with a header and the columns {', '.join(names)}"
        ) from None
    except (pl.exceptions.PolarsError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a CSV of Open Images ({str(error).splitlines()[0]})") from None
