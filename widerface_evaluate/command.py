"""What the command lines of both evaluators share."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data.annotations import known_images
from data.predictions import BoxTable, read_predictions
from utils.cli import DataError, Number, UsageError, natural, option, overlap, warn
from utils.evaluation.average_precision import Curve
from utils.files import write_text
from utils.image_names import image_key, read_image_list

STANDARD, LEGACY, MATLAB = "standard", "legacy", "matlab"

#: `typical_extent` of normalised boxes is about 1, and a little more for those of the original, which are
#: divided by the wrong side; that of boxes in pixels is far beyond.
NORMALISED, PIXELS = 2.0, 4.0

#: Missing files that are named one by one.
MOST_NAMED = 20


@dataclass
class Score:
    """Result of one class or subset.

    Attributes:
        detections: of the class, in the order in which they were matched.
        outcome: int8[N], of each of them: 1 hit, 0 false positive, -1 ignored.
        truths: those to be found, of the same images.
        curve: precision and recall down to each score.
        columns: further numbers by name.
    """

    detections: BoxTable
    outcome: np.ndarray
    truths: BoxTable
    curve: Curve
    columns: dict[str, float] = field(default_factory=dict)

    def numbers(self) -> dict[str, float | int | None]:
        """``ap``, the further columns, and the operating point of best F1: score, precision, recall, f1.

        NaN where there is nothing to find.
        """
        return {"ap": self.curve.area, **self.columns, **self.curve.best_f1()}


def add_arguments(
    parser: argparse.ArgumentParser, predictions: Path, truths: Path, protocols: Sequence[str]
) -> tuple[argparse._ArgumentGroup, argparse._ArgumentGroup]:
    """The flags that both evaluators have; ``predictions`` and ``truths`` are the defaults of -p and -g.

    Returns:
        The groups of the data and of the output, for what an evaluator has besides.
    """
    data = parser.add_argument_group("data")
    pred = f"folder of predictions (default: runs/detections/{predictions.name}/)"
    option(data, "--pred -p", pred, Path, predictions, metavar="DIR")
    gt = f"ground truth (default: {truths.name}/ beside evaluation.py)"
    option(data, "--gt -g", gt, Path, truths, metavar="PATH")
    option(data, "--image_list", "score only the images named there, one a line", Path, metavar="FILE")
    option(data, "--allow_missing", "a missing prediction file means no detection")
    rule = parser.add_argument_group("rule")
    option(rule, "--protocol", "how detections are matched", default=STANDARD, choices=protocols)
    option(rule, "--iou", "overlap of a hit", overlap, 0.5)
    least = Number(float, -(2**31), metavar="SCORE")
    option(rule, "--confidence_threshold --conf --min_score", "leave out detections that score less", least)
    output = parser.add_argument_group("output")
    option(output, "--output --json --out", "write the numbers there, as JSON", Path, metavar="FILE")
    option(output, "--plot", "draw curves (png, svg, pdf)", Path, metavar="FILE")
    option(output, "--worst", "draw the N images that cost most AP", natural, 0)
    images = (
        "folder of the images, for --worst and scores by size (--worst: default that of an annotation list)"
    )
    option(output, "--images --images_dir", images, Path, metavar="DIR")
    folder = "where --worst draws (default: <predictions>_worst/)"
    option(output, "--save_folder --name", folder, Path, metavar="DIR")
    return data, output


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UsageError for values that make no sense, DataError where there are no predictions.

    Images that --worst needs are looked for where an annotation list has them.
    """
    if not 0 < args.iou < 1:
        raise UsageError(f"--iou {args.iou:g}: expected a number between 0 and 1")
    if args.protocol == MATLAB and args.iou != 0.5:
        raise UsageError(
            f"--iou {args.iou:g} with --protocol matlab, whose overlaps are 0 or 1; leave it out"
        )
    if args.worst and args.images is None and args.gt.suffix == ".txt":
        args.images = known_images(args.gt)
    if args.worst and args.images is None:
        raise UsageError("--worst needs the images: give --images DIR")
    if args.images is not None and not args.images.is_dir():
        raise UsageError(f"--images {args.images}: no such folder")
    if not args.pred.is_dir():
        raise DataError(
            f"{args.pred}: no such folder of predictions; write them with test_widerface_personface.py, "
            f"or give -p DIR"
        )


