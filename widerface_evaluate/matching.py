"""WIDER FACE's matching rule, over the truth that each detection overlaps most."""

from __future__ import annotations

import numpy as np

from data.predictions import BoxTable
from utils.box_utils import areas, divide, intersections, ious

try:
    from widerface_evaluate import kernel
except ImportError:
    kernel = None

#: Kinds of overlap, see `best_overlaps`.
IOU, INSIDE, WHOLE = range(3)

#: Pairs of boxes that NumPy looks at together: it bounds memory whatever an image holds.
PIECE = 1 << 18


def match(
    detections: BoxTable, truths: BoxTable, counted: np.ndarray, iou: float, kind: int = IOU
) -> np.ndarray:
    """int8[S, N]: outcome of every detection in S subsets by WIDER FACE's rule, 1 hit, 0 false positive, -1
    ignored.

    Each detection, best score first, looks only at the truth it overlaps most (the first of equals), with
    the pixel convention. At or above the threshold it is ignored if that truth does not count; a hit if it
    is the first to find it; else a false positive, as are second hits and those that overlap nothing. In
    images without a truth all are ignored.

    Args:
        detections, truths: of the same images, detections in the order in which they are matched.
        counted: bool[S, G], whether a truth counts in a subset.
        iou: least overlap of a hit.
        kind: `WHOLE` for the arithmetic of the benchmark's own tool.
    """
    best, overlap = best_overlaps(detections, truths, 1, kind)
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
    detections: BoxTable, truths: BoxTable, plus: float = 0, kind: int = IOU
) -> tuple[np.ndarray, np.ndarray]:
    """The truth of its image that each detection overlaps most, the first of equals.

    Args:
        detections, truths: of the same images.
        plus: added to widths and heights.
        kind: `IOU`; `INSIDE`, the share of the detection's own area; or `WHOLE`, see `whole_ious`.

    Returns:
        int64[N], rows of ``truths``, -1 where the image has none, and float64[N], the overlap.
    """
    find = kernel.best_overlaps if kernel else best_overlaps_numpy
    return find(detections.boxes, detections.offsets, truths.boxes, truths.offsets, plus, kind)


def best_overlaps_numpy(
    boxes: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_offsets: np.ndarray,
    plus: float,
    kind: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`best_overlaps` where the kernel is not built."""
    best, best_overlap = np.full(len(boxes), -1), np.zeros(len(boxes))
    for image in np.flatnonzero(np.diff(truth_offsets)):
        first, last = truth_offsets[image : image + 2]
        step = max(1, PIECE // (last - first))
        for start in range(offsets[image], offsets[image + 1], step):
            rows = slice(start, min(start + step, offsets[image + 1]))
            overlaps = (ious, insides, whole_ious)[kind](boxes[rows], truths[first:last], plus)
            best[rows] = first + overlaps.argmax(1)
            best_overlap[rows] = overlaps.max(1)
    return best, best_overlap


def insides(boxes: np.ndarray, others: np.ndarray, plus: float = 0) -> np.ndarray:
    """float64[n, g]: share of the area of each of ``boxes`` that lies in each of ``others``."""
    shared = intersections(boxes, others, plus)
    return divide(shared, np.broadcast_to(areas(boxes, plus)[:, None], shared.shape))


def whole_ious(boxes: np.ndarray, truths: np.ndarray, plus: float = 1) -> np.ndarray:
    """float64[n, g]: intersection over union in the arithmetic of WIDER FACE's own tool, 0 or 1 in practice.

    Its truths are int32, and MATLAB gives int32 for what is worked out of int32 and double, rounded half
    away from zero: the corners that are intersected, the sum of the areas (that of the detection itself is
    a double), and the quotient. An overlap of a half is 1, and of several truths at 1 the first is taken.
    """
    shared = intersections(_rounded(boxes), truths, plus)
    union = _rounded(areas(boxes, plus)[:, None] + areas(truths, plus)) - shared
    return _rounded(divide(shared, union))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Half away from zero, as MATLAB and C do; NumPy's own goes to the even neighbour."""
    whole = np.trunc(values)
    return whole + np.sign(values) * (np.abs(values - whole) >= 0.5)
