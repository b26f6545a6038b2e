"""WIDER FACE's matching rule, over the truth that each detection overlaps most."""

from __future__ import annotations

import numpy as np

from data.predictions import BoxTable
from utils.box_utils import areas, divide, intersections, ious

try:
    from widerface_evaluate import kernel
except ImportError:
    kernel = None

#: Pairs of boxes that NumPy looks at together: it bounds memory whatever an image holds.
PIECE = 1 << 18


def match(
    detections: BoxTable, truths: BoxTable, counted: np.ndarray, iou: float, plus: float = 1
) -> np.ndarray:
    """Outcome of every detection by WIDER FACE's rule.

    Each detection, best score first, looks only at the truth it overlaps most (the first of equals), with
    the pixel convention. At or above the threshold it is ignored if that truth does not count; a hit if it
    is the first to find it; else a false positive, as are second hits and those that overlap nothing. In
    images without a truth all are ignored.

    Args:
        detections: within an image in the order in which they are matched.
        truths: of the same images.
        counted: bool[S, G], whether a truth counts in a subset.
        iou: least overlap of a hit.
        plus: added to widths and heights: 1 is the pixel convention.

    Returns:
        int8[S, N]: 1 hit, 0 false positive, -1 ignored.
    """
    best, overlap = best_overlaps(detections, truths, plus)
    outcome = np.zeros((len(counted), len(detections)), np.int8)
    outcome[:, best < 0] = -1
    near = np.flatnonzero((best >= 0) & (overlap >= iou))
    for subset, counts in zip(outcome, counted, strict=True):
        to_find = counts[best[near]].astype(bool)
        subset[near[~to_find]] = -1
        subset[firsts(near[to_find], best, len(truths))] = 1
    return outcome


def firsts(rows: np.ndarray, best: np.ndarray, truths: int) -> np.ndarray:
    """Those of ``rows``, ascending, that are the first with their truth ``best[row]`` of so many truths."""
    first = np.full(truths, -1)
    first[best[rows[::-1]]] = rows[::-1]  # of equal indices the last assignment stays
    return first[first >= 0]


def best_overlaps(
    detections: BoxTable, truths: BoxTable, plus: float = 0, inside: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The truth of its image that each detection overlaps most, the first of equals.

    Args:
        detections, truths: of the same images.
        plus: added to widths and heights.
        inside: overlap is the share of the detection's own area, not intersection over union.

    Returns:
        int64[N], rows of ``truths``, -1 where the image has none, and float64[N], the overlap.
    """
    find = kernel.best_overlaps if kernel else best_overlaps_numpy
    return find(detections.boxes, detections.offsets, truths.boxes, truths.offsets, plus, inside)


def best_overlaps_numpy(
    boxes: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_offsets: np.ndarray,
    plus: float,
    inside: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """`best_overlaps` where the kernel is not built."""
    best, best_overlap = np.full(len(boxes), -1), np.zeros(len(boxes))
    for image in np.flatnonzero(np.diff(truth_offsets)):
        first, last = truth_offsets[image : image + 2]
        step = max(1, PIECE // (last - first))
        for start in range(offsets[image], offsets[image + 1], step):
            rows = slice(start, min(start + step, offsets[image + 1]))
            overlaps = (insides if inside else ious)(boxes[rows], truths[first:last], plus)
            best[rows] = first + overlaps.argmax(1)
            best_overlap[rows] = overlaps.max(1)
    return best, best_overlap


def insides(boxes: np.ndarray, others: np.ndarray, plus: float = 0) -> np.ndarray:
    """float64[n, g]: share of the area of each of ``boxes`` that lies in each of ``others``."""
    shared = intersections(boxes, others, plus)
    return divide(shared, np.broadcast_to(areas(boxes, plus)[:, None], shared.shape))
