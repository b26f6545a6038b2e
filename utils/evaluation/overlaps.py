"""Overlaps in NumPy, for the matching rules where their kernels are not built; `iou.pxd` is its twin."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Pairs of boxes looked at together: it bounds memory whatever an image holds.
PIECE = 1 << 18


def intersections(boxes: np.ndarray, truths: np.ndarray, plus: float) -> np.ndarray:
    """float64[n, g]: area shared by each pair of x1 y1 x2 y2 boxes, ``plus`` added to width and height."""
    corners = (
        np.minimum(boxes[:, None, 2:], truths[:, 2:]) - np.maximum(boxes[:, None, :2], truths[:, :2]) + plus
    )
    corners = corners.clip(0)
    return corners[..., 0] * corners[..., 1]


def divide(shared: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """``shared / areas``, 0 where nothing is shared (also between boxes without area)."""
    return np.divide(shared, areas, out=np.zeros_like(shared), where=shared > 0)


def pieces(start: int, end: int, truths: int) -> Iterator[tuple[int, int]]:
    """Splits the detections ``start:end`` so that a piece has at most `PIECE` pairs with ``truths`` boxes."""
    step = max(1, PIECE // max(truths, 1))
    for first in range(start, end, step):
        yield first, min(first + step, end)
