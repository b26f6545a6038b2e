"""Boxes drawn on images, readable at any image size, and contact sheets of such images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_GREY = 40
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_PIXELS = 22  # cap height of this font at scale 1


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
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


def tile(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    focus: np.ndarray | None = None,
    side: int = 240,
) -> np.ndarray:
    """A square image with boxes, for a contact sheet: uint8[side, side, 3], BGR.

    Args:
        image: uint8[height, width, 3], BGR.
        boxes: [N, 4], xyxy in pixels of ``image``.
        texts, colours: caption ("" for none) and BGR colour of each box.
        focus: box in pixels around which to cut, with as much again on each side; None: the whole image.
    """
    height, width = image.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    if focus is not None:
        x1, y1, x2, y2 = focus
        reach = max(x2 - x1, y2 - y1, 32)
        left, top = max(0, int(x1 - reach)), max(0, int(y1 - reach))
        right, bottom = min(width, int(x2 + reach)), min(height, int(y2 + reach))
        if right <= left or bottom <= top:  # a box wholly outside
            left, top, right, bottom = 0, 0, width, height
    cut = image[top:bottom, left:right]
    scale = side / max(cut.shape[:2])
    size = [max(1, round(length * scale)) for length in cut.shape[1::-1]]
    cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
    framed = np.full((side, side, 3), _GREY, np.uint8)
    framed[: size[1], : size[0]] = draw_boxes(cut, moved, texts, colours)
    return framed


def contact_sheet(tiles: Sequence[np.ndarray], columns: int = 6) -> np.ndarray:
    """Tiles of one size in rows, two pixels apart: uint8[height, width, 3]."""
    side, gap = tiles[0].shape[0], 2
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * (side + gap) - gap, columns * (side + gap) - gap, 3), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (side + gap) * (i // columns), (side + gap) * (i % columns)
        sheet[y : y + side, x : x + side] = tile
    return sheet
