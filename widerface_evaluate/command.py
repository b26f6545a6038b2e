"""What both evaluators share: their command line, reading, reports, curves and worst images."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from data.annotations import known_images
from data.config import CLASS_COLOURS, CLASS_LABELS
from data.predictions import BoxTable, read_predictions
from utils.box_utils import intersections, ious
from utils.cli import DataError, Number, UsageError, natural, option, overlap, some_of, warn
from utils.draw import draw_boxes, hex_colour
from utils.evaluation.average_precision import Curve, image_costs, normalised, wider_bins
from utils.files import write_text
from utils.image_names import image_key, image_of, read_image_list
from utils.images import read_image, write_figure, write_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STANDARD, LEGACY, MATLAB = "standard", "legacy", "matlab"

#: The greater coordinate of a lower right corner is typically about 1 in normalised boxes, and a little more
#: in those of the original, which are divided by the wrong side; in pixels it is far beyond.
NORMALISED, PIXELS = 2.0, 4.0

#: Missing files and folders that are named.
MOST_NAMED = 20

#: BGR; told apart by colour-blind eyes too (Okabe and Ito), and from the colours of the classes.
FOUND, HIT, MISSED, FALSE = (200, 200, 200), (115, 158, 0), (0, 94, 213), (66, 228, 240)

#: Pixels: captions of smaller boxes would hide their neighbours in a crowd.
LEAST_CAPTIONED = 40


@dataclass
class Score:
    """Result of one class or subset.

    Attributes:
        detections: of the class, in the order in which they were matched.
        outcome: int8[N], of each of them: 1 hit, 0 false positive, -1 ignored.
        truths: those to be found, of the same images.
        curve, columns: precision and recall down to each score, and further numbers by name.
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
) -> argparse._ArgumentGroup:
    """The flags that both evaluators have, ``predictions`` and ``truths`` the defaults of -p and -g; returns
    the group of the data, for what an evaluator has besides."""
    data = parser.add_argument_group("data")
    pred = f"folder of predictions (default: runs/detections/{predictions.name}/)"
    option(data, "--pred -p", pred, Path, predictions, metavar="FOLDER")
    gt = f"ground truth (default: {truths.name}/ beside evaluation.py)"
    option(data, "--gt -g", gt, Path, truths, metavar="PATH")
    option(data, "--image_list", "score only the images named there, one a line", Path, metavar="FILE")
    option(data, "--allow_missing", "a missing prediction file means no detection")
    rule = parser.add_argument_group("rule")
    option(rule, "--protocol", "how detections are matched", default=STANDARD, choices=protocols)
    option(rule, "--iou", "overlap from which a detection is a hit", overlap, 0.5)
    least = Number(float, -(2**31), metavar="SCORE")
    option(rule, "--confidence_threshold --conf --min_score", "leave out detections that score less", least)
    output = parser.add_argument_group("output")
    option(output, "--output --json --out", "write the numbers there, as JSON", Path, metavar="FILE")
    option(output, "--plot", "draw curves (png, svg, pdf)", Path, metavar="FILE")
    option(output, "--worst", "draw the N images that cost most AP", natural, 0)
    images = "folder of the images, for --worst (default: that of the annotation list) and scores by size"
    option(output, "--images --images_dir", images, Path, metavar="FOLDER")
    folder = "where --worst draws (default: <predictions>_worst/)"
    option(output, "--save_folder --name", folder, Path, metavar="FOLDER")
    return data


