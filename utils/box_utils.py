"""Box geometry: coding of boxes as offsets from priors, and which prior learns which truth."""

from __future__ import annotations

import torch
from torch import Tensor


def encode(boxes_norm: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Offsets that turn ``priors`` into ``boxes_norm`` (SSD, Liu et al. 2016, section 2.2).

    Args:
        boxes_norm: Tensor[..., 4], x1 y1 x2 y2, normalised, positive width and height.
        priors: Tensor[..., 4], cx cy w h, normalised.
        variances: scale of the centre offsets and of the log size offsets.

    Returns:
        Tensor[..., 4]: dx dy dw dh.
    """
    top_left, bottom_right = boxes_norm[..., :2], boxes_norm[..., 2:]
    centre = ((top_left + bottom_right) / 2 - priors[..., :2]) / (variances[0] * priors[..., 2:])
    size = torch.log((bottom_right - top_left) / priors[..., 2:]) / variances[1]
    return torch.cat([centre, size], -1)


def decode(loc: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Boxes of offsets from priors, the inverse of `encode`.

    Args:
        loc: Tensor[..., 4], dx dy dw dh.
        priors: Tensor[..., 4], cx cy w h, normalised.
        variances: as in `encode`.

    Returns:
        Tensor[..., 4]: x1 y1 x2 y2, normalised, not clipped.
    """
    centre = priors[..., :2] + loc[..., :2] * variances[0] * priors[..., 2:]
    size = priors[..., 2:] * torch.exp(loc[..., 2:] * variances[1])
    top_left = centre - size / 2
    return torch.cat([top_left, top_left + size], -1)
