"""Matching rules of Open Images and of COCO: compiled where `setup.py` has been run, else in NumPy.

Both take boxes of one class: x1 y1 x2 y2 in any unit, areas beside them, those of image i in the rows
``offsets[i]:offsets[i + 1]``, detections of an image by descending score. Both return int8[T, N], the
outcome of every detection at every threshold: 1 hit, 0 false positive, -1 ignored.
"""

from __future__ import annotations

import numpy as np

from utils.cli import warn
from utils.evaluation.overlaps import divide, intersections, pieces

try:
    from wider_openimagespersonface_evaluate import kernel
except ImportError:
    kernel = None

#: COCO's thresholds, and the detections it looks at in an image.
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_MOST = 100


def say_if_slow() -> None:
    """One line on how to build the kernels, where they are not built."""
    if kernel is None:
        warn("the compiled kernels are not built; using NumPy. To build them: make build")


def match_open_images(
    boxes: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_areas: np.ndarray,
    truth_offsets: np.ndarray,
    group_of: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """The rule of the Open Images challenge.

    A detection looks at the single box it overlaps most: a hit above the threshold if it is the first
    there. If that fails, it looks at the group-of box that holds most of its own area: above the threshold
    the first is a hit and the others are ignored. A group-of box counts as one box to be found.

    Args:
        group_of: uint8[G], whether a box encloses a group.
        thresholds: float64[T].
    """
    rule = kernel.match_open_images if kernel else match_open_images_numpy
    return rule(boxes, areas, offsets, truths, truth_areas, truth_offsets, group_of, thresholds)


def match_coco(
    boxes: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_areas: np.ndarray,
    truth_offsets: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray = COCO_THRESHOLDS,
    most: int = COCO_MOST,
) -> np.ndarray:
    """COCO's rule: each detection takes the box it overlaps most of those still free (the last of equals).

    Where none is free, overlap with a crowd box, as a share of the detection's area, makes it ignored.
    Crowd boxes are not to be found. Detections after the first ``most`` of an image are ignored.

    Args:
        crowd: uint8[G], group-of boxes.
        thresholds: float64[T], reached by a hit.
        most: detections looked at in an image.
    """
    rule = kernel.match_coco if kernel else match_coco_numpy
    return rule(boxes, areas, offsets, truths, truth_areas, truth_offsets, crowd, thresholds, most)


def match_open_images_numpy(
    boxes: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_areas: np.ndarray,
    truth_offsets: np.ndarray,
    group_of: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """`match_open_images` in NumPy; memory does not grow with the detections of an image."""
    outcome = np.zeros((len(thresholds), len(boxes)), np.int8)
    for image in range(len(offsets) - 1):
        here = np.arange(truth_offsets[image], truth_offsets[image + 1])
        single, group = here[group_of[here] == 0], here[group_of[here] != 0]
        found = np.zeros((len(thresholds), len(truths)), bool)
        for start, end in pieces(offsets[image], offsets[image + 1], len(here)):
            shared = intersections(boxes[start:end], truths[single], 0)
            overlaps = divide(shared, areas[start:end, None] + truth_areas[single] - shared)
            inside = divide(
                intersections(boxes[start:end], truths[group], 0),
                np.broadcast_to(areas[start:end, None], (end - start, len(group))),
            )
            for level, threshold in enumerate(thresholds):
                result = outcome[level, start:end]
                _first_hits(result, overlaps, single, threshold, found[level])
                rest = np.flatnonzero(result == 0)
                late = np.zeros(len(rest), np.int8)
                near = _first_hits(late, inside[rest], group, threshold, found[level])
                late[near & (late == 0)] = -1
                result[rest] = late
    return outcome


def _first_hits(
    outcome: np.ndarray, overlaps: np.ndarray, truths: np.ndarray, threshold: float, found: np.ndarray
) -> np.ndarray:
    """Sets ``outcome`` to 1 where a detection is the first on its best box; returns who reaches any box."""
    if not overlaps.size:
        return np.zeros(len(overlaps), bool)
    best = truths[overlaps.argmax(1)]
    near = overlaps.max(1) > threshold
    rows = np.flatnonzero(near)
    boxes_hit, earliest = np.unique(best[rows], return_index=True)
    new = ~found[boxes_hit]
    outcome[rows[earliest[new]]] = 1
    found[boxes_hit] = True
    return near


def match_coco_numpy(
    boxes: np.ndarray,
    areas: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_areas: np.ndarray,
    truth_offsets: np.ndarray,
    crowd: np.ndarray,
    thresholds: np.ndarray = COCO_THRESHOLDS,
    most: int = COCO_MOST,
) -> np.ndarray:
    """`match_coco` in NumPy."""
    outcome = np.zeros((len(thresholds), len(boxes)), np.int8)
    for image in range(len(offsets) - 1):
        here = np.arange(truth_offsets[image], truth_offsets[image + 1])
        single, group = here[crowd[here] == 0], here[crowd[here] != 0]
        start, end = offsets[image], min(offsets[image + 1], offsets[image] + most)
        outcome[:, end : offsets[image + 1]] = -1
        shared = intersections(boxes[start:end], truths[single], 0)
        overlaps = divide(shared, areas[start:end, None] + truth_areas[single] - shared)
        inside = divide(
            intersections(boxes[start:end], truths[group], 0),
            np.broadcast_to(areas[start:end, None], (end - start, len(group))),
        )
        for level, threshold in enumerate(thresholds):
            free = np.ones(len(single), bool)
            for row in range(end - start):
                overlap = np.where(free, overlaps[row], -1)
                if len(single) and overlap.max() >= threshold:
                    best = len(single) - 1 - overlap[::-1].argmax()
                    free[best] = False
                    outcome[level, start + row] = 1
                elif (inside[row] >= threshold).any():
                    outcome[level, start + row] = -1
    return outcome
