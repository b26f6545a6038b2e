"""Boxes drawn on images: one colour a class, readable at any image size."""

from __future__ import annotations

import cv2
import numpy as np

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_PIXELS = 22  # cap height of this font at scale 1


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: list[str],
    colours: list[tuple[int, int, int]],
) -> np.ndarray:
    """A copy of ``image`` with a frame and a caption a box; later boxes lie over earlier ones.

    Args:
        image: uint8[height, width, 3], BGR.
        boxes: [N, 4], xyxy in pixels; parts outside of the image are cut.
        texts: N captions, "" for none.
        colours: N BGR colours.
    """
    image = image.copy()
    height, width = image.shape[:2]
    line = max(1, round(max(height, width) / 300))
    limit = 4 * max(height, width)
    corners = (
        np.nan_to_num(boxes, nan=0.0, posinf=limit, neginf=-limit).clip(-limit, limit).round().astype(int)
    )
    for (x1, y1, x2, y2), colour in zip(corners.tolist(), colours, strict=True):
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, line)
    for (x1, y1, _, y2), text, colour in zip(corners.tolist(), texts, colours, strict=True):
        if text:
            _caption(image, x1, y1, y2, text, colour)
    return image


def _caption(image: np.ndarray, x1: int, y1: int, y2: int, text: str, colour: tuple[int, int, int]) -> None:
    """Dark text on the class colour: above the box, inside where there is no room, never off the image."""
    height, width = image.shape[:2]
    letters = max(9.0, max(height, width) / 85)
    scale, weight = letters / _FONT_PIXELS, max(1, round(letters / 10))
    (text_width, _), _ = cv2.getTextSize(text, _FONT, scale, weight)
    pad = max(2, round(letters / 4))
    box_height = round(letters) + 2 * pad
    top = y1 - box_height if y1 >= box_height else min(max(y1, 0), max(0, min(y2, height) - box_height))
    left = min(max(x1, 0), max(0, width - text_width - 2 * pad))
    cv2.rectangle(image, (left, top), (left + text_width + 2 * pad, top + box_height), colour, -1)
    baseline = (left + pad, top + box_height - pad)
    cv2.putText(image, text, baseline, _FONT, scale, (0, 0, 0), weight, cv2.LINE_AA)
