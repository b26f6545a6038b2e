"""Boxes drawn on images, readable at any size, contact sheets of such images, and parts hidden for good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from math import ceil, floor

import cv2
import numpy as np

_GREY = 40
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_PIXELS = 22  # cap height of this font at scale 1
_NAME_LINE, _NAME_SCALE = 16, 0.36  # of a tile's name: height in pixels, size of the letters

#: Of a tile, in pixels.
SIDE = 240

#: A box grows on each side by this share of its shorter side: chin, ears and hair reach beyond a face.
MARGIN = 0.3


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    keep_clear: np.ndarray | None = None,
) -> np.ndarray:
    """A copy of ``image`` with a frame and a caption a box; later boxes lie over earlier ones.

    A caption stands above its box, inside, below or beside it, where it covers no other caption and no box to
    keep clear; where there is no room for it, it is left out. Those of later boxes find their place first.

    Args:
        image: uint8[height, width, 3], BGR.
        boxes: [N, 4], xyxy in pixels; parts outside of the image are cut.
        texts: N captions, "" for none.
        colours: N BGR colours.
        keep_clear: bool[N]: boxes that no caption may cover, but for their own inside a large one.
    """
    image = image.copy()
    height, width = image.shape[:2]
    line = max(1, round(max(height, width) / 300))
    limit = 4 * max(height, width)
    finite = np.nan_to_num(boxes, nan=0.0, posinf=limit, neginf=-limit)
    corners = finite.clip(-limit, limit).round().astype(int)
    for (x1, y1, x2, y2), colour in zip(corners.tolist(), colours, strict=True):
        thin = max(1, min(abs(x2 - x1), abs(y2 - y1)) // 10)  # a small box stays see-through
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, min(line, thin))

    clear = np.zeros(len(corners), bool) if keep_clear is None else np.asarray(keep_clear, bool)
    corners = np.maximum(corners, 0)
    owner = np.zeros((height, width), np.int32)  # of each pixel: box to keep clear from 1 on, -1 a caption
    for index in np.flatnonzero(clear).tolist():
        x1, y1, x2, y2 = corners[index]
        owner[y1:y2, x1:x2] = index + 1
    caption = _Caption(max(height, width))
    for index in reversed(range(len(corners))):
        if texts[index]:
            size = caption.size(texts[index])
            for left, top in _places(corners[index], size, (height, width), clear[index]):
                there = owner[top : top + size[1], left : left + size[0]]
                if ((there == 0) | (there == index + 1)).all():
                    there[:] = -1
                    caption.draw(image, left, top, texts[index], colours[index])
                    break
    return image


def _places(
    box: np.ndarray, size: tuple[int, int], image_size: tuple[int, int], clear: bool
) -> Iterator[tuple[int, int]]:
    """Left and top of the places for a caption of ``size`` (width, height) at a box, the best first.

    A box to keep clear has its caption inside only where nothing else is left and little of it is covered.
    """
    (x1, y1, x2, y2), (width, height) = box.tolist(), size
    x2, y2 = min(x2, image_size[1]), min(y2, image_size[0])
    above, inside, below = ([(x1, top), (x2 - width, top)] for top in (y1 - height, y1, y2))
    beside = [(x2, y1), (x1 - width, y1)]
    if clear:
        places = [*above, *below, *beside, *(inside if y2 - y1 > 5 * height else [])]
    else:
        places = [*above, *inside, *below, *beside]
    most = image_size[1] - width
    for place in places:
        left, top = place if place in beside else (max(0, min(place[0], most)), place[1])
        if 0 <= left <= most and 0 <= top <= image_size[0] - height:
            yield left, top


class _Caption:
    """Dark text on a coloured ground, its letters by the longer side of the image."""

    def __init__(self, long_side: int) -> None:
        letters = max(9.0, long_side / 85)
        self.scale, self.weight = letters / _FONT_PIXELS, max(1, round(letters / 10))
        self.pad = max(2, round(letters / 4))
        self.height = round(letters) + 2 * self.pad

    def size(self, text: str) -> tuple[int, int]:
        """Width and height in pixels."""
        return cv2.getTextSize(text, _FONT, self.scale, self.weight)[0][0] + 2 * self.pad, self.height

    def draw(self, image: np.ndarray, left: int, top: int, text: str, colour: tuple[int, int, int]) -> None:
        width, height = self.size(text)
        cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), colour, -1)
        baseline = (left + self.pad, top + height - self.pad)
        cv2.putText(image, text, baseline, _FONT, self.scale, (0, 0, 0), self.weight, cv2.LINE_AA)


def hide_boxes(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """A copy of uint8[height, width, 3] in which nothing but the mean colour is left of ``boxes``, [N, 4]
    xyxy in pixels, a little enlarged."""
    image = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in np.asarray(boxes, np.float64).reshape(-1, 4).tolist():
        margin = MARGIN * min(x2 - x1, y2 - y1)
        left, top = max(0, floor(x1 - margin)), max(0, floor(y1 - margin))
        right, bottom = min(width, ceil(x2 + margin)), min(height, ceil(y2 + margin))
        if right > left and bottom > top:
            image[top:bottom, left:right] = image[top:bottom, left:right].mean((0, 1)).round()
    return image


def tile(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[tuple[int, int, int]],
    name: str,
    focus: np.ndarray | None = None,
) -> np.ndarray:
    """A square image with boxes over a line with its name, for a contact sheet: uint8[height, `SIDE`, 3].

    ``image``, ``boxes``, ``texts`` and ``colours`` are as in `draw_boxes`. ``focus`` is a box in pixels
    around which to cut, with as much again on each side.
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
    scale = SIDE / max(cut.shape[:2])
    size = [max(1, round(length * scale)) for length in cut.shape[1::-1]]
    cut = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    moved = (np.asarray(boxes, np.float64).reshape(-1, 4) - [left, top, left, top]) * scale
    framed = np.full((SIDE + _NAME_LINE, SIDE, 3), _GREY, np.uint8)
    framed[: size[1], : size[0]] = draw_boxes(cut, moved, texts, colours)
    shown = name
    while len(shown) > 4 and cv2.getTextSize(shown, _FONT, _NAME_SCALE, 1)[0][0] > SIDE - 6:
        shown = f"...{shown.removeprefix('...')[1:]}"
    baseline = (3, SIDE + _NAME_LINE - 5)
    cv2.putText(framed, shown, baseline, _FONT, _NAME_SCALE, (220, 220, 220), 1, cv2.LINE_AA)
    return framed


def contact_sheet(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Tiles of one size, six in a row, two pixels apart: uint8[height, width, 3]."""
    columns, gap = min(6, len(tiles)), 2
    tiles = [np.pad(tile, ((0, gap), (0, gap), (0, 0))) for tile in tiles]
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)[:-gap, :-gap]


def distinct_colour(number: int) -> tuple[int, int, int]:
    """A bright BGR colour for each number from 0 on, unlike those of the numbers beside it."""
    turn = number * 0.618034 % 1  # the golden ratio spreads hues evenly, however many there are
    red, green, blue = hsv_to_rgb(turn, 0.75, 1 - 0.25 * (number // 5 % 2))
    return round(255 * blue), round(255 * green), round(255 * red)


def hex_colour(colour: tuple[int, int, int]) -> str:
    """A BGR colour as figures take it: ``#rrggbb``."""
    return "#{2:02x}{1:02x}{0:02x}".format(*colour)
