"""Augmentation of training images: small pure functions on uint8 images, and their order.

Images are uint8[height, width, 3], BGR; boxes float32[N, 4], x1 y1 x2 y2 in pixels. Every random choice
comes from the generator that is passed in, so a sample depends on its seed alone. Negative labels are ignore
regions (see `data.annotations`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from data.config import PIXEL_MEAN_BGR

#: Sides of the random square crop as shares of the image's short side.
CROP_SCALES = (0.3, 0.45, 0.6, 0.8, 1.0)

#: Crops tried before the whole image is taken, and judged at once: most images need few.
CROP_ATTEMPTS, CROP_BLOCK = 250, 25

#: Sides of a window: least share of the image's short side, most of its long side.
WINDOW_LIMITS = (0.3, 1.5)

#: Windows tried until one holds a box whole.
WINDOW_ATTEMPTS = 25

INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_LANCZOS4)

_LEVELS = np.arange(256, dtype=np.float64)


@dataclass(frozen=True)
class TrainTransform:
    """What a training image goes through: zoom out, crop, colours, pad, mirror, resize.

    With ``scales`` a window of any size and place takes the part of zoom out, crop and pad.

    Attributes:
        image_size: side of the square result in pixels.
        zoom_out: every second image is put on a canvas of up to this many times its size (1: none is).
        scales: least and greatest factor by which a window is resized, see `choose_window`; None: crops.
        aspect: with ``scales``, width and height are resized by factors that differ by up to this one.
        min_box: with ``scales``, boxes whose shorter side would be below this many pixels in the result
            become ignore regions.
    """

    image_size: int
    zoom_out: float = 1.0
    scales: tuple[float, float] | None = None
    aspect: float = 1.0
    min_box: float = 0.0

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """uint8[image_size, image_size, 3], ``boxes_norm`` float32[M, 4] within 0..1, labels int64[M]."""
        cut = self._cut_crop if self.scales is None else self._cut_window
        image, boxes, labels = cut(image, boxes, labels, rng)
        if rng.random() < 0.5:
            image, boxes = mirror(image, boxes)
        boxes_norm = boxes / np.float32([image.shape[1], image.shape[0]] * 2)
        image = resize(image, self.image_size, INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))])
        return image, boxes_norm.astype(np.float32), labels

    def _cut_crop(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.zoom_out > 1 and rng.random() < 0.5:
            image, boxes = zoom_out(image, boxes, rng.uniform(1, self.zoom_out), rng)
        crop = choose_crop(image.shape[:2], boxes[labels > 0], rng)
        if crop is None:
            return pad_to_square(distort_colours(image, rng)), boxes, labels
        left, top, side = crop
        image = distort_colours(image[top : top + side, left : left + side], rng)
        return image, *boxes_in_window(boxes, labels, (left, top, side, side), drop=True)

    def _cut_window(
        self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        window = choose_window(
            image.shape[:2], boxes[labels > 0], self.image_size, self.scales, self.aspect, rng
        )
        image = cut_window(image, window, rng)
        least = [self.min_box * side / self.image_size for side in window[2:]]
        return image, *boxes_in_window(boxes, labels, window, least)


def zoom_out(
    image: np.ndarray, boxes: np.ndarray, factor: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Puts an image at a random place on a canvas ``factor`` times its size, filled with the mean colour."""
    down, right = (int(side * factor) - side for side in image.shape[:2])
    top, left = int(rng.integers(down + 1)), int(rng.integers(right + 1))
    canvas = _with_border(image, top, down - top, left, right - left)
    return canvas, boxes + np.float32([left, top, left, top])