def check_arguments(args: argparse.Namespace, kernel: object) -> None:
    """Raises UsageError for values that make no sense, DataError where there are no predictions.

    Images that --worst needs are looked for where an annotation list has them. A ``kernel`` that is None is
    warned of.
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
    if kernel is None:
        warn("the compiled kernels are not built; using NumPy. To build them: make build")


def load(args: argparse.Namespace, truths: BoxTable, unit: str) -> tuple[BoxTable, BoxTable, list[str]]:
    """Truths of the images that are to be scored, their detections, and the names of missing files.

    ``unit`` of the boxes is ``pixels`` or ``normalised``.

    Raises:
        DataError: an image list that cannot be read or without one known image; boxes of the other unit; see
            also `load_predictions`.
    """
    if args.image_list:
        wanted = {image_key(name): name for name in read_image_list(args.image_list)}
        unknown = [wanted[key] for key in wanted.keys() - set(truths.images)]
        if len(unknown) == len(wanted):
            what = f"none of its {len(wanted)} images is in the ground truth, e.g. {', '.join(unknown[:3])}"
            raise DataError(f"{args.image_list}: {what}")
        if unknown:
            what = some_of(unknown, "images are not in the ground truth and are skipped")
            warn(f"{args.image_list}: {what}")
        truths = truths.take([i for i, key in enumerate(truths.images) if key in wanted])
    least = args.confidence_threshold
    predictions, missing = load_predictions(args.pred, truths.images, least, args.allow_missing)
    if not len(predictions):
        warn(f"{args.pred}: no detections at all")
        return truths, predictions, missing
    extent = np.median(predictions.boxes[:: max(1, len(predictions) // 10000), 2:].max(1))
    if unit == "pixels" and extent < NORMALISED:
        raise DataError(
            f"{args.pred}: boxes are normalised to 0..1; expected pixels: dump with --dataset widerface"
        )
    if unit == "normalised" and extent > PIXELS:
        raise DataError(
            f"{args.pred}: boxes are in pixels; expected normalised ones: dump with --dataset openimages"
        )
    return truths, predictions, missing


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
        warn(some_of(missing, "files are missing", MOST_NAMED))
        gone = {path.rpartition("/")[0] for path in missing}
        if gone := sorted(name for name in gone if not (folder / name).is_dir()):
            warn(some_of(gone, f"folders are missing in {folder}", MOST_NAMED))
        if not allow_missing:
            raise DataError(
                f"{folder}: {len(missing)} of {len(images)} files are missing (see above); finish the "
                f"dump (<image path without suffix>.txt), or give --allow_missing to count them as empty"
            )
    if report.miscounted:
        what = "prediction files do not have as many lines as they say (cut off, or written by the original)"
        warn(some_of(report.miscounted, f"{what}; what is there is scored"))
    if report.classless:
        warn(f"{len(report.classless)} prediction files have lines without a class; those count as faces")
    if least_score is not None:
        predictions = predictions.select(predictions.scores >= least_score)
    return predictions, missing


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


def report(
    args: argparse.Namespace,
    found: dict[str, Score],
    counts: dict[str, int],
    values: dict[str, object],
    unit: str,
    table: str = "",
    draw: Callable[[Path, str], None] | None = None,
) -> None:
    """Prints scores, and writes and draws what the arguments ask for.

    Args:
        args: those of `add_arguments`.
        found: scores by name of the class or subset.
        counts: of images and detections, for the last line and the JSON.
        values: for the JSON, beside settings and counts.
        unit: of the boxes, ``pixels`` or ``normalised``.
        table: printed below the scores.
        draw: draws the file of --plot, given its path and a title; None: curves alone.
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
        text = json.dumps({**settings, **counts, **values})
        plain = json.loads(text, parse_constant=lambda _: None)  # NaN, where there is nothing to find
        write_text(args.output, json.dumps(plain, indent=2) + "\n")
    if args.plot:
        (draw or partial(draw_curves, found))(args.plot, title)
    if args.worst:
        folder = args.save_folder or args.pred.resolve().with_name(f"{args.pred.resolve().name}_worst")
        print(f"{draw_worst_images(folder, args.images, args.worst, found, unit)} images in {folder}")


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


def draw_curves(found: dict[str, Score], path: Path, title: str) -> None:
    """Draws precision over recall of each score."""
    from matplotlib.figure import Figure  # takes a while to import

    figure = Figure(figsize=(7, 6), layout="constrained")
    plot_curves(figure.subplots(), found, title)
    write_figure(path, figure, 150)


