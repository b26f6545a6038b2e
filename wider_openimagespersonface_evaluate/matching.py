"""Matching rules of Open Images and of COCO: compiled where `setup.py` has been run, else in NumPy.

Both return int8[T, N], the outcome of each detection at each threshold: 1 hit, 0 false positive, -1 ignored.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.predictions import Predictions
from data.truths import Truths
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


class Boxes(NamedTuple):
    """Detections and truths of one class: those of image i are the rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        boxes, truths: float64[N or G, 4], x1 y1 x2 y2 in any unit; detections of an image best first.
        areas, truth_areas: float64[N or G].
        offsets, truth_offsets: int64[I + 1].
        group_of: uint8[G], whether a truth encloses a group (for COCO: a crowd).
    """

    boxes: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray
    truths: np.ndarray
    truth_areas: np.ndarray
    truth_offsets: np.ndarray
    group_of: np.ndarray

    @classmethod
    def of(cls, detections: Predictions, truths: Truths) -> Boxes:
        """Those of one class, the detections of each image best first."""
        areas, truth_areas = (
            np.ascontiguousarray(boxes[:, 2] * boxes[:, 3], np.float64)
            for boxes in (detections.boxes_xywh, truths.boxes_xywh)
        )
        return cls(
            detections.boxes,
            areas,
            detections.offsets,
            truths.boxes,
            truth_areas,
            truths.offsets,
            truths.group_of.astype(np.uint8),
        )

    def truths_of(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of an image's single truths, and of those that enclose a group."""
        here = np.arange(self.truth_offsets[image], self.truth_offsets[image + 1])
        return here[self.group_of[here] == 0], here[self.group_of[here] != 0]

    def overlaps(
        self, start: int, end: int, single: np.ndarray, group: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of detections ``start:end``: IoU with single truths, and share of their area inside of groups."""
        boxes, areas = self.boxes[start:end], self.areas[start:end, None]
        shared = intersections(boxes, self.truths[single], 0)
        inside = intersections(boxes, self.truths[group], 0)
        return (
            divide(shared, areas + self.truth_areas[single] - shared),
            divide(inside, np.broadcast_to(areas, inside.shape)),
        )


def match_open_images(boxes: Boxes, thresholds: np.ndarray) -> np.ndarray:
    """The rule of the Open Images challenge, at ``thresholds`` float64[T].

    A detection looks at the single box it overlaps most: a hit above the threshold if it is the first
    there. If that fails, it looks at the group-of box that holds most of its own area: above the threshold
    the first is a hit and the others are ignored. A group-of box counts as one box to be found.
    """
    if kernel:
        return kernel.match_open_images(*boxes, thresholds)
    return match_open_images_numpy(boxes, thresholds)


def match_coco(boxes: Boxes, thresholds: np.ndarray = COCO_THRESHOLDS, most: int = COCO_MOST) -> np.ndarray:
    """COCO's rule: each detection takes the box it overlaps most of those still free (the last of equals).

    Where none is free, overlap with a crowd box, as a share of the detection's area, makes it ignored.
    Crowd boxes are not to be found. Detections after the first ``most`` of an image are ignored.

    Args:
        thresholds: float64[T], reached by a hit.
        most: detections looked at in an image.
    """
    if kernel:
        return kernel.match_coco(*boxes, thresholds, most)
    return match_coco_numpy(boxes, thresholds, most)


def match_open_images_numpy(boxes: Boxes, thresholds: np.ndarray) -> np.ndarray:
    """`match_open_images` in NumPy; memory does not grow with the detections of an image."""
    outcome = np.zeros((len(thresholds), len(boxes.boxes)), np.int8)
    for image in range(len(boxes.offsets) - 1):
        single, group = boxes.truths_of(image)
        found = np.zeros((len(thresholds), len(boxes.truths)), bool)
        for start, end in pieces(*boxes.offsets[image : image + 2], len(single) + len(group)):
            overlaps, inside = boxes.overlaps(start, end, single, group)
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
    boxes: Boxes, thresholds: np.ndarray = COCO_THRESHOLDS, most: int = COCO_MOST
) -> np.ndarray:
    """`match_coco` in NumPy."""
    outcome = np.zeros((len(thresholds), len(boxes.boxes)), np.int8)
    for image, (start, after) in enumerate(pairwise(boxes.offsets)):
        single, group = boxes.truths_of(image)
        end = min(after, start + most)
        outcome[:, end:after] = -1
        overlaps, inside = boxes.overlaps(start, end, single, group)
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
