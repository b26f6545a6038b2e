"""The published matching, loss and augmentation, written plainly: tests and benchmarks compare with it.

Every step is done for one image or one truth at a time, in the published order.
"""

from __future__ import annotations

import random

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.config import PIXEL_MEAN_BGR
from utils.box_utils import encode


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of every box with every other: Tensor[M, P] of Tensor[M, 4] and Tensor[P, 4], x1 y1 x2 y2."""
    top_left = torch.max(boxes[:, None, :2], others[None, :, :2])
    bottom_right = torch.min(boxes[:, None, 2:], others[None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    other_areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return intersection / (areas[:, None] + other_areas[None, :] - intersection)


def match_one(
    boxes_norm: Tensor, labels: Tensor, priors: Tensor, match_iou: float = 0.45, best_prior_iou: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Labels int64[P] (0 background) and boxes_norm [P, 4] of one image's priors."""
    prior_labels = torch.zeros(len(priors), dtype=torch.int64, device=priors.device)
    prior_boxes = torch.zeros_like(priors)
    if not len(boxes_norm):
        return prior_labels, prior_boxes
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    iou = pairwise_iou(boxes_norm, corners)
    best_iou, best_prior = iou.max(1)
    good = best_iou >= best_prior_iou
    if not good.any():
        return prior_labels, prior_boxes
    prior_iou, owner = iou.max(0)
    prior_iou[best_prior[good]] = 2.0
    for truth in range(len(boxes_norm)):
        owner[best_prior[truth]] = truth
    matched = prior_iou >= match_iou
    prior_labels[matched] = labels[owner[matched]]
    prior_boxes[matched] = boxes_norm[owner[matched]]
    return prior_labels, prior_boxes


def multibox_loss(
    loc: Tensor,
    logits: Tensor,
    priors: Tensor,
    boxes_norm: list[Tensor],
    labels: list[Tensor],
    variances: tuple[float, float] = (0.1, 0.2),
    negatives_per_positive: int = 7,
    negatives_of_empty: int = 0,
) -> tuple[Tensor, Tensor]:
    """Localisation and class loss, each divided by the positives of the batch.

    ``negatives_of_empty`` is the one addition: negatives of an image without positives (published: none).
    """
    matches = [match_one(b, c, priors) for b, c in zip(boxes_norm, labels, strict=True)]
    target_labels = torch.stack([m[0] for m in matches])
    target_boxes = torch.stack([m[1] for m in matches])
    positive = target_labels > 0
    loc_target = encode(target_boxes[positive], priors.expand(len(loc), -1, 4)[positive], variances)
    loc_loss = F.smooth_l1_loss(loc[positive], loc_target, reduction="sum")

    each = F.cross_entropy(logits.flatten(0, 1), target_labels.flatten(), reduction="none").view_as(positive)
    difficulty = each.detach().clone()
    difficulty[positive] = 0
    rank = difficulty.sort(1, descending=True)[1].sort(1)[1]
    count = (negatives_per_positive * positive.sum(1, keepdim=True)).clamp(max=positive.shape[1] - 1)
    count[~positive.any(1)] = negatives_of_empty
    class_loss = each[positive | (rank < count)].sum()
    total = max(int(positive.sum()), 1)
    return loc_loss / total, class_loss / total


def augment(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, image_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A training sample: float32[3, S, S] less the mean, boxes_norm [N, 4], labels [N]."""
    image, boxes, labels, whole = _crop(image, boxes, labels)
    image = _distort(image)
    if whole:
        height, width = image.shape[:2]
        canvas = np.empty((max(height, width), max(height, width), 3), image.dtype)
        canvas[:] = PIXEL_MEAN_BGR
        canvas[:height, :width] = image
        image = canvas
    if random.randrange(2):
        image = image[:, ::-1]
        boxes = boxes.copy()
        boxes[:, 0::2] = image.shape[1] - boxes[:, 2::-2]
    boxes = boxes / image.shape[0]
    methods = [cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4]
    image = cv2.resize(image, (image_size, image_size), interpolation=random.choice(methods))
    return (image.astype(np.float32) - PIXEL_MEAN_BGR).transpose(2, 0, 1), boxes, labels


def _crop(
    image: np.ndarray, boxes: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    height, width = image.shape[:2]
    for _ in range(250):
        side = int(random.choice([0.3, 0.45, 0.6, 0.8, 1.0]) * min(height, width))
        left = 0 if side == width else random.randrange(width - side)
        top = 0 if side == height else random.randrange(height - side)
        low, high = np.array([left, top]), np.array([left + side, top + side])
        sides = np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low)
        inside = sides.clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if not (inside >= 1).any():
            continue
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        kept = ((low < centres) & (centres < high)).all(1)
        if not kept.any():
            continue
        cut = boxes[kept].copy()
        cut[:, :2] = np.maximum(cut[:, :2], low) - low
        cut[:, 2:] = np.minimum(cut[:, 2:], high) - low
        return image[top : top + side, left : left + side], cut, labels[kept], False
    return image, boxes, labels, True


def scale_and_shift(values: np.ndarray, factor: float = 1, shift: float = 0) -> np.ndarray:
    """``values * factor + shift``, clipped and rounded down to uint8."""
    result = values.astype(float) * factor + shift
    result[result < 0] = 0
    result[result > 255] = 255
    return result.astype(np.uint8)


def _distort(image: np.ndarray) -> np.ndarray:
    contrast_first = random.randrange(2)
    if random.randrange(2):
        image = scale_and_shift(image, shift=random.uniform(-32, 32))
    if contrast_first and random.randrange(2):
        image = scale_and_shift(image, random.uniform(0.5, 1.5))
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if random.randrange(2):
        hsv[:, :, 1] = scale_and_shift(hsv[:, :, 1], random.uniform(0.5, 1.5))
    if random.randrange(2):
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + random.randint(-18, 18)) % 180
    image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not contrast_first and random.randrange(2):
        image = scale_and_shift(image, random.uniform(0.5, 1.5))
    return image
