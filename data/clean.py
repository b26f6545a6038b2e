"""Cleaning of annotation lists: boxes cut to the image, degenerate and repeated ones taken out.

Rules, in their order; ``clipped`` and ``face_outside`` boxes stay in the list:

- ``outside``: wholly outside of the image;
- ``clipped``: reached beyond the image and was cut;
- ``degenerate``: width or height at most ``min_side`` of the image's;
- ``repeated``: overlaps an earlier box of the same class by more than ``merge_iou``; the first stays;
- ``face_outside``: a face less than ``face_inside`` of which lies in any person.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from data.annotations import ImageAnnotation, iter_annotations
from data.config import CLASS_LABELS
from utils.cli import UsageError

OUTSIDE, CLIPPED, DEGENERATE, REPEATED, FACE_OUTSIDE = RULES = (
    "outside",
    "clipped",
    "degenerate",
    "repeated",
    "face_outside",
)

#: Rules whose boxes are not in the cleaned list.
REMOVING = frozenset({OUTSIDE, DEGENERATE, REPEATED})

#: A box that leaves the image by less is within the rounding of the list's nine decimals.
_ROUNDING = 1e-9

_BLOCK_BOXES = 256


@dataclass(frozen=True)
class Limits:
    """Limits of the rules, all shares: of the image's side, of the union, of the face's area."""

    min_side: float = 0.0
    merge_iou: float = 0.9
    face_inside: float = 0.5

    def __post_init__(self) -> None:
        for name in ("min_side", "merge_iou", "face_inside"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"expected --{name} from 0 to 1, got {getattr(self, name)}")


@dataclass
class Finding:
    """A box that a rule applies to: image path, line of the image's header, class label, box as it was."""

    path: str
    line: int
    rule: str
    label: int
    box_xywh_norm: list[float]


def clean(
    annotations: Iterable[ImageAnnotation], limits: Limits = Limits()
) -> Iterator[tuple[ImageAnnotation, list[Finding]]]:
    """Each image cleaned, with what was found in it; boxes within the image keep their exact values."""
    block: list[ImageAnnotation] = []
    boxes = 0
    for annotation in annotations:
        block.append(annotation)
        boxes += len(annotation)
        if boxes >= _BLOCK_BOXES or len(block) >= _BLOCK_BOXES:
            yield from _clean_block(block, limits)
            block, boxes = [], 0
    if block:
        yield from _clean_block(block, limits)


def _clean_block(
    block: list[ImageAnnotation], limits: Limits
) -> Iterator[tuple[ImageAnnotation, list[Finding]]]:
    image = np.repeat(np.arange(len(block)), [len(annotation) for annotation in block])
    given = np.concatenate([annotation.boxes_xywh_norm for annotation in block])
    labels = np.concatenate([annotation.labels for annotation in block])
    corners = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], 1)
    cut = corners.clip(0, 1)
    beyond = (np.abs(cut - corners) > _ROUNDING).any(1)
    boxes = given.copy()
    boxes[beyond] = np.concatenate([cut[beyond, :2], cut[beyond, 2:] - cut[beyond, :2]], 1)
    outside = beyond & ((corners[:, :2] >= 1) | (corners[:, 2:] <= 0)).any(1)
    degenerate = ~outside & (boxes[:, 2:] <= limits.min_side).any(1)

    # Boxes of different images are moved apart, so that they cannot meet.
    apart = cut + 4.0 * image[:, None]
    alive = np.flatnonzero(~outside & ~degenerate)
    kept = alive[_firsts(apart[alive], labels[alive], limits.merge_iou)]
    repeated = np.zeros(len(image), bool)
    repeated[np.setdiff1d(alive, kept, assume_unique=True)] = True
    face_outside = np.zeros(len(image), bool)
    face_outside[kept] = _faces_outside(apart[kept], labels[kept], limits.face_inside)
    applies = (outside, beyond & ~outside & ~degenerate & ~repeated, degenerate, repeated, face_outside)

    findings: list[list[Finding]] = [[] for _ in block]
    for i in np.flatnonzero(np.any(applies, 0)):
        of_image = block[image[i]]
        for rule, mask in zip(RULES, applies, strict=True):
            if mask[i]:
                finding = Finding(of_image.path, of_image.line, rule, int(labels[i]), given[i].tolist())
                findings[image[i]].append(finding)
    ends = np.searchsorted(image[kept], np.arange(1, len(block)))
    for annotation, rows, found in zip(block, np.split(kept, ends), findings, strict=True):
        yield ImageAnnotation(annotation.path, labels[rows], boxes[rows], annotation.line), found


def _firsts(boxes: np.ndarray, labels: np.ndarray, iou: float) -> np.ndarray:
    """Indices, ascending, of boxes that no earlier kept one of their class overlaps by more than ``iou``."""
    # Non-maximum suppression by position in the list, classes apart.
    by_class = torch.from_numpy(boxes + 2.0 * (labels == CLASS_LABELS["face"])[:, None])
    return nms(by_class, -torch.arange(len(labels), dtype=torch.float64), iou).sort().values.numpy()


def _faces_outside(boxes: np.ndarray, labels: np.ndarray, least: float) -> np.ndarray:
    """bool[N]: faces that have less than ``least`` of their area in every person."""
    outside = labels == CLASS_LABELS["face"]
    faces, persons = boxes[outside][:, None], boxes[~outside][None]
    shared = np.minimum(faces[..., 2:], persons[..., 2:]) - np.maximum(faces[..., :2], persons[..., :2])
    area = (faces[..., 2:] - faces[..., :2]).prod(-1)
    outside[outside] = (shared.clip(0).prod(-1) / area).max(1, initial=0) < least
    return outside


def iter_joined(path: str | os.PathLike, counts: Counter[str]) -> Iterator[ImageAnnotation]:
    """Images of a list, each once, at its first place, with the boxes of all its places; errors as reading.

    The list is read twice; only images that are in it more than once are held.
    """
    seen: set[str] = set()
    again: dict[str, list[ImageAnnotation]] = {}
    for annotation in iter_annotations(path):
        if annotation.path in seen:
            again[annotation.path] = []
        seen.add(annotation.path)
    del seen
    if again:
        for annotation in iter_annotations(path):
            if annotation.path in again:
                again[annotation.path].append(annotation)
    for annotation in iter_annotations(path):
        parts = again.get(annotation.path)
        if parts is None:
            yield annotation
        elif parts[0].line == annotation.line:
            counts["images joined"] += len(parts) - 1
            labels = np.concatenate([part.labels for part in parts])
            boxes = np.concatenate([part.boxes_xywh_norm for part in parts])
            yield ImageAnnotation(annotation.path, labels, boxes, annotation.line)
