"""Ground truth of faces and persons: an annotation list, or CSVs of Open Images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from data.annotations import labelled_classes, read_annotations
from data.config import CLASS_NAMES
from data.predictions import BoxTable, offsets_of
from utils.cli import DataError, UsageError, warn
from utils.image_names import image_key, is_odd


def read_ground_truth(path: Path, image_labels: Path | None = None, legacy: bool = False) -> BoxTable:
    """Reads an annotation list (``.txt``), a box CSV (``.csv``, ``.csv.gz``), or a folder with one of them.

    Args:
        path: the file or folder.
        image_labels: CSV of verified image-level labels, for a box CSV.
        legacy: read a list as the original did: an image listed twice counts twice, both times with the
            boxes that come last.

    Raises:
        DataError: no such ground truth, or a faulty one.
        UsageError: image labels for a list.
    """
    path = _the_file(path)
    if ".csv" in path.suffixes:
        return read_csv(path, image_labels)
    if image_labels:
        raise UsageError(f"--image_labels goes with a box CSV; the ground truth is {path}")
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
    keys = [image_key(annotation.path) for annotation in annotations]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        rule = "each entry counts, with the last boxes" if legacy else "the first entry counts"
        warn(f"{path}: {len(twice)} images are listed more than once: {', '.join(twice)}; {rule}")
    if legacy:
        last = {key: one for key, one in zip(keys, annotations, strict=True) if len(one)}
        annotations = [last.get(key, one) for key, one in zip(keys, annotations, strict=True)]
    elif twice:
        firsts = dict(zip(reversed(keys), reversed(annotations), strict=True))
        annotations = [firsts[key] for key in dict.fromkeys(keys)]
    truths = BoxTable.from_annotations(annotations)
    labelled = labelled_classes(path)
    truths.verified = {
        label: np.zeros(len(truths.images), bool)
        for label, name in CLASS_NAMES.items()
        if name not in labelled
    }
    return truths


def read_csv(path: Path, image_labels: Path | None = None) -> BoxTable:
    """Reads a box CSV: person is Person, Man, Woman, Boy and Girl; group-of boxes keep their mark.

    With ``image_labels``, images are those of either file, and a class is known on an image where a label
    of it is verified present, where it is verified absent (for persons: Person, which all of them are), or
    where it is boxed.
    """
    import polars as pl

    from data.open_images import COORDINATES, LABEL_IDS, image_ids, label_of_ids, read_rows

    labels = label_of_ids()
    chosen = read_rows(path, labels, COORDINATES, ["group_of"])
    boxes = chosen.unique(maintain_order=True)
    if len(boxes) < len(chosen):
        warn(f"{path}: {len(chosen) - len(boxes)} rows are there more than once and count once")
    images, verified = image_ids(path), {}
    if image_labels:
        known = read_rows(image_labels, labels, ("Confidence",))
        images = images.append(image_ids(image_labels)).unique(maintain_order=True)
        for label, name in CLASS_NAMES.items():
            of_class = pl.col("label") == label
            whole = pl.col("LabelName") == next(iter(LABEL_IDS[name].values()))
            sure = known.filter(
                of_class & ((pl.col("Confidence") > 0) | (whole & (pl.col("Confidence") == 0)))
            )
            sure = sure["image"].append(boxes.filter(of_class)["image"])
            verified[label] = images.is_in(sure.implode()).to_numpy()
    places = pl.int_range(len(images), dtype=pl.Int64, eager=True)
    boxes = boxes.with_columns(at=pl.col("image").replace_strict(images, places, return_dtype=pl.Int64))
    boxes = boxes.sort("at", maintain_order=True)
    return BoxTable(
        images.to_list(),
        offsets_of(np.bincount(boxes["at"], minlength=len(images))),
        boxes.select("XMin", "YMin", "XMax", "YMax").to_numpy(order="c"),
        boxes["label"].to_numpy().astype(np.int64),
        group_of=boxes["group_of"].to_numpy(),
        verified=verified,
    )
