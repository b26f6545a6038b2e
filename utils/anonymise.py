"""Parts of an image made unrecognisable for good."""

from __future__ import annotations

from math import ceil, floor

import cv2
import numpy as np

#: A box grows by this share of its sides on each side, as chin, ears and hair reach beyond it.
MARGIN = 0.15

#: Most cells that are left along a side, and least pixels of one: what is averaged cannot be restored.
CELLS, LEAST_CELL = 4, 8


def pixelate(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of ``image`` with nothing left of ``boxes``, a little enlarged, but a few cells of mean colour.

    Args:
        image: uint8[height, width, 3].
        boxes: [N, 4], xyxy in pixels; parts outside of the image are cut.
    """
    image = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in np.asarray(boxes, np.float64).reshape(-1, 4).tolist():
        across, down = MARGIN * (x2 - x1), MARGIN * (y2 - y1)
        left, top = max(0, floor(x1 - across)), max(0, floor(y1 - down))
        right, bottom = min(width, ceil(x2 + across)), min(height, ceil(y2 + down))
        if right > left and bottom > top:
            size = right - left, bottom - top
            cells = [min(CELLS, max(1, length // LEAST_CELL)) for length in size]
            mean = cv2.resize(image[top:bottom, left:right], cells, interpolation=cv2.INTER_AREA)
            image[top:bottom, left:right] = cv2.resize(mean, size, interpolation=cv2.INTER_NEAREST)
    return image
