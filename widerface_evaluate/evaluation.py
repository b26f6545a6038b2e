"""Score face detections on WIDER FACE: average precision of the easy, medium and hard subset.

    python3 evaluation.py
    python3 evaluation.py -p ../runs/mine --plot curves.png --worst 20 --images ../WIDER_val/images
    python3 evaluation.py -g wider_face_val_bbx_gt.txt --image_list held_out.txt --json numbers.json

Predictions are the text files of test_widerface_personface.py --dataset widerface; persons in them are left
out. The ground truth is the folder of the benchmark's .mat files, or its text annotation, which has one
subset, "all". The rule is the benchmark's: scores stretched to 0..1 over the set, the pixel convention in
overlaps, faces outside of the subset ignored, 1,000 scores. --protocol matlab gives the numbers of the
benchmark's own tool, which rounds in whole numbers where its Python ports do not. --protocol legacy takes
detections in the order of the file, as the original did; standard sorts them. On sorted files both give the
same.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from data.config import CLASS_LABELS
from data.predictions import BoxTable
from utils.cli import DataError, option, parser_of, run, warn
from utils.evaluation.average_precision import normalised, score_range, wider_areas, wider_bins, wider_curve
from widerface_evaluate import command, matching
from widerface_evaluate.command import Score
from widerface_evaluate.ground_truth import read_ground_truth

HERE = Path(__file__).resolve().parent

#: Where predictions are unless somebody says so.
PREDICTIONS = HERE.parent / "runs/detections/widerface"

PROTOCOLS = command.STANDARD, command.MATLAB, command.LEGACY


def faces_of(predictions: BoxTable, protocol: str = command.STANDARD) -> BoxTable:
    """The faces, in the order in which they are matched."""
    return command.in_order(predictions.of_class(CLASS_LABELS["face"]), protocol)


def score(
    faces: BoxTable, truths: BoxTable, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, Score]:
    """Scores what `faces_of` gives in every subset of ``truths``: the same images, boxes in pixels.

    Curves are at the benchmark's 1,000 scores, on the scale of the detections.
    """
    matlab = protocol == command.MATLAB
    kind = matching.WHOLE if matlab else matching.IOU
    outcomes = matching.match(faces, truths, np.stack(list(truths.counted.values())), iou, kind)
    bins = wider_bins(normalised(faces.scores))
    least, greatest = score_range(faces.scores)
    result = {}
    for (name, counted), outcome in zip(truths.counted.items(), outcomes, strict=True):
        to_find = truths.select(counted)
        curve = wider_curve(bins, outcome, len(to_find))
        curve = replace(curve, scores=least + curve.scores * (greatest - least), one_by_one=matlab)
        result[name] = Score(faces, outcome, to_find, curve, {"faces": len(to_find)})
    return result


def evaluate(
    predictions: BoxTable, truths: BoxTable, iou: float = 0.5, protocol: str = command.STANDARD
) -> dict[str, dict]:
    """Numbers by subset (see `command.Score.numbers`) of detections in memory."""
    found = score(faces_of(predictions, protocol), truths, iou, protocol)
    return {name: subset.numbers() for name, subset in found.items()}


def average_precision_by_event(faces: BoxTable, found: dict[str, Score]) -> dict[str, dict[str, float]]:
    """Average precision of every event and subset, with the scores stretched as for the whole set."""
    bins = wider_bins(normalised(faces.scores))
    events, of_image = np.unique([image.rpartition("/")[0] for image in faces.images], return_inverse=True)
    group = of_image[faces.image_index]
    areas = {}
    for name, one in found.items():
        truths = np.bincount(of_image[one.truths.image_index], minlength=len(events))
        areas[name] = wider_areas(bins, one.outcome, group, truths).tolist()
    return {
        event: dict(zip(areas, aps, strict=True))
        for event, *aps in zip(events.tolist(), *areas.values(), strict=True)
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    _, output = command.add_arguments(parser, PREDICTIONS, HERE / "ground_truth", PROTOCOLS)
    option(output, "--by_event", "print the table by event as well")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command.check_arguments(args)
    command.warn_without(matching.kernel)
    truths, predictions, missing = command.load(args, read_ground_truth(args.gt))
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
    found = score(faces, truths, args.iou, args.protocol)
    events = average_precision_by_event(faces, found) if args.by_event or args.output else {}
    rows = [(event, *aps.values()) for event, aps in events.items()]
    command.report(
        args,
        found,
        {"images": len(truths.images), "detections": len(faces)},
        command.format_table(("event", *found), rows) if args.by_event else "",
        {
            "subsets": {name: one.numbers() for name, one in found.items()},
            "missing": missing,
            "by_event": events,
        },
        "pixels",
    )
    return 0


if __name__ == "__main__":
    run(main)
