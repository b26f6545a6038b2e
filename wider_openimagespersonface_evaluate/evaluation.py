"""Score detections of faces and persons: average precision by class, by the rules of Open Images and COCO.

    python3 evaluation.py
    python3 evaluation.py -g ../datasets/wider_OIpersonface1103/val/wider_val_gt.txt --plot curves.png
    python3 evaluation.py -g validation-annotations-bbox.csv --image_labels validation-imagelabels.csv
    python3 evaluation.py --protocol legacy --iou 0.3

Predictions are the text files of test_widerface_personface.py --dataset openimages, coordinates normalised.
The ground truth is an annotation list, or a box CSV of Open Images, whose group-of boxes are scored by the
official rule; with --image_labels, detections of a class that nobody verified on an image are ignored. In the
ignore regions of a list (negative labels) detections that are no hit are ignored.

Columns: AP all points, overlap above --iou (the official metric at 0.5) and above 0.3; COCO AP at 0.5 and
its mean over 0.5 to 0.95; precision and recall at the score of best F1. --protocol legacy gives the numbers
of the original, whose overlaps add a pixel to boxes normalised to 0..1, among other faults.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import widerface_evaluate.matching
from data.annotations import labelled_classes, read_annotations
from data.config import CLASS_NAMES
from data.predictions import BoxTable, offsets_of
from utils.cli import DataError, UsageError, option, parser_of, run, warn
from utils.evaluation.average_precision import full_curve, wider_bins, wider_curve
from utils.image_names import image_key, is_odd
from wider_openimagespersonface_evaluate import matching
from wider_openimagespersonface_evaluate.metrics import (
    COCO_AREAS,
    coco_aps,
    confusion,
    draw_page,
    further_numbers,
    image_sizes,
)
from widerface_evaluate import command
from widerface_evaluate.command import Score

HERE = Path(__file__).resolve().parent

#: Where predictions are unless somebody says so.
PREDICTIONS = HERE.parent / "runs/detections/openimages"

LENIENT_IOU = 0.3
PROTOCOLS = command.STANDARD, command.LEGACY


def score(predictions: BoxTable, truths: BoxTable, iou: float = 0.5) -> dict[str, Score]:
    """Scores every class by the standard protocol; one that is verified nowhere is left out.

    Args:
        predictions, truths: of the same images in the same order, in any unit.
        iou: overlap that a hit exceeds.
    """
    result = {}
    for label, name in CLASS_NAMES.items():
        known = truths.verified.get(label, np.ones(len(truths.images), bool))
        if known.any():
            keep = (predictions.labels == label) & known[predictions.image_index]
            result[name] = _score_class(predictions.select(keep).by_score(), truths.of_class(label), iou)
            result[name].columns["images"] = int(known.sum())
    return result


def _score_class(detections: BoxTable, truths: BoxTable, iou: float) -> Score:
    levels = matching.match_open_images(detections, truths, np.array([iou, LENIENT_IOU]))
    curve, lenient = (full_curve(detections.scores, level, len(truths)) for level in levels)
    aps = coco_aps(detections, truths)
    precision, recall = curve.at(0.5)
    columns = {
        "ap_30": lenient.area,
        "coco_ap_50": aps[0],
        "coco_ap_75": aps[5],
        "coco_ap": float(np.mean(aps)),
        "precision_at_half": precision,
        "recall_at_half": recall,
        "boxes": len(truths),
        "detections": len(detections),
    }
    return Score(detections, levels[0], truths, curve, columns)


def score_legacy(predictions: BoxTable, truths: BoxTable, iou: float = 0.5) -> dict[str, Score]:
    """Scores every class as the original does, faults included.

    WIDER FACE's rule on normalised boxes: overlaps with a pixel added, boxes of the other class ignored,
    detections in the order of the file, 1,000 scores as they are; images without a box are left out.
    """
    result = {}
    for label, name in CLASS_NAMES.items():
        detections = command.in_order(predictions.of_class(label), command.LEGACY)
        counted = truths.labels == label
        (outcome,) = widerface_evaluate.matching.match(detections, truths, counted[None], iou)
        curve = wider_curve(wider_bins(detections.scores), outcome, int(counted.sum()))
        counts = {"boxes": curve.truths, "detections": len(detections)}
        result[name] = Score(detections, outcome, truths.select(counted), curve, counts)
    return result


def evaluate(
    predictions: BoxTable, truths: BoxTable, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, dict]:
    """Numbers by class (see `command.Score.numbers`) of detections in memory; arguments as in `score`."""
    rule = score_legacy if protocol == command.LEGACY else score
    return {name: found.numbers() for name, found in rule(predictions, truths, iou).items()}


def read_ground_truth(path: Path, image_labels: Path | None = None, legacy: bool = False) -> BoxTable:
    """Reads an annotation list (``.txt``), a box CSV (``.csv``, ``.csv.gz``), or a folder with one of them.

    Args:
        image_labels: CSV of verified image-level labels, for a box CSV.
        legacy: read a list as the original did: an image listed twice counts twice, both times with the
            boxes that come last.

    Raises:
        DataError: no such ground truth, or a faulty one.
        UsageError: image labels for a list.
    """
    if path.is_dir():
        files = [file for file in sorted(path.iterdir()) if ".csv" in file.suffixes or file.suffix == ".txt"]
        if len(files) != 1:
            raise DataError(
                f"{path}: found {len(files)} lists and CSVs in this folder; expected one, or give it as "
                f"-g FILE"
            )
        (path,) = files
    if not path.exists():
        raise DataError(
            f"{path}: no such ground truth; give an annotation list or a box CSV of Open Images as -g"
        )
    if ".csv" in path.suffixes:
        return read_csv(path, image_labels)
    if image_labels:
        raise UsageError(f"--image_labels goes with a box CSV; the ground truth is {path}")
    return read_list(path, legacy)


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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    data = command.add_arguments(parser, PREDICTIONS, HERE / "ground_truth", PROTOCOLS)
    labels = "verified image-level labels, for a ground truth as CSV"
    option(data, "--image_labels", labels, Path, metavar="CSV")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args, widerface_evaluate.matching.kernel and matching.kernel)
    legacy = args.protocol == command.LEGACY
    truths = read_ground_truth(args.gt, args.image_labels, legacy)
    truths, predictions, missing = command.load(args, truths, "normalised")
    found = (score_legacy if legacy else score)(predictions, truths, args.iou)
    for name in set(CLASS_NAMES.values()) - set(found):
        warn(f"{args.gt}: class {name} is not labelled there and is not scored")
    numbers = {name: one.numbers() for name, one in found.items()}
    tables, values, draw = [_table(numbers, args.iou)], {}, None
    if not legacy:
        matrix = values["confusion"] = confusion(predictions, truths, found, args.iou)
        sizes = image_sizes(args.images, truths.images) if args.images else None
        for name, further in further_numbers(found, sizes).items():
            numbers[name] |= further
        tables = [_table(numbers, args.iou), *_further_tables(numbers, matrix)]
        draw = partial(draw_page, found, numbers, matrix)
    command.report(
        args,
        found,
        {"images": len(truths.images), "detections": len(predictions)},
        {"classes": numbers, "missing": missing, **values},
        "normalised",
        "\n".join(tables),
        draw,
    )
    return 0


def _table(numbers: dict[str, dict], iou: float) -> str:
    """The numbers of each class that are one value."""
    titles = {
        "boxes": "boxes",
        "detections": "detections",
        "ap": f"AP@{iou:g}",
        "ap_30": f"AP@{LENIENT_IOU:g}",
        "coco_ap_50": "COCO AP50",
        "coco_ap_75": "AP75",
        "coco_ap": "AP50:95",
        "score": "best F1 at",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
        "log_average_miss_rate": "miss rate",
    }
    shown = [key for key in titles if any(key in values for values in numbers.values())]
    rows = [(name, *map(values.get, shown)) for name, values in numbers.items()]
    return command.format_table(["class", *map(titles.get, shown)], rows)


def _further_tables(numbers: dict[str, dict], confusion: dict[str, dict[str, int]]) -> list[str]:
    """AP by size in pixels, where it is known, and what is taken for what."""
    tables = []
    sized = {name: values for name, values in numbers.items() if "ap_by_size" in values}
    if sized:
        sides = next(iter(sized.values()))["ap_by_size"]
        rows = [
            (name, *(values[f"coco_ap_{area}"] for area in COCO_AREAS), *values["ap_by_size"].values())
            for name, values in sized.items()
        ]
        tables.append(command.format_table(["AP by size in pixels", *COCO_AREAS, *sides], rows))
    rows = [(name, *row.values()) for name, row in confusion.items()]
    tables.append(command.format_table(["found at best F1 as", *confusion], rows))
    return tables


if __name__ == "__main__":
    run(main)
