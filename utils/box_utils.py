"""Box geometry: the forms of a box and overlaps in NumPy, and its coding as offsets from a prior in torch.

xyxy is x1 y1 x2 y2, xywh is x and y of the top left corner, width and height, cxcywh has the centre instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import; who only converts does without it
    from torch import Tensor


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """float64[..., 4] xyxy of xywh: a new array, row after row in memory."""
    converted = np.array(boxes, np.float64, order="C")
    converted[..., 2:] += converted[..., :2]
    return converted


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """float64[..., 4] xywh of xyxy: a new array, row after row in memory."""
    converted = np.array(boxes, np.float64, order="C")
    converted[..., 2:] -= converted[..., :2]
    return converted


def xywh_to_cxcywh(boxes: np.ndarray) -> np.ndarray:
    """float64[..., 4] cxcywh of xywh: a new array, row after row in memory."""
    converted = np.array(boxes, np.float64, order="C")
    converted[..., :2] += converted[..., 2:] / 2
    return converted


def cxcywh_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """float64[..., 4] xywh of cxcywh: a new array, row after row in memory."""
    converted = np.array(boxes, np.float64, order="C")
    converted[..., :2] -= converted[..., 2:] / 2
    return converted


def areas(boxes: np.ndarray, plus: float = 0) -> np.ndarray:
    """float64[N] of boxes x1 y1 x2 y2, ``plus`` added to width and height (1: the pixel convention)."""
    return (boxes[:, 2] - boxes[:, 0] + plus) * (boxes[:, 3] - boxes[:, 1] + plus)


def intersections(boxes: np.ndarray, others: np.ndarray, plus: float = 0) -> np.ndarray:
    """float64[n, g]: area shared by each pair of boxes, ``plus`` as in `areas`."""
    sides = np.minimum(boxes[:, None, 2:], others[:, 2:]) - np.maximum(boxes[:, None, :2], others[:, :2])
    sides = (sides + plus).clip(0)
    return sides[..., 0] * sides[..., 1]


def ious(boxes: np.ndarray, others: np.ndarray, plus: float = 0) -> np.ndarray:
    """float64[n, g]: intersection over union of each pair, 0 where nothing is shared; twin of `iou.pxd`."""
    shared = intersections(boxes, others, plus)
    return divide(shared, areas(boxes, plus)[:, None] + areas(others, plus) - shared)


def divide(shared: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``shared / whole``, 0 where nothing is shared (also between boxes without area)."""
    return np.divide(shared, whole, out=np.zeros_like(shared), where=shared > 0)


def encode(boxes_norm: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Offsets Tensor[..., 4], dx dy dw dh, that turn ``priors`` into ``boxes_norm`` (SSD, Liu et al. 2016,
    section 2.2).

    Args:
        boxes_norm: Tensor[..., 4], x1 y1 x2 y2, normalised, positive width and height.
        priors: Tensor[..., 4], cx cy w h, normalised.
        variances: scale of the centre offsets and of the log size offsets.
    """
    import torch  # here, because evaluators start without it

    top_left, bottom_right = boxes_norm[..., :2], boxes_norm[..., 2:]
    centre = ((top_left + bottom_right) / 2 - priors[..., :2]) / (variances[0] * priors[..., 2:])
    size = torch.log((bottom_right - top_left) / priors[..., 2:]) / variances[1]
    return torch.cat([centre, size], -1)


def decode(loc: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Boxes Tensor[..., 4], x1 y1 x2 y2, normalised, not clipped, of offsets from priors; inverse of
    `encode`."""
    import torch

    centre = priors[..., :2] + loc[..., :2] * variances[0] * priors[..., 2:]
    size = priors[..., 2:] * torch.exp(loc[..., 2:] * variances[1])
    top_left = centre - size / 2
    return torch.cat([top_left, top_left + size], -1)
