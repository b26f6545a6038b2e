"""Score detections of faces and persons: average precision by class, by the rules of Open Images and COCO.

    python3 evaluation.py
    python3 evaluation.py -g ../data/wider_OIpersonface1103/val/wider_val_gt.txt --plot curves.png
    python3 evaluation.py -g validation-annotations-bbox.csv --image_labels validation-imagelabels.csv
    python3 evaluation.py --protocol legacy --iou 0.3

Predictions are the text files of test_widerface_personface.py --dataset openimages, coordinates normalised.
The ground truth is an annotation list, or a box CSV of Open Images, whose group-of boxes are scored by the
official rule; with --image_labels, detections of a class that nobody verified on an image are ignored.

Columns: AP all points, overlap above --iou (the official metric at 0.5) and above 0.3; COCO AP at 0.5 and
its mean over 0.5 to 0.95; precision and recall at the score of best F1. --protocol legacy gives the numbers
of the original, whose overlaps add a pixel to boxes normalised to 0..1, among other faults.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import widerface_evaluate.matching
from data.config import CLASS_NAMES
from data.predictions import Predictions
from data.truths import Truths
from utils.cli import DataError, parser_of, run, warn
from utils.evaluation.average_precision import (
    Curve,
    full_curve,
    image_costs,
    normalised,
    score_order,
    wider_bins,
    wider_curve,
)
from wider_openimagespersonface_evaluate import matching
from wider_openimagespersonface_evaluate.ground_truth import read_ground_truth
from widerface_evaluate import command

HERE = Path(__file__).resolve().parent

LENIENT_IOU = 0.3


@dataclass
class ClassScore:
    """Result of one class.

    Attributes:
        detections: those of the class, in the order of ``outcome``.
        outcome: int8[N] at the asked for overlap: 1 hit, 0 false positive, -1 ignored.
        curve: at the asked for overlap.
        others: further columns by name.
    """

    detections: Predictions
    outcome: np.ndarray
    curve: Curve
    others: dict[str, float]

    def numbers(self) -> dict[str, float | int | None]:
        """``ap`` and further columns, counts, and the operating point of best F1; NaN: nothing to find."""
        counts = {"boxes": self.curve.truths, "detections": len(self.detections)}
        return {"ap": self.curve.area, **self.others, **counts, **self.curve.best_f1()}


def score(predictions: Predictions, truths: Truths, iou: float = 0.5) -> dict[str, ClassScore]:
    """Scores every class by the standard protocol.

    Args:
        predictions: detections of the images of ``truths``, in the same order and unit (any).
        truths: boxes; a class that is verified nowhere is left out of the result.
        iou: overlap that a hit exceeds.
    """
    result = {}
    for label, name in CLASS_NAMES.items():
        known = truths.verified.get(label, np.ones(len(truths.images), bool))
        if not known.any():
            continue
        keep = (predictions.labels == label) & known[predictions.image_index]
        result[name] = _score_class(predictions.select(keep).by_score(), truths.of_class(label), iou)
    return result


def _score_class(detections: Predictions, truths: Truths, iou: float) -> ClassScore:
    boxes = matching.Boxes.of(detections, truths)
    outcome, lenient = matching.match_open_images(boxes, np.array([iou, LENIENT_IOU]))
    order = score_order(detections.scores)
    count, single = len(boxes.truths), int((boxes.group_of == 0).sum())
    coco = [full_curve(detections.scores, level, single, order).coco for level in matching.match_coco(boxes)]
    return ClassScore(
        detections,
        outcome,
        full_curve(detections.scores, outcome, count, order),
        {
            "ap_30": full_curve(detections.scores, lenient, count, order).area,
            "coco_ap_50": coco[0],
            "coco_ap": float(np.mean(coco)),
        },
    )


def score_legacy(predictions: Predictions, truths: Truths, iou: float = 0.5) -> dict[str, ClassScore]:
    """Scores every class as the original does, faults included.

    WIDER FACE's rule on normalised boxes: overlaps with a pixel added, boxes of the other class ignored,
    detections in the order of the file, 1,000 scores as they are; images without a box are left out.
    """
    labels = np.array(list(CLASS_NAMES))
    counted = (truths.labels == labels[:, None]).astype(np.uint8)
    result = {}
    for label, kept in zip(labels, counted, strict=True):
        detections = command.in_order(predictions.select(predictions.labels == label), command.LEGACY)
        (outcome,) = widerface_evaluate.matching.match(
            detections.boxes, detections.offsets, truths.boxes, truths.offsets, kept[None], iou
        )
        curve = wider_curve(wider_bins(detections.scores), outcome, int(kept.sum()))
        result[CLASS_NAMES[label]] = ClassScore(detections, outcome, curve, {})
    return result


def evaluate(
    predictions: Predictions, truths: Truths, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, dict]:
    """Numbers by class (see `ClassScore.numbers`) of detections in memory; arguments as in `score`."""
    rule = score_legacy if protocol == command.LEGACY else score
    return {name: found.numbers() for name, found in rule(predictions, truths, iou).items()}


def draw_worst(args: argparse.Namespace, truths: Truths, found: dict[str, ClassScore]) -> int:
    """Draws the images that cost most, summed over the classes; returns how many."""
    from widerface_evaluate.plots import Layer, draw_worst_images

    costs, layers = np.zeros(len(truths.images)), []
    for label, name in CLASS_NAMES.items():
        if name not in found:
            continue
        one, own = found[name], truths.of_class(label)
        bins = wider_bins(normalised(one.detections.scores))
        costs += image_costs(bins, one.outcome, one.detections.image_index, np.diff(own.offsets))
        threshold = one.curve.best_f1()["score"]
        counted = np.ones(len(own.boxes), bool)
        layers.append(
            Layer(
                name,
                one.detections,
                one.outcome,
                own.offsets,
                own.boxes,
                counted,
                own.group_of,
                threshold,
                True,
            )
        )
    return draw_worst_images(args.worst_folder, args.images, truths.images, costs, args.worst, layers)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    command.add_arguments(parser, HERE / "results_wider_OIpersonface_150_1803txt", HERE / "ground_truth")
    csv = parser.add_argument_group("ground truth as CSV")
    csv.add_argument("--image_labels", type=Path, metavar="CSV", help="verified image-level labels")
    csv.add_argument(
        "--class_descriptions", type=Path, metavar="CSV", help="oidv7-class-descriptions-boxable.csv"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args)
    matching.say_if_slow()
    legacy = args.protocol == command.LEGACY
    truths = read_ground_truth(args.gt, args.image_labels, args.class_descriptions, legacy)
    if args.image_list:
        truths = truths.take(command.listed_images(args.image_list, truths.images))
    predictions, missing = command.load_predictions(
        args.pred, truths.images, args.min_score, args.allow_missing
    )
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

    print("==================== Results ====================")
    for name, values in numbers.items():
        print(f"{name.capitalize():<6} Val AP: {values['ap']}")
    print("=================================================")
    titles = {
        "boxes": "boxes",
        "detections": "detections",
        "ap": f"AP@{args.iou:g}",
        "ap_30": f"AP@{LENIENT_IOU:g}",
        "coco_ap_50": "COCO AP50",
        "coco_ap": "COCO AP50:95",
        "score": "best F1 at",
        "precision": "precision",
        "recall": "recall",
        "f1": "F1",
    }
    shown = [key for key in titles if all(key in values for values in numbers.values())]
    rows = [(name, *(values[key] for key in shown)) for name, values in numbers.items()]
    print(command.format_table(["class", *(titles[key] for key in shown)], rows))
    print(
        f"{len(truths.images)} images, protocol {args.protocol}"
        + (f", scores from {args.min_score:g}" if args.min_score is not None else "")
    )
    if args.json:
        settings = {"protocol": args.protocol, "iou": args.iou, "min_score": args.min_score}
        command.write_json(
            args.json, {**settings, "images": len(truths.images), "classes": numbers, "missing": missing}
        )
    if args.plot:
        from widerface_evaluate.plots import draw_curves

        title = f"IoU {args.iou:g}, protocol {args.protocol}, {len(truths.images)} images"
        draw_curves(args.plot, {name: one.curve for name, one in found.items()}, title)
    if args.worst:
        print(f"{draw_worst(args, truths, found)} images in {args.worst_folder}")
    return 0


if __name__ == "__main__":
    run(main)
