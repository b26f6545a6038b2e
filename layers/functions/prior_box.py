"""Priors (anchor boxes) of an image size."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import numpy as np
import torch
from torch import Tensor

from data.config import ModelConfig


def priors_per_cell(cfg: ModelConfig) -> int:
    """Priors of one cell of any level; it sizes the heads."""
    return len(cfg.min_sizes[0]) * len(cfg.heights_over_widths)


def feature_sizes(cfg: ModelConfig, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of every level for an ``image_size`` of (height, width) pixels."""
    height, width = image_size
    return [(ceil(height / stride), ceil(width / stride)) for stride in cfg.strides]


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # training takes no tensors that were made in that mode
def prior_boxes(cfg: ModelConfig, image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Priors of a (height, width) in pixels: Tensor[P, 4], float32, cx cy w h, divided by width and height.

    Order: level, row, column, size, ratio. The values are worked out in float64 and rounded once to
    float32, which makes them equal to the published code's bit by bit. Calls share the tensor: do not write
    to it.
    """
    height, width = image_size
    if height < 1 or width < 1:
        raise ValueError(f"expected an image of at least 1x1 pixels, got {height}x{width} (height x width)")
    levels = []
    sizes = feature_sizes(cfg, image_size)
    for (rows, columns), stride, shapes in zip(sizes, cfg.strides, cfg.prior_shapes(), strict=True):
        priors = np.empty((rows, columns, len(shapes), 4), np.float32)
        edges = (
            ((np.arange(columns) + 0.5) * stride / width)[None, :, None],
            ((np.arange(rows) + 0.5) * stride / height)[:, None, None],
            np.array([w / width for w, _ in shapes]),
            np.array([h / height for _, h in shapes]),
        )
        for axis, values in enumerate(edges):
            priors[..., axis] = values.clip(0, 1) if cfg.clip_priors else values
        levels.append(priors.reshape(-1, 4))
    return torch.from_numpy(np.concatenate(levels)).to(device)
