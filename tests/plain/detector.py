"""The detection steps written plainly, one prior and one box at a time: the fast pipeline must agree."""

from __future__ import annotations

from itertools import product
from math import ceil, sqrt

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
def plain_detect(network: RetinaFace, image: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Detections of one image as float32[N, 6]: x1 y1 x2 y2 score label, by class, then by score.

    The network runs as trained, batch norm apart.
    """
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
    boxes, scores = boxes.numpy(), logits[0].softmax(-1).numpy()
    rows = []
    for label in range(1, cfg.num_classes):
        candidates = np.flatnonzero(scores[:, label] > thresholds.score)
        candidates = candidates[np.argsort(-scores[candidates, label], kind="stable")][: thresholds.top_k]
        keep = plain_nms(boxes[candidates], scores[candidates, label], thresholds.nms_iou)
        kept = candidates[keep[: thresholds.keep_top_k]]
        rows.append(np.column_stack([boxes[kept], scores[kept, label], np.full(len(kept), label)]))
    return np.concatenate(rows).astype(np.float32)
