"""Matching rules of Open Images and of COCO.

Both return int8[T, N], the outcome of each detection at each threshold: 1 hit, 0 false positive, -1 ignored.
Detections and truths are of one class and of the same images, the detections of an image best first. One that
is no hit and lies in an ignore region is ignored by both.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from data.config import CLASS_NAMES
from data.predictions import BoxTable
from utils.box_utils import ious
from widerface_evaluate.matching import INSIDE, best_overlaps, firsts, insides

try:
    from wider_openimagespersonface_evaluate import kernel
except ImportError:
    kernel = None

#: COCO's thresholds, and the detections it looks at in an image.
COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_MOST = 100


def match_open_images(detections: BoxTable, truths: BoxTable, thresholds: np.ndarray) -> np.ndarray:
    """The rule of the Open Images challenge, at ``thresholds`` float64[T].

    A detection looks at the single truth it overlaps most: a hit above the threshold if it is the first
    there. If that fails, it looks at the group-of truth that holds most of its own area: above the threshold
    the first is a hit and the others are ignored. A group-of truth counts as one to be found.
    """
    group_of = groups(truths)
    single, group = truths.select(~group_of), truths.select(group_of)
    best, overlap = best_overlaps(detections, single)
    best_group, inside = best_overlaps(detections, group, kind=INSIDE)
    outcome = np.zeros((len(thresholds), len(detections)), np.int8)
    for result, threshold in zip(outcome, thresholds, strict=True):
        result[firsts(np.flatnonzero(overlap > threshold), best, len(single))] = 1
        rest = np.flatnonzero((result == 0) & (inside > threshold))
        result[rest] = -1
        result[firsts(rest, best_group, len(group))] = 1
    return _ignoring_regions(outcome, detections, truths)


def in_regions(detections: BoxTable, truths: BoxTable) -> np.ndarray:
    """bool[N]: detections of which more than half lies in one ignore region of their class."""
    found = np.zeros(len(detections), bool)
    for label in CLASS_NAMES if truths.regions is not None else ():
        _, inside = best_overlaps(detections, truths.regions.of_class(-label), kind=INSIDE)
        found |= (detections.labels == label) & (inside > 0.5)
    return found


def _ignoring_regions(outcome: np.ndarray, detections: BoxTable, truths: BoxTable) -> np.ndarray:
    return np.where((outcome == 0) & in_regions(detections, truths), np.int8(-1), outcome)


def groups(truths: BoxTable) -> np.ndarray:
    """bool[G]: truths that enclose a group."""
    return np.zeros(len(truths), bool) if truths.group_of is None else truths.group_of


def match_coco(
    detections: BoxTable,
    truths: BoxTable,
    thresholds: np.ndarray = COCO_THRESHOLDS,
    most: int = COCO_MOST,
    ignored: np.ndarray | None = None,
) -> np.ndarray:
    """COCO's rule: each detection takes the truth it overlaps most of those still free (the last of equals).

    Where none is free, one that is ignored makes the detection ignored. Group-of truths are COCO's crowds:
    ignored, never used up, and overlap with them is a share of the detection's area. Detections after the
    first ``most`` of an image are ignored.

    Args:
        thresholds: float64[T], reached by a hit.
        most: detections looked at in an image.
        ignored: bool[G], further truths that are not to be found.
    """
    crowd = groups(truths)
    ignored = crowd if ignored is None else crowd | ignored
    match = kernel.match_coco if kernel else match_coco_numpy
    outcome = match(
        *(detections.boxes, detections.offsets, truths.boxes, truths.offsets),
        *(crowd.astype(np.uint8), ignored.astype(np.uint8), thresholds, most),
    )
    return _ignoring_regions(outcome, detections, truths)


def match_coco_numpy(
    boxes: np.ndarray,
    offsets: np.ndarray,
    truths: np.ndarray,
    truth_offsets: np.ndarray,
    crowd: np.ndarray,
    ignored: np.ndarray,
    thresholds: np.ndarray,
    most: int,
) -> np.ndarray:
    """`match_coco` where the kernel is not built."""
    outcome = np.zeros((len(thresholds), len(boxes)), np.int8)
    images = zip(pairwise(offsets), pairwise(truth_offsets), strict=True)
    for (start, after), (first, last) in images:
        end = min(after, start + most)
        outcome[:, end:after] = -1
        near, here = boxes[start:end], slice(first, last)
        overlaps = np.where(crowd[here], insides(near, truths[here]), ious(near, truths[here]))
        for level, threshold in enumerate(thresholds):
            free = np.ones(last - first, bool)
            for row, overlap in enumerate(overlaps, start):
                able = free & (overlap >= threshold)
                for second, result in ((0, 1), (1, -1)):
                    some = np.where(able & (ignored[here] == second), overlap, -1)
                    if some.max(initial=-1) >= 0:
                        best = len(some) - 1 - some[::-1].argmax()
                        free[best] = crowd[first + best]
                        outcome[level, row] = result
                        break
    return outcome
