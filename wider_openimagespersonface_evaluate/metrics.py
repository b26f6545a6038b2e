"""More than one number: AP by overlap and size, scores, miss rate, confusion; all of it on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.config import CLASS_COLOURS, CLASS_LABELS, CLASS_NAMES
from data.predictions import BoxTable
from utils.box_utils import areas
from utils.cli import DataError, warn
from utils.draw import hex_colour
from utils.evaluation.average_precision import f1_of, full_curve, score_order
from utils.image_names import image_of
from utils.images import read_sizes, write_figure
from wider_openimagespersonface_evaluate.matching import COCO_THRESHOLDS, groups, in_regions, match_coco
from widerface_evaluate.command import Score, plot_curves
from widerface_evaluate.matching import INSIDE, best_overlaps, firsts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: COCO's sizes by name: least and greatest area in pixels.
COCO_AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}

#: Sides of squares of the same area, in pixels, that part objects by size.
SIDES = (0, 8, 16, 32, 64, 128, 256, 512)

#: False positives an image at which the log-average miss rate looks (Dollar et al. 2012, section 3.2).
FALSE_POSITIVES = np.logspace(-2, 0, 9)

BACKGROUND = "background"


def coco_aps(
    detections: BoxTable,
    truths: BoxTable,
    thresholds: np.ndarray = COCO_THRESHOLDS,
    fits: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[float]:
    """COCO's AP of one class at each of ``thresholds``; NaN where there is nothing to find.

    Args:
        detections, truths: of the same images, detections best first in each.
        thresholds: float64[T].
        fits: bool[N] and bool[G], which detections and truths have the size that is scored; other truths
            are ignored, and so are other detections that hit none.
    """
    of_detections, of_truths = fits or (np.ones(len(detections), bool), np.ones(len(truths), bool))
    outcome = match_coco(detections, truths, thresholds, ignored=~of_truths)
    outcome[(outcome == 0) & ~of_detections] = -1
    order = score_order(detections.scores)
    count = int((of_truths & ~groups(truths)).sum())
    return [full_curve(detections.scores, level, count, order).coco for level in outcome]


def by_size(one: Score, image_sizes: np.ndarray) -> dict[str, float | dict[str, float]]:
    """COCO's AP of small, medium and large objects, and AP at overlap 0.5 by the side of a square.

    Boxes are normalised, ``image_sizes`` int64[I, 2], height and width.
    """
    tables = one.detections, one.truths
    pixels = [areas(table.boxes) * image_sizes.prod(1)[table.image_index] for table in tables]
    numbers: dict = {}
    for name, (least, most) in COCO_AREAS.items():
        fits = tuple((least <= area) & (area <= most) for area in pixels)
        numbers[f"coco_ap_{name}"] = float(np.mean(coco_aps(*tables, fits=fits)))
    numbers["ap_by_size"] = {}
    for least, most in zip(SIDES, (*SIDES[1:], np.inf), strict=True):
        fits = tuple((least**2 <= area) & (area < most**2) for area in pixels)
        name = f"{least}-{most}" if np.isfinite(most) else f"{least}-"
        (numbers["ap_by_size"][name],) = coco_aps(*tables, COCO_THRESHOLDS[:1], fits)
    return numbers


def image_sizes(folder: Path, images: Sequence[str]) -> np.ndarray | None:
    """int64[I, 2], height and width of images in ``folder``; None, with a warning, where one is missing."""
    sizes = list(read_sizes(folder, [image_of(folder, image).relative_to(folder) for image in images]))
    errors = [size for size in sizes if isinstance(size, DataError)]
    if errors:
        warn(f"{len(errors)} images cannot be read, and nothing is scored by size: {errors[0]}")
        return None
    return np.array(sizes, np.int64).reshape(-1, 2)


def miss_rates(one: Score) -> tuple[np.ndarray, np.ndarray, float]:
    """The curve of misses over false positives, as for pedestrians, and its log-average.

    Overlap of a hit is 0.5; truths that enclose a group are ignored, as are ignore regions.

    Returns:
        float64[K] false positives an image, ascending, float64[K] share of truths missed, and the geometric
        mean of the latter at the nine `FALSE_POSITIVES` (Caltech's rule: the last point not beyond each).
    """
    found, truths = one.detections, one.truths
    (outcome,) = match_coco(found, truths, np.array([0.5]), most=len(found) + 1)
    curve = full_curve(found.scores, outcome, int((~groups(truths)).sum()))
    ranks = np.arange(1, len(curve.recall) + 1)
    false = np.rint(ranks * (1 - curve.precision)) / max(one.columns["images"], 1)
    misses = 1 - curve.recall
    at = np.searchsorted(false, FALSE_POSITIVES, "right")
    log_average = np.exp(np.log(np.append(1.0, misses)[at].clip(1e-10)).mean())
    return false, misses, float(log_average) if curve.truths else float("nan")


def further_numbers(found: dict[str, Score], sizes: np.ndarray | None) -> dict[str, dict]:
    """By class: `by_size` where ``sizes`` of the images are known, and the miss rate of persons."""
    numbers = {name: {} if sizes is None else by_size(one, sizes) for name, one in found.items()}
    if "person" in found:
        *_, numbers["person"]["log_average_miss_rate"] = miss_rates(found["person"])
    return numbers


def confusion(
    predictions: BoxTable, truths: BoxTable, found: dict[str, Score], iou: float
) -> dict[str, dict[str, int]]:
    """How many objects of each class are taken for each class, both with ``background``.

    Detections are those that reach the score of best F1 of their class. Each, best first, takes the truth of
    any class that it overlaps most and above ``iou``; others are ignored inside a group or an ignore region
    of their class.

    Returns:
        Counts by true class and by found class.
    """
    labels = [label for label, name in CLASS_NAMES.items() if name in found]
    shown = np.zeros(len(predictions), bool)
    for label in labels:
        least = found[CLASS_NAMES[label]].curve.best_f1()["score"]
        known = truths.verified.get(label, np.ones(len(truths.images), bool))[predictions.image_index]
        if least is not None:
            shown |= (predictions.labels == label) & (predictions.scores >= least) & known
    detections = predictions.select(shown).by_score()
    group_of, labelled = groups(truths), np.isin(truths.labels, labels)
    single = truths.select(labelled & ~group_of)
    best, overlap = best_overlaps(detections, single)
    hits = firsts(np.flatnonzero(overlap > iou), best, len(single))
    false, missed = np.ones(len(detections), bool), np.ones(len(single), bool)
    false[hits], missed[best[hits]] = False, False
    for label in labels:
        group = truths.select(group_of & (truths.labels == label))
        _, inside = best_overlaps(detections, group, kind=INSIDE)
        false &= (detections.labels != label) | (inside <= iou)
    false &= ~in_regions(detections, truths)
    counts = np.zeros((max(CLASS_NAMES) + 1, max(CLASS_NAMES) + 1), np.int64)
    np.add.at(counts, (single.labels[best[hits]], detections.labels[hits]), 1)
    np.add.at(counts, (0, detections.labels[false]), 1)
    np.add.at(counts, (single.labels[missed], 0), 1)
    names = [*((label, CLASS_NAMES[label]) for label in labels), (0, BACKGROUND)]
    return {true: {name: int(counts[row, column]) for column, name in names} for row, true in names}


def draw_page(
    found: dict[str, Score], numbers: dict[str, dict], confusion: dict[str, dict], path: Path, title: str
) -> None:
    """Draws six figures: precision over recall, both over the score, AP over overlap and over object size,
    misses of persons over false positives, and what is taken for what.

    ``found``, ``numbers`` as in the JSON, and `confusion` are by class.
    """
    from matplotlib.figure import Figure  # takes a while to import

    figure = Figure(figsize=(17, 10), layout="constrained")
    (curves, scores, overlaps), (sizes, misses, classes) = figure.subplots(2, 3)
    figure.suptitle(title)
    plot_curves(curves, found, "precision over recall")
    colours = {name: hex_colour(CLASS_COLOURS[CLASS_LABELS[name]]) for name in found}
    for name, one in found.items():
        curve, f1 = one.curve, f1_of(one.curve.precision, one.curve.recall)
        lines = {"precision": (curve.precision, ":"), "recall": (curve.recall, "--"), "F1": (f1, "-")}
        for what, (values, style) in lines.items():
            scores.plot(curve.scores, values, style, color=colours[name], label=f"{name}: {what}")
        aps = coco_aps(one.detections, one.truths)
        label = f"{name}: mean {np.mean(aps):.4f}"
        overlaps.plot(COCO_THRESHOLDS, aps, "o-", color=colours[name], label=label)
    scores.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score to cut at", title="precision, recall and F1")
    overlaps.set(ylim=(0, 1.02), xlabel="overlap of a hit", ylabel="COCO AP", title="AP over overlap")
    _plot_sizes(sizes, {name: values.get("ap_by_size", {}) for name, values in numbers.items()}, colours)
    if "person" in found:
        false, missed, average = miss_rates(found["person"])
        label = f"person: log-average {average:.4f}"
        misses.plot(false.clip(1e-4), missed.clip(1e-3), color=colours["person"], label=label)
    misses.set(xscale="log", yscale="log", xlim=(FALSE_POSITIVES[0] / 3, 30), ylim=(0.02, 1.1))
    misses.set(xlabel="false positives an image", ylabel="miss rate", title="misses over false positives")
    for value in FALSE_POSITIVES[[0, -1]]:
        misses.axvline(value, color="grey", lw=1, ls="--")
    for axes in (scores, overlaps, sizes, misses):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best")
    _show_confusion(classes, confusion)
    write_figure(path, figure, 110)


def _plot_sizes(axes: Axes, aps: dict[str, dict[str, float]], colours: dict[str, str]) -> None:
    """Bars of AP by object size, one a class; a note where the sizes of the images are not known."""
    axes.set(title="AP at overlap 0.5 over object size", xlabel="side of a square of its area, in pixels")
    if not any(aps.values()):
        axes.text(0.5, 0.5, "give --images for this figure", ha="center", transform=axes.transAxes)
        return
    width = 0.8 / len(aps)
    for i, (name, values) in enumerate(aps.items()):
        places = np.arange(len(values)) + (i - (len(aps) - 1) / 2) * width
        axes.bar(places, list(values.values()), width, color=colours[name], label=name)
    axes.set_xticks(np.arange(len(values)), list(values), size=8)
    axes.set(xlim=(-0.6, len(values) - 0.4), ylim=(0, 1.02))


def _show_confusion(axes: Axes, confusion: dict[str, dict[str, int]]) -> None:
    """Counts, coloured by their share of the row."""
    counts = np.array([list(row.values()) for row in confusion.values()], float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour)
    names = list(confusion)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="found as", ylabel="is", title="what is taken for what, at the scores of best F1")
