"""One page of figures of a score of faces and persons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.config import CLASS_COLOURS, CLASS_LABELS
from utils.draw import hex_colour
from utils.evaluation.average_precision import Curve
from utils.images import write_figure
from wider_openimagespersonface_evaluate.matching import COCO_THRESHOLDS
from wider_openimagespersonface_evaluate.metrics import FALSE_POSITIVES, coco_aps, miss_rates
from widerface_evaluate.command import Score
from widerface_evaluate.plots import plot_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_page(
    found: dict[str, Score], numbers: dict[str, dict], confusion: dict[str, dict], path: Path, title: str
) -> None:
    """Draws six figures: precision over recall, both over the score, AP over overlap and over object size,
    misses of persons over false positives, and what is taken for what.

    Args:
        found: scores by class.
        numbers: by class, as in the JSON; ``ap_by_size`` where it is known.
        confusion: counts by true class and by found class.
        path: png, svg or pdf.
        title: of the page.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((curves, scores, overlaps), (sizes, misses, classes)) = plt.subplots(
        2, 3, figsize=(17, 10), layout="constrained"
    )
    figure.suptitle(title)
    plot_curves(curves, {name: one.curve for name, one in found.items()})
    curves.set_title("precision over recall")
    colours = {name: hex_colour(CLASS_COLOURS[CLASS_LABELS[name]]) for name in found}
    for name, one in found.items():
        _plot_over_scores(scores, name, one.curve, colours[name])
        aps = coco_aps(one.detections, one.truths)
        overlaps.plot(
            COCO_THRESHOLDS, aps, "o-", color=colours[name], label=f"{name}: mean {np.mean(aps):.4f}"
        )
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


def _plot_over_scores(axes: Axes, name: str, curve: Curve, colour: str) -> None:
    total = curve.precision + curve.recall
    f1 = 2 * curve.precision * curve.recall / np.where(total > 0, total, 1)
    styles = (("precision", curve.precision, ":"), ("recall", curve.recall, "--"), ("F1", f1, "-"))
    for what, values, style in styles:
        axes.plot(curve.scores, values, style, color=colour, label=f"{name}: {what}")


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
