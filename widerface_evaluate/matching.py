"""WIDER FACE's matching rule: compiled where `setup.py` has been run, else in NumPy.

Each detection, best score first, looks only at the box it overlaps most (the first of equals), with the
pixel convention: widths and heights are one more than the difference of the corners. At or above the
threshold it is ignored if the box does not count in the subset; a hit if it is the first to find the box;
else a false positive, as are second hits and those that overlap nothing. Images without a box are left out.
"""

from __future__ import annotations

import numpy as np

from utils.cli import warn
from utils.evaluation.overlaps import intersections, pieces

try:
    from widerface_evaluate.kernel import match as match_compiled
except ImportError:
    match_compiled = None


def say_if_slow() -> None:
    """One line on how to build the kernels, where they are not built."""
    if match_compiled is None:
        warn("the compiled kernels are not built; using NumPy. To build them: make build")


def match(
    boxes: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_offsets: np.ndarray,
    counted: np.ndarray,
    iou_threshold: float,
) -> np.ndarray:
    """Outcome of every detection in every subset.

    Args:
        boxes: float64[N, 4], detections of all images, x1 y1 x2 y2, within an image by descending score.
        offsets: int64[I + 1], where the detections of each image begin.
        truths: float64[G, 4], x1 y1 x2 y2.
        truth_offsets: int64[I + 1].
        counted: uint8[S, G], whether a box counts in a subset.
        iou_threshold: least overlap of a hit.

    Returns:
        int8[S, N]: 1 hit, 0 false positive, -1 ignored.
    """
    rule = match_compiled or match_numpy
    return rule(boxes, offsets, truths, truth_offsets, counted, iou_threshold)


def match_numpy(
    boxes: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_offsets: np.ndarray,
    counted: np.ndarray,
    iou_threshold: float,
) -> np.ndarray:
    """`match` in NumPy; memory does not grow with the detections of an image."""
    outcome = np.zeros((len(counted), len(boxes)), np.int8)
    areas, truth_areas = ((b[:, 2] - b[:, 0] + 1) * (b[:, 3] - b[:, 1] + 1) for b in (boxes, truths))
    for image in range(len(offsets) - 1):
        first, last = truth_offsets[image : image + 2]
        if first == last:
            outcome[:, offsets[image] : offsets[image + 1]] = -1
            continue
        found = np.zeros((len(counted), last - first), bool)
        for start, end in pieces(offsets[image], offsets[image + 1], last - first):
            shared = intersections(boxes[start:end], truths[first:last], 1)
            overlaps = shared / (areas[start:end, None] + truth_areas[first:last] - shared)
            best = overlaps.argmax(1)
            near = np.flatnonzero(overlaps.max(1) >= iou_threshold)
            for subset in range(len(counted)):
                counts = counted[subset, first + best[near]].astype(bool)
                outcome[subset, start + near[~counts]] = -1
                boxes_hit, earliest = np.unique(best[near[counts]], return_index=True)
                new = ~found[subset, boxes_hit]
                outcome[subset, start + near[counts][earliest[new]]] = 1
                found[subset, boxes_hit] = True
    return outcome
