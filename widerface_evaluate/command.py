"""What the command lines of both evaluators share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.predictions import Predictions, prediction_path, read_predictions
from utils.cli import DataError, UsageError, number, warn
from utils.files import write_text
from utils.image_names import image_key, read_image_list

STANDARD, LEGACY = "standard", "legacy"

#: `typical_extent` of normalised boxes is about 1, and a little more for those of the original, which are
#: divided by the wrong side; that of boxes in pixels is far beyond.
NORMALISED, PIXELS = 2.0, 4.0

#: Missing files that are named one by one.
MOST_NAMED = 20


def add_arguments(parser: argparse.ArgumentParser, predictions: Path, truths: Path) -> None:
    """The flags that both evaluators have; ``predictions`` and ``truths`` are the defaults of -p and -g."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "-p",
        "--pred",
        type=Path,
        default=predictions,
        metavar="DIR",
        help=f"predictions (default: {predictions.name}/)",
    )
    data.add_argument(
        "-g",
        "--gt",
        type=Path,
        default=truths,
        metavar="PATH",
        help=f"ground truth (default: {truths.name}/)",
    )
    data.add_argument(
        "--image_list", type=Path, metavar="FILE", help="score only the images named there, one a line"
    )
    data.add_argument(
        "--allow_missing", action="store_true", help="a missing prediction file means no detection"
    )
    rule = parser.add_argument_group("rule")
    rule.add_argument("--protocol", choices=(STANDARD, LEGACY), default=STANDARD, help="default: standard")
    rule.add_argument(
        "--iou", type=number(float, 0, 1), default=0.5, metavar="T", help="overlap of a hit (default: 0.5)"
    )
    rule.add_argument(
        "--min_score", type=number(float, -(2**31)), metavar="S", help="leave out detections that score less"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    output.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw precision-recall curves (png, svg, pdf)"
    )
    output.add_argument(
        "--worst", type=number(int, 0), default=0, metavar="N", help="draw the N images that cost most AP"
    )
    output.add_argument("--images", type=Path, metavar="DIR", help="where the images are, for --worst")
    output.add_argument(
        "--worst_folder", type=Path, metavar="DIR", help="where --worst draws (default: <predictions>_worst/)"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError for values that make no sense; fills in what depends on others."""
    if not 0 < args.iou < 1:
        raise UsageError(f"--iou {args.iou:g}: expected a number between 0 and 1")
    if args.worst and args.images is None:
        raise UsageError("--worst needs the images: give --images DIR")
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f"--images {args.images}: no such folder")
    if not args.pred.is_dir():
        raise DataError(
            f"{args.pred}: no such folder of predictions; write them with test_widerface_personface.py, "
            f"or give -p DIR"
        )
    if args.worst_folder is None:
        args.worst_folder = args.pred.resolve().with_name(f"{args.pred.resolve().name}_worst")


def listed_images(path: Path, known: Sequence[str]) -> list[int]:
    """Indices of ``known`` keys that a list names, in the order of ``known``; complains about other lines.

    A line is an image's path, with or without a slash in front; annotation lists serve too.

    Raises:
        DataError: no such file, not text, or not one known image in it.
    """
    names, odd = read_image_list(path)
    there = set(known)
    wanted = {image_key(name): name for name in names}
    unknown = [name for key, name in wanted.items() if key not in there]
    found = [i for i, key in enumerate(known) if key in wanted]
    if odd:
        warn(f"{path}: {len(odd)} lines do not name an image and are skipped: {', '.join(odd)}")
    if len(wanted) < len(names):
        warn(f"{path}: {len(names) - len(wanted)} images are named twice and scored once")
    if not found:
        raise DataError(
            f"{path}: none of its {len(wanted)} images is in the ground truth, e.g. {', '.join(unknown[:3])}"
        )
    if unknown:
        warn(
            f"{path}: {len(unknown)} images are not in the ground truth and are skipped: {', '.join(unknown)}"
        )
    return found


def load_predictions(
    folder: Path, images: Sequence[str], min_score: float | None, allow_missing: bool
) -> tuple[Predictions, list[str]]:
    """Detections of ``images``, and the missing files; a warning names missing and doubtful ones.

    Raises:
        DataError: a faulty file, or missing ones without ``allow_missing``.
    """
    predictions, report = read_predictions([prediction_path(folder, image) for image in images])
    missing = [str(path.relative_to(folder)) for path in report.missing]
    if missing:
        _complain_missing(folder, images, missing, allow_missing)
    if report.miscounted:
        named = ", ".join(str(path.relative_to(folder)) for path in report.miscounted[:3])
        warn(
            f"{len(report.miscounted)} prediction files do not have as many lines as they say (cut off, or "
            f"written by the original); what is there is scored: "
            f"{named}{', ...' if len(report.miscounted) > 3 else ''}"
        )
    if report.classless:
        warn(f"{report.classless} prediction files have lines without a class; those count as faces")
    if min_score is not None:
        predictions = predictions.select(predictions.scores >= min_score)
    return predictions, missing


def _complain_missing(folder: Path, images: Sequence[str], missing: list[str], allowed: bool) -> None:
    for name in missing[:MOST_NAMED]:
        warn(f"missing: {name}")
    if len(missing) > MOST_NAMED:
        warn(f"missing: {len(missing) - MOST_NAMED} more files (with --allow_missing, --json names them all)")
    parents = sorted({path.rpartition("/")[0] for path in missing} - {""})
    gone = [name for name in parents if not (folder / name).is_dir()]
    if gone:
        warn(f"{len(gone)} folders are missing in {folder}: {', '.join(gone)}")
    if not allowed:
        raise DataError(
            f"{folder}: {len(missing)} of {len(images)} files are missing (see above); finish the "
            f"dump (<image path without suffix>.txt), or give --allow_missing to count them as empty"
        )


def in_order(detections: Predictions, protocol: str) -> Predictions:
    """Detections of one class in the order in which they are matched: best first.

    Legacy keeps the order of the file. The original then counted, at each score, all detections up to the
    last that reaches it: the same as giving each the best score that still follows in its image.
    """
    if protocol == STANDARD:
        return detections.by_score()
    scores = detections.scores.copy()
    for start, end in zip(detections.offsets[:-1], detections.offsets[1:], strict=True):
        scores[start:end] = np.maximum.accumulate(scores[start:end][::-1])[::-1]
    return replace(detections, scores=scores)


def typical_extent(predictions: Predictions) -> float:
    """Median of the greater coordinate of some lower right corners: at most about 1 for normalised boxes."""
    if not len(predictions):
        return math.nan
    some = predictions.boxes_xywh[:: max(1, len(predictions) // 10000)]
    return float(np.median((some[:, :2] + some[:, 2:]).max(1)))


def write_json(path: Path, values: dict) -> None:
    """Writes numbers; what is not a number (nothing to find) becomes null."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_text(path, json.dumps(plain(values), indent=2) + "\n")


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    cells = [list(header), *([_show(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )


def _show(value: object) -> str:
    """A table's cell: four digits of a share, "-" for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
