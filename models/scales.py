"""The sizes at which the network sees an image, and how what it finds at each becomes detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from data.config import GREATEST_SCALE, PYRAMID
from utils.cli import UsageError

try:
    from models import kernel
except ImportError:  # not compiled; torchvision's NMS takes several times as long in a crowd
    kernel = None


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


def trust(sides: Tensor, kinds: Tensor, finer: Tensor, coarser: Tensor) -> Tensor:
    """How much the boxes of a scale are to be believed, Tensor[N] in 0..1, see `data.config.Pyramid`.

    Args:
        sides: Tensor[N], their longer sides in pixels at that scale.
        kinds: int64[N], their labels, from 0.
        finer, coarser: int64[N], how many finer and coarser scales of the same photo there are.
    """
    whole = sides.new_tensor(PYRAMID.whole_sides)[kinds]
    greatest = sides.new_tensor(PYRAMID.greatest_sides)[coarser.clamp(1, 2) - 1]
    share = ((greatest - sides) / (greatest - whole)).clamp(0, 1)
    return share.masked_fill(coarser == 0, 1).masked_fill((finer > 0) & (sides < PYRAMID.least_side), 0)


def suppress(boxes: Tensor, scores: Tensor, iou: float, most: int) -> Tensor:
    """NMS: rows of at most ``most`` boxes of one class, Tensor[N, 4] xyxy, scores Tensor[N] descending.

    It is the published one: it compares in float32 and counts pixels, so x1 to x2 are x2 - x1 + 1 wide.
    """
    boxes, threshold = boxes + boxes.new_tensor([0, 0, 1, 1]), float(np.float32(iou))
    if kernel and boxes.device.type == "cpu":
        return torch.from_numpy(kernel.suppress(boxes.numpy(), threshold, most))
    return nms(boxes, scores, threshold)[:most]


def vote(boxes: Tensor, scores: Tensor, kept: Tensor, label: int) -> tuple[Tensor, Tensor]:
    """The boxes that NMS keeps, moved and rated by those that agree with them, see `data.config.Pyramid`.

    Args:
        boxes: Tensor[N, 4], xyxy, of one class.
        scores: Tensor[N], descending.
        kept: int64[K], rows of both.
        label: their class.

    Returns:
        Tensor[K, 4] and Tensor[K], in the order of ``kept``; a score is at most what it was.
    """
    iou, share = PYRAMID.voters_iou, PYRAMID.voters_share
    own = scores[kept]
    if kernel and boxes.device.type == "cpu":
        arrays = (tensor.contiguous().numpy() for tensor in (boxes, scores, kept))
        boxes, support = torch.from_numpy(kernel.vote(*arrays, iou, share)).split((4, 1), 1)
    else:
        agree = (box_iou(boxes[kept], boxes) >= iou) & (scores >= share * own[:, None])
        agree[torch.arange(len(kept), device=kept.device), kept] = True  # without a size it overlaps nothing
        weights = agree * scores
        support = weights.sum(1, keepdim=True)
        boxes = weights @ boxes / support
    others = support[:, 0] / own - 1  # as many as score as much
    return boxes, own * (1 - (1 - PYRAMID.lone_shares[label - 1]) * torch.exp(-others / PYRAMID.many_voters))