def plot_curves(axes: Axes, found: dict[str, Score], title: str) -> None:
    """Precision over recall of each score, its AP in the legend, its best F1 as a dot."""
    for name, curve in ((name, one.curve) for name, one in found.items()):
        # Drawn from recall 0 on; a class without detections is a line without length.
        recall = np.append(0, curve.recall)
        precision = np.append(curve.envelope[0] if len(curve.envelope) else 0, curve.envelope)
        colour = hex_colour(CLASS_COLOURS[CLASS_LABELS[name]]) if name in CLASS_LABELS else None
        (line,) = axes.plot(recall, precision, color=colour, label=f"{name}: AP {curve.area:.4f}")
        best = curve.best_f1()
        if best["score"] is not None:
            line.set_label(f"{line.get_label()}, best F1 {best['f1']:.4f} at score {best['score']:.3f}")
            axes.plot(best["recall"], best["precision"], "o", color=line.get_color())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def draw_worst_images(folder: Path, images: Path, most: int, found: dict[str, Score], unit: str) -> int:
    """Draws the ``most`` images that cost most average precision, summed over the classes, from the worst.

    Images that cost nothing, and those that cannot be read, are left out. Files are ``001_<image>.jpg`` and
    so on; returned is their number. Of the subsets of one class, in pixels, the last holds the others.
    """
    if unit == "pixels":
        found = {"face": list(found.values())[-1]}
    names = next(iter(found.values())).detections.images
    costs, drawn = np.zeros(len(names)), 0
    for one in found.values():
        bins, counts = wider_bins(normalised(one.detections.scores)), np.diff(one.truths.offsets)
        costs += image_costs(bins, one.outcome, one.detections.image_index, counts)
    order = np.argsort(-costs, kind="stable")[:most]
    for rank, image in enumerate(order[costs[order] > 0], 1):
        try:
            canvas = read_image(image_of(images, names[image]))
        except DataError as error:
            warn(str(error))
            continue
        text = f"#{rank}  {names[image]}  costs {costs[image]:.5f} AP"
        path = folder / f"{rank:03d}_{names[image].replace('/', '_')}.jpg"
        write_image(path, _draw(canvas, image, found, text, unit))
        drawn += 1
    return drawn


def _draw(canvas: np.ndarray, image: int, found: dict[str, Score], text: str, unit: str) -> np.ndarray:
    """The image with its boxes, over a strip that explains the colours."""
    boxes, texts, colours, cuts = [np.zeros((0, 4))], [], [], []
    scale = np.tile(canvas.shape[1::-1], 2) if unit == "normalised" else 1
    for name, one in found.items():
        least = one.curve.best_f1()["score"]
        cuts += [] if least is None else [f"{name} from {least:.3f}"]
        rows, here = (slice(*table.offsets[image : image + 2]) for table in (one.detections, one.truths))
        scores, outcome = one.detections.scores[rows], one.outcome[rows]
        shown = (scores >= (math.inf if least is None else least)) & (outcome >= 0)
        detections, hit = one.detections.boxes[rows][shown], outcome[shown] == 1
        truths = one.truths.boxes[here]
        group_of = np.zeros(len(truths), bool) if one.truths.group_of is None else one.truths.group_of[here]
        reached = found_boxes(detections[hit], truths, group_of)
        boxes += [truths * scale, detections * scale]
        texts += ["" if yes else name for yes in reached]
        texts += [f"{name} {score:.2f}" for score in scores[shown]]
        colours += [FOUND if yes else MISSED for yes in reached]
        colours += [HIT if yes else FALSE for yes in hit]
    strip = _strip(canvas.shape[1], [text, f"score of best F1: {', '.join(cuts)}"] if cuts else [text])
    corners = np.concatenate(boxes)
    small = (corners[:, 2:] - corners[:, :2]).min(1) < LEAST_CAPTIONED
    texts = ["" if hidden else caption for hidden, caption in zip(small, texts, strict=True)]
    return np.concatenate([draw_boxes(canvas, corners, texts, colours), strip])


def found_boxes(hits: np.ndarray, truths: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """bool[G]: which truths of an image the hits, best first, have found: the one they overlap most.

    Where that one is taken, the hit was on the group-of box that holds most of it.
    """
    found = np.zeros(len(truths), bool)
    if not len(truths):
        return found
    overlaps = np.where(group_of, -1, ious(hits, truths))
    shared = np.where(group_of, intersections(hits, truths), -1)
    for near, inside in zip(overlaps, shared, strict=True):
        single = near.argmax()
        if group_of.any() and (near[single] <= 0 or found[single]):
            single = inside.argmax()
        found[single] = True
    return found


def _strip(width: int, texts: list[str]) -> np.ndarray:
    """uint8[height, width, 3]: lines of text in grey, then the meaning of each colour in that colour."""
    font, line = cv2.FONT_HERSHEY_SIMPLEX, 18
    legend = (("truth, found", FOUND), ("hit", HIT), ("truth, missed", MISSED), ("false positive", FALSE))
    rows = [*((text, (200, 200, 200)) for text in texts), *legend]
    strip = np.zeros((line * len(rows) + 8, width, 3), np.uint8)
    for i, (text, colour) in enumerate(rows, 1):
        length = cv2.getTextSize(text, font, 0.45, 1)[0][0]
        size = 0.45 * min(1.0, (width - 8) / max(length, 1))
        cv2.putText(strip, text, (4, i * line), font, size, colour, 1, cv2.LINE_AA)
    return strip