def choose_crop(
    size: tuple[int, int], boxes: np.ndarray, rng: np.random.Generator
) -> tuple[int, int, int] | None:
    """Left, top and side of a random square that holds one of the boxes whole, any square where there is no
    box; None if none of `CROP_ATTEMPTS` will do. ``size`` is (height, width) of the image.
    """
    height, width = size
    for _ in range(CROP_ATTEMPTS // CROP_BLOCK):
        side = (rng.choice(CROP_SCALES, CROP_BLOCK) * min(height, width)).astype(np.int64).clip(1)
        left = (rng.random(CROP_BLOCK) * np.maximum(width - side, 1)).astype(np.int64)
        top = (rng.random(CROP_BLOCK) * np.maximum(height - side, 1)).astype(np.int64)
        if not len(boxes):
            return int(left[0]), int(top[0]), int(side[0])
        x1, y1, x2, y2 = boxes.T
        right, bottom = (left + side)[:, None], (top + side)[:, None]
        inside = (x1 >= left[:, None]) & (y1 >= top[:, None]) & (x2 <= right) & (y2 <= bottom)
        if inside.any():
            first = inside.any(1).argmax()
            return int(left[first]), int(top[first]), int(side[first])
    return None


def choose_window(
    size: tuple[int, int],
    boxes: np.ndarray,
    image_size: int,
    scales: tuple[float, float],
    aspect: float,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a window to be resized to a square, at a random place, that holds a box
    whole if one of `WINDOW_ATTEMPTS` does.

    Its scale is uniform in the logarithm, so that objects are seen as often small as large, whatever the size
    of the photo. A window may reach beyond the image, at most to `WINDOW_LIMITS` of its sides.

    Args:
        size: (height, width) of the image.
        boxes: float32[N, 4]; an image without boxes takes any window.
        image_size: side of the square.
        scales, aspect: as in `TrainTransform`.
    """
    height, width = size
    low, high = WINDOW_LIMITS[0] * min(size), WINDOW_LIMITS[1] * max(size)
    for _ in range(WINDOW_ATTEMPTS):
        side = image_size / math.exp(rng.uniform(*np.log(scales)))
        stretch = math.exp(rng.uniform(-0.5, 0.5) * math.log(aspect))
        sides = (min(max(side * factor, low), high) for factor in (stretch, 1 / stretch))
        window_width, window_height = (max(round(length), 1) for length in sides)
        rooms = width - window_width, height - window_height
        left, top = (int(rng.integers(min(0, room), max(0, room) + 1)) for room in rooms)
        x1, y1, x2, y2 = boxes.T
        inside = (x1 >= left) & (y1 >= top) & (x2 <= left + window_width) & (y2 <= top + window_height)
        if inside.any() or not len(boxes):
            break
    return left, top, window_width, window_height


def cut_window(image: np.ndarray, window: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """What a window shows of the image, with other colours, and the mean colour beyond its edges."""
    left, top, width, height = window
    right, bottom = left + width, top + height
    shown = distort_colours(image[max(top, 0) : bottom, max(left, 0) : right], rng)
    beyond = (-top, bottom - image.shape[0], -left, right - image.shape[1])
    return _with_border(shown, *(max(side, 0) for side in beyond))


def boxes_in_window(
    boxes: np.ndarray,
    labels: np.ndarray,
    window: tuple[int, int, int, int],
    least: tuple[float, float] = (0, 0),
    drop: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and ignore regions cut to a window (left, top, width, height): float32[M, 4] in it, int64[M].

    A box whose centre lies outside, or that is smaller than ``least`` (width, height), becomes an ignore
    region or, with ``drop``, is left out.
    """
    left, top, width, height = window
    moved = boxes - np.float32([left, top, left, top])
    centres = (moved[:, :2] + moved[:, 2:]) / 2
    cut = moved.clip(0, np.float32([width, height, width, height]))
    sides = cut[:, 2:] - cut[:, :2]
    inside = ((centres > 0) & (centres < (width, height))).all(1) & (sides >= least).all(1)
    shown = (sides > 0).all(1) & (inside | (labels < 0) | (not drop))
    return cut[shown], np.where(inside, labels, -np.abs(labels))[shown]


def distort_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue at random, each every second time (SSD, Liu et al. 2016).

    Contrast comes first or last, by chance. Equal to doing each step on the image, in one look-up
    where steps follow each other.
    """
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue = int(rng.integers(-18, 19)) if rng.random() < 0.5 else 0
    contrast_first = rng.random() < 0.5

    table = level_table(shift=brightness)
    if contrast_first:
        table = level_table(contrast)[table]
    if contrast_first or brightness:
        image = cv2.LUT(image, table)
    if saturation != 1 or hue:
        image = shift_hue_and_saturation(image, hue, saturation)
    if not contrast_first and contrast != 1:
        image = cv2.LUT(image, level_table(contrast))
    return image


def level_table(factor: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """uint8[256]: every level times ``factor`` plus ``shift``, clipped, rounded down."""
    return (_LEVELS * factor + shift).clip(0, 255).astype(np.uint8)


def shift_hue_and_saturation(image: np.ndarray, hue: int, saturation: float) -> np.ndarray:
    """Turns the hue by ``hue`` of OpenCV's 180 steps and multiplies the saturation."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    turned = ((np.arange(256) + hue) % 180).astype(np.uint8)
    for channel, table, changes in ((0, turned, hue != 0), (1, level_table(saturation), saturation != 1)):
        if changes:
            cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, channel), table), hsv, channel)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)


def pad_to_square(image: np.ndarray) -> np.ndarray:
    """Fills the right or the bottom with the mean colour until the image is square."""
    height, width = image.shape[:2]
    return _with_border(image, 0, max(width - height, 0), 0, max(height - width, 0))


def mirror(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Swaps left and right."""
    width = np.float32(image.shape[1])
    flipped = boxes.copy()
    flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    return cv2.flip(image, 1), flipped


def resize(image: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    """A square image of ``side`` pixels.

    Lanczos goes through float32, where OpenCV is twice as fast; a level may differ by one from rounding.
    """
    if interpolation != cv2.INTER_LANCZOS4:
        return cv2.resize(image, (side, side), interpolation=interpolation)
    exact = cv2.resize(image.astype(np.float32), (side, side), interpolation=interpolation)
    return cv2.addWeighted(exact, 1, exact, 0, 0, dtype=cv2.CV_8U)  # a rounded and clipped cast


def _with_border(image: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """The image with so many pixels of the mean colour around it, itself where that is none."""
    if not (top or bottom or left or right):
        return image
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=PIXEL_MEAN_BGR)
