"""Images of a score: precision-recall curves, and the images that cost most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from data.predictions import Predictions
from utils.cli import DataError, warn
from utils.draw import draw_boxes
from utils.evaluation.average_precision import Curve
from utils.evaluation.overlaps import divide, intersections
from utils.image_names import IMAGE_SUFFIXES
from utils.images import read_image, write_figure, write_image

#: BGR; told apart by colour-blind eyes too (Okabe and Ito).
FOUND, HIT, MISSED, FALSE = (233, 180, 86), (115, 158, 0), (0, 94, 213), (66, 228, 240)

#: Pixels: captions of smaller boxes would hide their neighbours in a crowd.
LEAST_CAPTIONED = 40


def draw_curves(path: Path, curves: dict[str, Curve], title: str) -> None:
    """Draws precision over recall of each named curve, its AP in the legend, its best F1 as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    for name, curve in curves.items():
        # Drawn from recall 0 on; a class without detections is a line without length.
        recall = np.append(0, curve.recall)
        precision = np.append(curve.envelope[0] if len(curve.envelope) else 0, curve.envelope)
        (line,) = axes.plot(recall, precision, label=f"{name}: AP {curve.area:.4f}")
        best = curve.best_f1()
        if best["score"] is not None:
            line.set_label(f"{line.get_label()}, best F1 {best['f1']:.4f} at score {best['score']:.3f}")
            axes.plot(best["recall"], best["precision"], "o", color=line.get_color())
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    write_figure(path, figure, 150)


@dataclass
class Layer:
    """Boxes of one class for `draw_worst_images`.

    Attributes:
        name: of the class.
        detections: of all images, best first.
        outcome: int8[N], of each: 1 hit, 0 false positive, -1 ignored.
        truth_offsets: int64[I + 1].
        truths: float64[G, 4], x1 y1 x2 y2, in the unit of the detections.
        counted: bool[G], boxes to be found; others are not drawn.
        group_of: bool[G], boxes that enclose a group.
        threshold: detections that score less are not drawn; None draws none.
        normalised: whether coordinates are divided by the image's width and height.
    """

    name: str
    detections: Predictions
    outcome: np.ndarray
    truth_offsets: np.ndarray
    truths: np.ndarray
    counted: np.ndarray
    group_of: np.ndarray
    threshold: float | None
    normalised: bool


def draw_worst_images(
    folder: Path, images: Path, names: Sequence[str], costs: np.ndarray, most: int, layers: Sequence[Layer]
) -> int:
    """Draws the ``most`` images of greatest cost, numbered from the worst; returns how many were drawn.

    Args:
        folder: where to write ``001_<image>.jpg`` and so on.
        images: folder of the images.
        names: key of each image.
        costs: float64[I], average precision that each image costs.
        layers: one a class.

    Images that cannot be read are named and passed over; those that cost nothing are not drawn.
    """
    drawn = 0
    order = np.argsort(-costs, kind="stable")[:most]
    for rank, image in enumerate(order[costs[order] > 0], 1):
        try:
            canvas = read_image(_find(images, names[image]))
        except DataError as error:
            warn(str(error))
            continue
        text = f"#{rank}  {names[image]}  costs {costs[image]:.5f} AP"
        write_image(
            folder / f"{rank:03d}_{names[image].replace('/', '_')}.jpg", _draw(canvas, image, layers, text)
        )
        drawn += 1
    return drawn


def _find(images: Path, name: str) -> Path:
    """The file of an image key, whatever its suffix; ``name.jpg`` where there is none."""
    for suffix in (".jpg", *sorted(IMAGE_SUFFIXES - {".jpg"}), ".JPG"):
        path = images / f"{name}{suffix}"
        if path.is_file():
            return path
    return images / f"{name}.jpg"


def _draw(canvas: np.ndarray, image: int, layers: Sequence[Layer], text: str) -> np.ndarray:
    """The image with its boxes, over a strip that explains the colours."""
    boxes, texts, colours = [np.zeros((0, 4))], [], []
    height, width = canvas.shape[:2]
    for layer in layers:
        scale = (width, height, width, height) if layer.normalised else (1, 1, 1, 1)
        at = slice(*layer.detections.offsets[image : image + 2])
        here = slice(*layer.truth_offsets[image : image + 2])
        shown = np.zeros(at.stop - at.start, bool)
        if layer.threshold is not None:
            shown = (layer.detections.scores[at] >= layer.threshold) & (layer.outcome[at] >= 0)
        detections, truths = layer.detections.boxes[at][shown], layer.truths[here]
        hit = layer.outcome[at][shown] == 1
        counted = layer.counted[here]
        found = found_boxes(detections[hit], truths, layer.group_of[here])
        boxes += [truths[counted] * scale, detections * scale]
        texts += ["" if one else layer.name for one in found[counted]]
        texts += [f"{layer.name} {score:.2f}" for score in layer.detections.scores[at][shown]]
        colours += [FOUND if one else MISSED for one in found[counted]]
        colours += [HIT if one else FALSE for one in hit]
    cuts = ", ".join(f"{one.name} from {one.threshold:.3f}" for one in layers if one.threshold is not None)
    strip = _strip(width, [text, f"score of best F1: {cuts}"] if cuts else [text])
    corners = np.concatenate(boxes)
    small = (corners[:, 2:] - corners[:, :2]).min(1) < LEAST_CAPTIONED
    texts = ["" if hidden else caption for hidden, caption in zip(small, texts, strict=True)]
    return np.concatenate([draw_boxes(canvas, corners, texts, colours), strip])


def found_boxes(hits: np.ndarray, truths: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """bool[G]: which boxes of an image the hits, best first, have found: the one they overlap most.

    Where that one is taken, the hit was on the group-of box that holds most of it.
    """
    found = np.zeros(len(truths), bool)
    if not len(truths):
        return found
    shared = intersections(hits, truths, 0)
    areas, truth_areas = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (hits, truths))
    overlaps = divide(shared, areas[:, None] + truth_areas - shared)
    for overlap, inside in zip(np.where(group_of, -1, overlaps), np.where(group_of, shared, -1), strict=True):
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
