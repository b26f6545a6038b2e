"""The sizes at which the network sees an image, and how what it finds at each becomes detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from data.config import GREATEST_SCALE, PYRAMID
from utils.box_utils import decode, ious
from utils.cli import UsageError

try:
    from models import kernel

    kernel.above  # noqa: B018
except (ImportError, AttributeError):  # not compiled, or before `above`; a crowd takes several times as long
    kernel = None


# Slack of the cut on logits that spares the softmax of priors that cannot pass the cut on scores.
_LOGIT_SLACK = 1e-3


@dataclass(frozen=True)
class InputSize:
    """The size at which the network sees an image; by default its own.

    Attributes:
        long_side: the longer side becomes this many pixels.
        target_size, max_size: the shorter side becomes ``target_size``, but the longer at most ``max_size``
            (1600 and 2150 is the published multi-scale protocol).
        fixed: the image fits into this (height, width), top left; the rest is filled with the pixel mean.
    """

    long_side: int | None = None
    target_size: int | None = None
    max_size: int | None = None
    fixed: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        sizes = (self.long_side, self.target_size, self.max_size, *(self.fixed or ()))
        if any(size is not None and size < 1 for size in sizes):
            raise UsageError(f"expected sizes of at least 1 pixel, got {[s for s in sizes if s is not None]}")
        rules = [self.long_side, self.target_size, self.fixed]
        if (self.target_size is None) != (self.max_size is None) or len(rules) - rules.count(None) > 1:
            raise UsageError(
                "expected either a long side, or a target and a max size, or a fixed size, or none of them"
            )

    def __call__(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels after resizing an image of ``image_size``."""
        height, width = image_size
        if self.long_side:
            scale = self.long_side / max(height, width)
        elif self.target_size and self.max_size:
            scale = self.target_size / min(height, width)
            if round(scale * max(height, width)) > self.max_size:
                scale = self.max_size / max(height, width)
        elif self.fixed:
            scale = min(self.fixed[0] / height, self.fixed[1] / width)
        else:
            return image_size
        return max(1, round(height * scale)), max(1, round(width * scale))


def check_scales(scales: str | float | Sequence[float]) -> Literal["auto"] | tuple[float, ...]:
    """``auto``, or scales in descending order.

    Raises:
        UsageError: neither ``auto`` nor numbers above 0.
    """
    if isinstance(scales, str) and scales == "auto":
        return "auto"
    numbers = (scales,) if isinstance(scales, str | int | float) else tuple(scales)
    if not numbers or not all(isinstance(n, int | float) and 0 < n <= GREATEST_SCALE for n in numbers):
        raise UsageError(
            f"expected scales: auto, or numbers above 0 to {GREATEST_SCALE} such as 2 1 0.5; got {scales!r}"
        )
    return tuple(sorted(set(map(float, numbers)), reverse=True))


def above(
    cut: float, loc: Tensor, logits: Tensor, priors: Tensor, variances: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What scores above ``cut`` in the outputs of a network, by class, then by image.

    Args:
        cut: 0..1.
        loc, logits: Tensor[N, P, 4] and Tensor[N, P, classes], float32, background first.
        priors, variances: as `decode` takes them.

    Returns:
        Labels, from 0, and images, int64[K]; scores float32[K]; boxes float32[K, 4], xyxy, normalised.
    """
    # Such a score needs a logit that beats the background's by this much: the others need no softmax.
    margin = math.log(cut / (1 - cut)) - _LOGIT_SLACK if 0 < cut < 1 else math.inf if cut else -math.inf
    if kernel and loc.device.type == "cpu":
        arrays = (tensor.contiguous().numpy() for tensor in (loc, logits, priors))
        return kernel.above(*arrays, variances, cut, margin)
    ahead = torch.stack([logits[..., label] - logits[..., 0] for label in range(1, logits.shape[2])])
    label, image, prior = (ahead > margin).nonzero(as_tuple=True)
    scores = logits[image, prior].softmax(1).gather(1, label[:, None] + 1)[:, 0]
    boxes = decode(loc[image, prior], priors[prior], variances)
    columns = [column.cpu().numpy() for column in (label, image, scores, boxes)]
    passed = columns[2] > cut
    return tuple(column[passed] for column in columns)


def trust(sides: np.ndarray, labels: np.ndarray, finer: np.ndarray, coarser: np.ndarray) -> np.ndarray:
    """How much the boxes of a scale are to be believed, float32[N] in 0..1, see `data.config.Pyramid`.

    Args:
        sides: float32[N], their longer sides in pixels at that scale.
        labels: int64[N], from 0.
        finer, coarser: int64[N], how many finer and coarser scales of the same photo there are.
    """
    whole = np.float32(PYRAMID.whole_sides)[labels]
    greatest = np.float32(PYRAMID.greatest_sides)[coarser.clip(1, 2) - 1]
    share = ((greatest - sides) / (greatest - whole)).clip(0, 1)
    share[coarser == 0] = 1
    share[(finer > 0) & (sides < PYRAMID.least_side)] = 0
    return share


def suppress(boxes: np.ndarray, scores: np.ndarray, iou: float, most: int) -> np.ndarray:
    """NMS: rows of at most ``most`` boxes of one class, float32[N, 4] xyxy, scores float32[N] descending.

    It is the published one: it compares in float32 and counts pixels, so x1 to x2 are x2 - x1 + 1 wide.
    """
    boxes, threshold = boxes + np.float32([0, 0, 1, 1]), float(np.float32(iou))
    if kernel:
        return kernel.suppress(boxes, threshold, most)
    return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)[:most].numpy()


def vote(
    boxes: np.ndarray, scores: np.ndarray, kept: np.ndarray, label: int
) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that NMS keeps, moved and rated by those that agree with them, see `data.config.Pyramid`.

    Args:
        boxes: float32[N, 4], xyxy, of one class.
        scores: float32[N].
        kept: int64[K], rows of both.
        label: their class.

    Returns:
        float32[K, 4] and float32[K], in the order of ``kept``; a score is at most what it was.
    """
    own = scores[kept]
    if kernel:
        means = kernel.vote(boxes, scores, kept, PYRAMID.voters_iou, PYRAMID.voters_share)
        boxes, support = means[:, :4], means[:, 4]
    else:
        agree = ious(boxes[kept], boxes) >= PYRAMID.voters_iou
        agree &= scores >= PYRAMID.voters_share * own[:, None]
        agree[np.arange(len(kept)), kept] = True  # without a size it overlaps nothing
        weights = agree * scores
        support = weights.sum(1)
        boxes = weights @ boxes / support[:, None]
    others = support / own - 1  # as many as score as much
    return boxes, own * (1 - (1 - PYRAMID.lone_shares[label - 1]) * np.exp(-others / PYRAMID.many_voters))
