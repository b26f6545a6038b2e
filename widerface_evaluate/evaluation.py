"""Score face detections on WIDER FACE: average precision of the easy, medium and hard subset.

    python3 evaluation.py
    python3 evaluation.py -p results_mine --plot curves.png --worst 20 --images ../data/widerface/val/images
    python3 evaluation.py -g wider_face_val_bbx_gt.txt --image_list held_out.txt --json numbers.json

Predictions are the text files of test_widerface_personface.py --dataset widerface; persons in them are left
out. The ground truth is the folder of the benchmark's .mat files, or its text annotation, which has one
subset, "all". The rule is the benchmark's: scores stretched to 0..1 over the set, the pixel convention in
overlaps, faces outside of the subset ignored, 1,000 scores. --protocol legacy takes detections in the order
of the file, as the original did; standard sorts them. On sorted files both give the same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data.config import CLASS_LABELS
from data.predictions import Predictions
from utils.cli import DataError, parser_of, run, warn
from utils.evaluation.average_precision import (
    Curve,
    image_costs,
    normalised,
    score_range,
    wider_bins,
    wider_curve,
)
from widerface_evaluate import command, matching
from widerface_evaluate.ground_truth import WiderTruths, read_ground_truth

HERE = Path(__file__).resolve().parent


@dataclass
class SubsetScore:
    """Result of one subset.

    Attributes:
        curve: at the benchmark's 1,000 scores, on the scale of the detections.
        outcome: int8[N], of each detection: 1 hit, 0 false positive, -1 ignored.
    """

    curve: Curve
    outcome: np.ndarray

    def numbers(self) -> dict[str, float | int | None]:
        """``ap``, number of ``faces``, and the operating point of best F1: score, precision, recall, f1."""
        return {"ap": self.curve.area, "faces": self.curve.truths, **self.curve.best_f1()}


def faces_of(predictions: Predictions, protocol: str = command.STANDARD) -> Predictions:
    """The faces, in the order in which they are matched."""
    return command.in_order(predictions.select(predictions.labels == CLASS_LABELS["face"]), protocol)


def score(faces: Predictions, truths: WiderTruths, iou: float = 0.5) -> dict[str, SubsetScore]:
    """Scores what `faces_of` gives in every subset of ``truths``: the same images, boxes in pixels."""
    counted = np.stack(list(truths.subsets.values()))
    outcomes = matching.match(faces.boxes, faces.offsets, truths.boxes, truths.offsets, counted, iou)
    bins = wider_bins(normalised(faces.scores))
    least, greatest = score_range(faces.scores)
    result = {}
    for name, outcome in zip(truths.subsets, outcomes, strict=True):
        curve = wider_curve(bins, outcome, int(truths.subsets[name].sum()))
        curve = replace(curve, scores=least + curve.scores * (greatest - least))
        result[name] = SubsetScore(curve, outcome)
    return result


def evaluate(
    predictions: Predictions, truths: WiderTruths, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, dict]:
    """Numbers by subset (see `SubsetScore.numbers`) of detections in memory."""
    found = score(faces_of(predictions, protocol), truths, iou)
    return {name: subset.numbers() for name, subset in found.items()}


def average_precision_by_event(
    faces: Predictions, truths: WiderTruths, found: dict[str, SubsetScore]
) -> dict[str, dict[str, float]]:
    """Average precision of every event and subset, with the scores stretched as for the whole set."""
    bins = wider_bins(normalised(faces.scores))
    events = [image.rpartition("/")[0] for image in truths.images]
    table = {}
    for event in dict.fromkeys(events):
        images = np.array([name == event for name in events])
        rows = images[faces.image_index]
        boxes = np.repeat(images, np.diff(truths.offsets))
        table[event] = {
            name: wider_curve(bins[rows], subset.outcome[rows], int(truths.subsets[name][boxes].sum())).area
            for name, subset in found.items()
        }
    return table


def draw_worst(
    args: argparse.Namespace, faces: Predictions, truths: WiderTruths, found: dict[str, SubsetScore]
) -> int:
    """Draws the images that cost most in the last subset, which holds the others; returns how many."""
    from widerface_evaluate.plots import Layer, draw_worst_images

    name, subset = list(found.items())[-1]
    counted = truths.subsets[name].astype(bool)
    per_image = np.diff(np.concatenate([[0], np.cumsum(counted)])[truths.offsets])
    costs = image_costs(wider_bins(normalised(faces.scores)), subset.outcome, faces.image_index, per_image)
    threshold = subset.curve.best_f1()["score"]
    groups = np.zeros_like(counted)
    layer = Layer(
        "face", faces, subset.outcome, truths.offsets, truths.boxes, counted, groups, threshold, False
    )
    return draw_worst_images(args.worst_folder, args.images, truths.images, costs, args.worst, [layer])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    command.add_arguments(parser, HERE / "results_widerface_150_1803txt", HERE / "ground_truth")
    parser.add_argument("--by_event", action="store_true", help="print the table by event as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args)
    matching.say_if_slow()
    truths = read_ground_truth(args.gt)
    if args.image_list:
        truths = truths.take(command.listed_images(args.image_list, truths.images))
    predictions, missing = command.load_predictions(
        args.pred, truths.images, args.min_score, args.allow_missing
    )
    faces = faces_of(predictions, args.protocol)
    if len(predictions) and not len(faces):
        raise DataError(
            f"{args.pred}: not one face in {len(predictions)} detections (class 1); are these persons only?"
        )
    if command.typical_extent(faces) < command.NORMALISED:
        raise DataError(
            f"{args.pred}: boxes are normalised to 0..1; expected pixels: dump with --dataset widerface"
        )
    if not len(faces):
        warn(f"{args.pred}: no detections at all")
    found = score(faces, truths, args.iou)
    numbers = {name: subset.numbers() for name, subset in found.items()}
    events = average_precision_by_event(faces, truths, found) if args.by_event or args.json else {}

    print("==================== Results ====================")
    for name, values in numbers.items():
        print(f"{name.capitalize():<6} Val AP: {values['ap']}")
    print("=================================================")
    print(
        f"{len(truths.images)} images, {len(faces)} detections, IoU {args.iou:g}, protocol {args.protocol}"
        + (f", scores from {args.min_score:g}" if args.min_score is not None else "")
    )
    if args.by_event:
        rows = [(event, *aps.values()) for event, aps in events.items()]
        print(command.format_table(("event", *numbers), rows))
    if args.json:
        settings = {"protocol": args.protocol, "iou": args.iou, "min_score": args.min_score}
        counts = {"images": len(truths.images), "detections": len(faces)}
        lists = {"missing": missing, "by_event": events}
        command.write_json(args.json, {**settings, **counts, "subsets": numbers, **lists})
    if args.plot:
        from widerface_evaluate.plots import draw_curves

        draw_curves(
            args.plot, {name: subset.curve for name, subset in found.items()}, f"WIDER FACE, IoU {args.iou:g}"
        )
    if args.worst:
        print(f"{draw_worst(args, faces, truths, found)} images in {args.worst_folder}")
    return 0


if __name__ == "__main__":
    run(main)
