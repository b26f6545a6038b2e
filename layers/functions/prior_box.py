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


class PriorBox:
    """Makes the priors of an image size and remembers those of the last sizes.

    Order: level, row, column, size, ratio. The values are worked out in float64 and rounded once to
    float32, which makes them equal to the published code's bit by bit.

    Example:
        >>> from data.config import cfg_mnet
        >>> PriorBox(cfg_mnet)((640, 640)).shape
        torch.Size([50400, 4])
    """

    def __init__(self, cfg: ModelConfig, cache_size: int = 8) -> None:
        self.cfg = cfg
        self._cached = lru_cache(maxsize=cache_size)(self._build)

    def __call__(self, image_size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
        """Priors as Tensor[P, 4], float32, cx cy w h, divided by the image's width and height.

        The tensor is shared between calls: do not write to it.

        Args:
            image_size: (height, width) in pixels, both at least 1.
            device: where the tensor shall be.
        """
        height, width = image_size
        if height < 1 or width < 1:
            raise ValueError(
                f"expected an image of at least 1x1 pixels, got {height}x{width} (height x width)"
            )
        return self._cached((height, width), torch.device(device))

    def clear(self) -> None:
        """Forgets all priors."""
        self._cached.cache_clear()

    def _build(self, image_size: tuple[int, int], device: torch.device) -> Tensor:
        height, width = image_size
        cfg = self.cfg
        levels = []
        for (rows, columns), stride, shapes in zip(
            feature_sizes(cfg, image_size), cfg.strides, cfg.prior_shapes(), strict=True
        ):
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
