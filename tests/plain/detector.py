"""The detection steps written plainly, one prior and one box at a time: the fast pipeline must agree."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import ceil, exp, sqrt

import numpy as np
import torch

from data.config import PIXEL_MEAN_BGR, ModelConfig
from models.detector import Thresholds
from models.retinaface import RetinaFace


def plain_priors(cfg: ModelConfig, image_size: tuple[int, int]) -> torch.Tensor:
    """Priors by nested loops: Tensor[P, 4], cx cy w h, normalised."""
    height, width = image_size
    numbers: list[float] = []
    for stride, sizes in zip(cfg.strides, cfg.min_sizes, strict=True):
        shapes = [
            (size / sqrt(ratio) / width, size * sqrt(ratio) / height)
            for size, ratio in product(sizes, cfg.heights_over_widths)
        ]
        for row, column in product(range(ceil(height / stride)), range(ceil(width / stride))):
            x, y = (column + 0.5) * stride / width, (row + 0.5) * stride / height
            for shape in shapes:
                numbers += [x, y, *shape]
    priors = torch.tensor(numbers).view(-1, 4)
    return priors.clamp(0, 1) if cfg.clip_priors else priors


def plain_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Greedy NMS that counts pixels (widths are x2 - x1 + 1); indices kept, best first."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = np.argsort(-scores, kind="stable")
    keep = []
    while order.size:
        best, rest = order[0], order[1:]
        keep.append(int(best))
        width = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1)
        height = np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1)
        overlap = width * height
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= threshold]
    return keep


@torch.no_grad()
def plain_boxes(network: RetinaFace, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [P, 4], xyxy in pixels, and scores [P, classes] of every prior; batch norm apart, as trained."""
    cfg = network.cfg
    height, width = image.shape[:2]
    pixels = np.float32(image)
    pixels -= PIXEL_MEAN_BGR
    loc, logits = network(torch.from_numpy(pixels.transpose(2, 0, 1)).unsqueeze(0))
    priors = plain_priors(cfg, (height, width))
    centre = priors[:, :2] + loc[0, :, :2] * cfg.variances[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[0, :, 2:] * cfg.variances[1])
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1) * torch.tensor(
        [width, height, width, height]
    )
    return boxes.numpy(), logits[0].softmax(-1).numpy()


def plain_ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of a box with each of others; 0 without a size."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros(len(others)), where=union > 0)


def plain_vote(
    boxes: np.ndarray, scores: np.ndarray, kept: Sequence[int], label: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kept boxes as the mean of all that overlap them by 0.6 and score half as much, and their new scores."""
    voted, rated = np.zeros((len(kept), 4)), np.zeros(len(kept))
    for row, best in enumerate(kept):
        voters = (plain_ious(boxes[best], boxes) >= 0.6) & (scores >= 0.5 * scores[best])
        voters[best] = True
        voted[row] = np.average(boxes[voters], axis=0, weights=scores[voters])
        others = scores[voters].sum() / scores[best] - 1
        rated[row] = scores[best] * (1 - (0.2 if label == 1 else 0.5) * exp(-others / 8))
    return voted, rated


def plain_join(
    boxes: np.ndarray, scores: np.ndarray, thresholds: Thresholds, votes: bool = False
) -> np.ndarray:
    """The cut and NMS, and voting: float32[N, 6], x1 y1 x2 y2 score label, by class, then by score."""
    rows = []
    for label in range(1, scores.shape[1]):
        candidates = np.flatnonzero(scores[:, label] > thresholds.score * (0.5 if votes else 1))
        candidates = candidates[np.argsort(-scores[candidates, label], kind="stable")][: thresholds.top_k]
        keep = plain_nms(boxes[candidates], scores[candidates, label], thresholds.nms_iou)
        keep = keep[: thresholds.keep_top_k]
        found, rated = boxes[candidates[keep]], scores[candidates[keep], label]
        if votes:
            found, rated = plain_vote(boxes[candidates], scores[candidates, label], keep, label)
            order = [i for i in np.argsort(-rated, kind="stable") if rated[i] > thresholds.score]
            found, rated = found[order], rated[order]
        rows.append(np.column_stack([found, rated, np.full(len(rated), label)]))
    return np.concatenate(rows).astype(np.float32)


def plain_detect(network: RetinaFace, image: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Detections of one image as float32[N, 6]: x1 y1 x2 y2 score label, by class, then by score."""
    return plain_join(*plain_boxes(network, image), thresholds)


def plain_weight(side: float, label: int, finer: int, coarser: int) -> float:
    """What a score counts for a box whose longer side has so many pixels at its scale."""
    if finer and side < 24:
        return 0
    if not coarser:
        return 1
    whole, greatest = 128 if label == 1 else 0, 640 if coarser == 1 else 320
    return min(1, max(0, (greatest - side) / (greatest - whole)))


def plain_detect_at_scales(
    network: RetinaFace, copies: list[np.ndarray], image_size: tuple[int, int], thresholds: Thresholds
) -> np.ndarray:
    """As `plain_detect`, of a photo of ``image_size`` at several scales, finest first, voted and clipped.

    Right and below the copies are padded to whole cells of 32 pixels.
    """
    height, width = image_size
    all_boxes, all_scores = [], []
    for level, copy in enumerate(copies):
        rows, columns = copy.shape[:2]
        padded = np.empty((ceil(rows / 32) * 32, ceil(columns / 32) * 32, 3), np.uint8)
        padded[:] = PIXEL_MEAN_BGR
        padded[:rows, :columns] = copy
        boxes, scores = plain_boxes(network, padded)
        for box, row in zip(boxes, scores, strict=True):
            side = max(box[2] - box[0], box[3] - box[1])
            for label in range(1, len(row)):
                row[label] *= plain_weight(side, label, level, len(copies) - 1 - level)
        factors = [width / copy.shape[1], height / copy.shape[0]]
        all_boxes.append(boxes * np.float32(factors * 2))
        all_scores.append(scores)
    rows = plain_join(np.concatenate(all_boxes), np.concatenate(all_scores), thresholds, votes=True)
    rows[:, :4] = rows[:, :4].clip(0, [width, height] * 2)
    return rows
