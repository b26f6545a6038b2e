"""Images of a score: precision-recall curves, and the images that cost most."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from data.config import CLASS_COLOURS, CLASS_LABELS
from utils.box_utils import intersections, ious
from utils.cli import DataError, warn
from utils.draw import draw_boxes, hex_colour
from utils.evaluation.average_precision import Curve, image_costs, normalised, wider_bins
from utils.image_names import image_of
from utils.images import read_image, write_figure, write_image
from widerface_evaluate.command import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: BGR; told apart by colour-blind eyes too (Okabe and Ito), and from the colours of the classes.
FOUND, HIT, MISSED, FALSE = (200, 200, 200), (115, 158, 0), (0, 94, 213), (66, 228, 240)

#: Pixels: captions of smaller boxes would hide their neighbours in a crowd.
LEAST_CAPTIONED = 40


def draw_curves(path: Path, curves: dict[str, Curve], title: str) -> None:
    """Draws precision over recall of each named curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    plot_curves(axes, curves)
    axes.set_title(title)
    write_figure(path, figure, 150)


def plot_curves(axes: Axes, curves: dict[str, Curve]) -> None:
    """Precision over recall of each named curve, its AP in the legend, its best F1 as a dot."""
    for name, curve in curves.items():
        # Drawn from recall 0 on; a class without detections is a line without length.
        recall = np.append(0, curve.recall)
        precision = np.append(curve.envelope[0] if len(curve.envelope) else 0, curve.envelope)
        known = CLASS_LABELS.get(name)
        colour = None if known is None else hex_colour(CLASS_COLOURS[known])
        (line,) = axes.plot(recall, precision, color=colour, label=f"{name}: AP {curve.area:.4f}")
        best = curve.best_f1()
        if best["score"] is not None:
            line.set_label(f"{line.get_label()}, best F1 {best['f1']:.4f} at score {best['score']:.3f}")
            axes.plot(best["recall"], best["precision"], "o", color=line.get_color())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")


def draw_worst_images(folder: Path, images: Path, most: int, found: dict[str, Score], unit: str) -> int:
    """Draws the ``most`` images that cost most average precision, summed over the classes, from the worst.

    Args:
        folder: where to write ``001_<image>.jpg`` and so on.
        images: folder of the images.
        most: images that cost nothing, and those that cannot be read, are not drawn.
        found: scores by name of the class; those of subsets of one class: the last holds the others.
        unit: of the boxes, ``pixels`` or ``normalised``.

    Returns:
        How many were drawn.
    """
    if unit == "pixels":
        found = {"face": list(found.values())[-1]}
    names = next(iter(found.values())).detections.images
    costs = sum(image_costs_of(one) for one in found.values())
    drawn = 0
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


def image_costs_of(one: Score) -> np.ndarray:
    """float64[I]: average precision that each image costs."""
    bins = wider_bins(normalised(one.detections.scores))
    return image_costs(bins, one.outcome, one.detections.image_index, np.diff(one.truths.offsets))


def _draw(canvas: np.ndarray, image: int, found: dict[str, Score], text: str, unit: str) -> np.ndarray:
    """The image with its boxes, over a strip that explains the colours."""
    boxes, texts, colours, cuts = [np.zeros((0, 4))], [], [], []
    scale = np.tile(canvas.shape[1::-1], 2) if unit == "normalised" else 1
    for name, one in found.items():
        threshold = one.curve.best_f1()["score"]
        rows, here = (slice(*table.offsets[image : image + 2]) for table in (one.detections, one.truths))
        scores, outcome = one.detections.scores[rows], one.outcome[rows]
        shown = np.zeros(len(scores), bool)
        if threshold is not None:
            shown = (scores >= threshold) & (outcome >= 0)
            cuts.append(f"{name} from {threshold:.3f}")
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
    for overlap, inside in zip(overlaps, shared, strict=True):
        single = overlap.argmax()
        if group_of.any() and (overlap[single] <= 0 or found[single]):
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
