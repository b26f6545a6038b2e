"""Parts of an image hidden for good."""

from __future__ import annotations

from math import ceil, floor

import numpy as np

#: A box grows on each side by this share of its shorter side: chin, ears and hair reach beyond a face.
MARGIN = 0.3


def hide_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of ``image`` in which nothing but the mean colour is left of ``boxes``, a little enlarged.

    Args:
        image: uint8[height, width, 3].
        boxes: [N, 4], xyxy in pixels; parts outside of the image are cut.
    """
    image = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in np.asarray(boxes, np.float64).reshape(-1, 4).tolist():
        margin = MARGIN * min(x2 - x1, y2 - y1)
        left, top = max(0, floor(x1 - margin)), max(0, floor(y1 - margin))
        right, bottom = min(width, ceil(x2 + margin)), min(height, ceil(y2 + margin))
        if right > left and bottom > top:
            image[top:bottom, left:right] = image[top:bottom, left:right].mean((0, 1)).round()
    return image
