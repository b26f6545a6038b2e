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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import widerface_evaluate.matching
from data.config import CLASS_NAMES
from data.predictions import BoxTable
from utils.cli import DataError, option, parser_of, run, warn
from utils.evaluation.average_precision import full_curve, wider_bins, wider_curve
from wider_openimagespersonface_evaluate import matching
from wider_openimagespersonface_evaluate.ground_truth import read_ground_truth
from wider_openimagespersonface_evaluate.metrics import (
    COCO_AREAS,
    coco_aps,
    confusion,
    further_numbers,
    image_sizes,
)
from wider_openimagespersonface_evaluate.page import draw_page
from widerface_evaluate import command
from widerface_evaluate.command import Score

HERE = Path(__file__).resolve().parent

#: Where predictions are unless somebody says so.
PREDICTIONS = HERE.parent / "runs/detections/openimages"

LENIENT_IOU = 0.3
PROTOCOLS = command.STANDARD, command.LEGACY


def score(predictions: BoxTable, truths: BoxTable, iou: float = 0.5) -> dict[str, Score]:
    """Scores every class by the standard protocol.

    Args:
        predictions: detections of the images of ``truths``, in the same order and unit (any).
        truths: boxes; a class that is verified nowhere is left out of the result.
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


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    data, _ = command.add_arguments(parser, PREDICTIONS, HERE / "ground_truth", PROTOCOLS)
    labels = "verified image-level labels, for a ground truth as CSV"
    option(data, "--image_labels", labels, Path, metavar="CSV")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args)
    command.warn_without(widerface_evaluate.matching.kernel and matching.kernel)
    legacy = args.protocol == command.LEGACY
    truths = read_ground_truth(args.gt, args.image_labels, legacy)
    truths, predictions, missing = command.load(args, truths)
    if command.typical_extent(predictions) > command.PIXELS:
        raise DataError(
            f"{args.pred}: boxes are in pixels; expected normalised ones: dump with --dataset openimages"
        )
    if not len(predictions):
        warn(f"{args.pred}: no detections at all")
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
        "\n".join(tables),
        {"classes": numbers, "missing": missing, **values},
        "normalised",
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