def load(args: argparse.Namespace, truths: BoxTable) -> tuple[BoxTable, BoxTable, list[str]]:
    """Truths of the images that are to be scored, their detections, and the names of missing files."""
    if args.image_list:
        truths = truths.take(listed_images(args.image_list, truths.images))
    least = args.confidence_threshold
    return truths, *load_predictions(args.pred, truths.images, least, args.allow_missing)


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
    folder: Path, images: Sequence[str], least_score: float | None, allow_missing: bool
) -> tuple[BoxTable, list[str]]:
    """Detections of ``images``, and the missing files; a warning names missing and doubtful ones.

    Raises:
        DataError: a faulty file, or missing ones without ``allow_missing``.
    """
    predictions, report = read_predictions(folder, images)
    missing = [f"{image}.txt" for image in report.missing]
    if missing:
        _complain_missing(folder, images, missing, allow_missing)
    if report.miscounted:
        warn(
            f"{len(report.miscounted)} prediction files do not have as many lines as they say (cut off, or "
            f"written by the original); what is there is scored: {', '.join(report.miscounted[:3])}"
            f"{', ...' if len(report.miscounted) > 3 else ''}"
        )
    if report.classless:
        warn(f"{len(report.classless)} prediction files have lines without a class; those count as faces")
    if least_score is not None:
        predictions = predictions.select(predictions.scores >= least_score)
    return predictions, missing


def _complain_missing(folder: Path, images: Sequence[str], missing: list[str], allowed: bool) -> None:
    for name in missing[:MOST_NAMED]:
        warn(f"missing: {name}")
    if len(missing) > MOST_NAMED:
        warn(
            f"missing: {len(missing) - MOST_NAMED} more files (with --allow_missing, --output names them all)"
        )
    parents = sorted({path.rpartition("/")[0] for path in missing} - {""})
    gone = [name for name in parents if not (folder / name).is_dir()]
    if gone:
        warn(f"{len(gone)} folders are missing in {folder}: {', '.join(gone)}")
    if not allowed:
        raise DataError(
            f"{folder}: {len(missing)} of {len(images)} files are missing (see above); finish the "
            f"dump (<image path without suffix>.txt), or give --allow_missing to count them as empty"
        )


def warn_without(kernel: object) -> None:
    """One line on how to build a kernel, where it is not built."""
    if kernel is None:
        warn("the compiled kernels are not built; using NumPy. To build them: make build")


def in_order(detections: BoxTable, protocol: str) -> BoxTable:
    """Detections of one class in the order in which they are matched: best first.

    Matlab's scores are float32: the benchmark's own tool stretches them in single precision.

    Legacy keeps the order of the file. The original then counted, at each score, all detections up to the
    last that reaches it: the same as giving each the best score that still follows in its image.
    """
    if protocol == STANDARD:
        return detections.by_score()
    if protocol == MATLAB:
        detections = detections.by_score()
        return replace(detections, scores=detections.scores.astype(np.float32))
    scores = detections.scores.copy()
    for start, end in zip(detections.offsets[:-1], detections.offsets[1:], strict=True):
        scores[start:end] = np.maximum.accumulate(scores[start:end][::-1])[::-1]
    return replace(detections, scores=scores)


def typical_extent(predictions: BoxTable) -> float:
    """Median of the greater coordinate of some lower right corners: at most about 1 for normalised boxes."""
    if not len(predictions):
        return math.nan
    return float(np.median(predictions.boxes[:: max(1, len(predictions) // 10000), 2:].max(1)))


def report(
    args: argparse.Namespace,
    found: dict[str, Score],
    counts: dict[str, int],
    table: str,
    values: dict[str, object],
    unit: str,
    draw: Callable[[Path, str], None] | None = None,
) -> None:
    """Prints scores, and writes and draws what the arguments ask for.

    Args:
        args: those of `add_arguments`.
        found: scores by name of the class or subset.
        counts: of images and detections, for the last line and the JSON.
        table: printed below the scores; may be empty.
        values: for the JSON, beside settings and counts.
        unit: of the boxes, ``pixels`` or ``normalised``.
        draw: draws what --plot asks for, given its file and a title; None: curves alone.
    """
    settings = {"protocol": args.protocol, "iou": args.iou, "min_score": args.confidence_threshold}
    print("==================== Results ====================")
    for name, one in found.items():
        print(f"{name.capitalize():<6} Val AP: {one.curve.area}")
    print("=================================================")
    if table:
        print(table)
    title = f"{counts['images']} images, IoU {args.iou:g}, protocol {args.protocol}"
    if args.confidence_threshold is not None:
        title += f", scores from {args.confidence_threshold:g}"
    print(f"{title}, {counts['detections']} detections")
    if args.output:
        write_json(args.output, {**settings, **counts, **values})
    if args.plot:
        from widerface_evaluate.plots import draw_curves

        curves = {name: one.curve for name, one in found.items()}
        draw(args.plot, title) if draw else draw_curves(args.plot, curves, title)
    if args.worst:
        from widerface_evaluate.plots import draw_worst_images

        folder = args.save_folder or args.pred.resolve().with_name(f"{args.pred.resolve().name}_worst")
        print(f"{draw_worst_images(folder, args.images, args.worst, found, unit)} images in {folder}")


def write_json(path: Path, values: dict) -> None:
    """Writes numbers; what is not a number (nothing to find) becomes null."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
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
