"""Training augmentation: each function on cases worked out by hand, the whole against the plain version."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import data_augment
from data.data_augment import TrainTransform
from tests.plain import training as plain_training

NO_BOXES = np.zeros((0, 4), np.float32)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_a_crop_keeps_boxes_by_their_centre_and_cuts_them():
    boxes = np.float32([[0, 0, 10, 10], [8, 8, 20, 20], [28, 28, 34, 36], [5, 5, 15, 15], [10, 12, 10, 20]])
    cut, labels = data_augment.boxes_in_window(boxes, np.arange(1, 6), (10, 10, 20, 20), drop=True)
    # The centre of the fourth lies on the border, the fifth has no width.
    assert labels.tolist() == [2]
    assert cut.tolist() == [[0, 0, 10, 10]]


def test_a_crop_of_nothing():
    cut, labels = data_augment.boxes_in_window(NO_BOXES, np.zeros(0, np.int64), (0, 0, 5, 5), drop=True)
    assert cut.shape == (0, 4) and labels.shape == (0,)
    crop = data_augment.choose_crop((40, 60), NO_BOXES, np.random.default_rng(0))
    assert crop is not None


def test_a_crop_shows_a_part_of_an_ignore_region():
    boxes = np.float32([[0, 0, 15, 15], [0, 0, 15, 15], [12, 12, 18, 18], [0, 0, 10, 10], [14, 14, 40, 40]])
    cut, labels = data_augment.boxes_in_window(
        boxes, np.array([2, -2, 2, -1, -1]), (10, 10, 20, 20), drop=True
    )
    # The first box has its centre outside, the region at its place stays in part, the fourth only touches.
    assert labels.tolist() == [-2, 2, -1]
    assert cut.tolist() == [[0, 0, 5, 5], [2, 2, 8, 8], [4, 4, 20, 20]]


def test_no_crop_is_chosen_for_an_ignore_region():
    image, boxes = noise(40, 80), np.float32([[0, 0, 80, 40], [30, 10, 32, 12]])
    for seed in range(9):
        chance = np.random.default_rng(seed)
        _, boxes_norm, labels = TrainTransform(32)(image, boxes, np.array([2, -1]), chance)
        assert labels.tolist() == [2, -1] and boxes_norm[0, 3] == 0.5


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_a_chosen_crop_lies_in_the_image_and_holds_a_box_whole(height, width, count, seed):
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    crop = data_augment.choose_crop((height, width), boxes, rng)
    if crop is None:
        assert count
        return
    left, top, side = crop
    assert min(left, top) >= 0 and left + side <= width and top + side <= height and side >= 1
    if count:
        moved = boxes - np.float32([left, top, left, top])
        assert ((moved >= 0) & (moved <= side)).all(1).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_a_window_stays_in_its_limits_and_near_the_image(height, width, count, seed):
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
    window = data_augment.choose_window((height, width), boxes, 64, (0.5, 2.0), 1.5, rng)
    assert all(0.3 * min(height, width) - 1 < side < 1.5 * max(height, width) + 1 for side in window[2:])
    for start, side, whole in zip(window[:2], window[2:], (width, height), strict=True):
        # Within the image, or the image within it.
        assert min(0, whole - side) <= start <= max(0, whole - side)
    assert data_augment.cut_window(noise(height, width), window, rng).shape == (window[3], window[2], 3)


def test_a_window_scales_by_the_factors_asked_for():
    rng = np.random.default_rng(0)
    windows = [
        data_augment.choose_window((1000, 1000), NO_BOXES, 400, (0.5, 1.0), 2.0, rng) for _ in range(300)
    ]
    width, height = 400 / np.array(windows)[:, 2:].T
    scale, stretch = np.sqrt(width * height), height / width
    assert 0.495 < scale.min() < 0.52 and 0.96 < scale.max() < 1.01
    assert 0.495 < stretch.min() < 0.52 and 1.9 < stretch.max() < 2.02


def test_beyond_the_image_a_window_shows_the_mean_colour():
    class Still:
        def random(self):
            return 0.9

    image = noise(4, 6)
    shown = data_augment.cut_window(image, (-2, 1, 9, 3), Still())
    assert np.array_equal(shown[:, 2:8], image[1:4])
    assert (shown[:, [0, 1, 8]] == (104, 117, 123)).all()


def test_what_a_window_cuts_or_makes_small_is_unknown():
    boxes = np.float32([[0, 0, 15, 15], [12, 12, 22, 22], [0, 0, 10, 10], [14, 14, 40, 40], [12, 12, 17, 13]])
    labels = np.array([2, 2, 1, -1, 1])
    cut, found = data_augment.boxes_in_window(boxes, labels, (10, 10, 20, 10), (2.5, 1.25))
    # The centre of the first is outside, the third only touches, the last is 1 px high: 4 after resizing.
    assert found.tolist() == [-2, 2, -1, -1]
    assert cut.tolist() == [[0, 0, 5, 5], [2, 2, 12, 10], [4, 4, 20, 10], [2, 2, 7, 3]]
    assert data_augment.boxes_in_window(NO_BOXES, labels[:0], (0, 0, 9, 9))[0].shape == (0, 4)


def test_a_window_is_resized_to_the_square():
    image, boxes = noise(40, 80), np.float32([[0, 0, 80, 40]])
    transform = TrainTransform(32, scales=(0.2, 0.2), aspect=1.0)
    out, boxes_norm, labels = transform(image, boxes, np.array([2]), np.random.default_rng(1))
    # 32 / 0.2 is 160, more than 1.5 times the long side: the window is 120 px wide and high.
    assert out.shape == (32, 32, 3) and labels.tolist() == [2]
    np.testing.assert_allclose(boxes_norm[0, 2:] - boxes_norm[0, :2], [80 / 120, 40 / 120], atol=1e-6)


def test_a_image_whose_boxes_fit_no_crop_is_padded():
    image, boxes = noise(40, 80), np.float32([[0, 0, 80, 40]])
    out, boxes_norm, labels = TrainTransform(32)(image, boxes, np.array([2]), np.random.default_rng(1))
    assert out.shape == (32, 32, 3) and out.dtype == np.uint8
    assert labels.tolist() == [2]
    np.testing.assert_allclose(boxes_norm, [[0, 0, 1, 0.5]], atol=1e-6)


def test_mirror_twice_is_the_image():
    image, boxes = noise(6, 9), np.float32([[1, 2, 4, 5]])
    once, moved = data_augment.mirror(image, boxes)
    assert moved.tolist() == [[5, 2, 8, 5]]
    twice, back = data_augment.mirror(once, moved)
    assert np.array_equal(twice, image) and np.array_equal(back, boxes)


def test_pad_fills_the_right_with_the_mean():
    padded = data_augment.pad_to_square(noise(4, 2))
    assert padded.shape == (4, 4, 3) and (padded[:, 2:] == (104, 117, 123)).all()
    assert np.array_equal(padded[:, :2], noise(4, 2))
    square = noise(3, 3)
    assert data_augment.pad_to_square(square) is square


def test_zoom_out_moves_boxes_with_the_image():
    image = noise(10, 20)
    canvas, boxes = data_augment.zoom_out(image, np.float32([[0, 0, 20, 10]]), 2.5, np.random.default_rng(3))
    assert canvas.shape == (25, 50, 3)
    left, top, right, bottom = boxes[0].astype(int)
    assert np.array_equal(canvas[top:bottom, left:right], image)


@pytest.mark.parametrize("delta, factor", [(-31.7, 0.5), (0.0, 1.0), (12.3, 1.49), (32, 0.77)])
def test_tables_equal_the_plain_arithmetic(delta, factor):
    levels = np.arange(256, dtype=np.uint8)
    for arguments in ({"shift": delta}, {"factor": factor}):
        expected = plain_training.scale_and_shift(levels, **arguments)
        assert np.array_equal(data_augment.level_table(**arguments), expected)


@pytest.mark.parametrize("hue, saturation", [(0, 1.0), (-18, 0.6), (17, 1.4)])
def test_hue_and_saturation_equal_the_plain_arithmetic(hue, saturation):
    image = noise(20, 30)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    hsv[:, :, 1] = plain_training.scale_and_shift(hsv[:, :, 1], saturation)
    hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + hue) % 180
    expected = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    assert np.array_equal(data_augment.shift_hue_and_saturation(image, hue, saturation), expected)


@pytest.mark.parametrize("interpolation", data_augment.INTERPOLATIONS)
def test_resizing_is_opencv_s(interpolation):
    image = cv2.GaussianBlur(noise(50, 50), (3, 3), 0)
    ours = data_augment.resize(image, 70, interpolation).astype(int)
    exact = cv2.resize(image, (70, 70), interpolation=interpolation).astype(int)
    assert np.abs(ours - exact).max() <= 1  # Lanczos goes through float32


def test_the_same_seed_gives_the_same_sample():
    image, boxes = noise(60, 80), np.float32([[10, 10, 30, 40]])
    one, same, other = (
        TrainTransform(48, zoom_out=2)(image, boxes, np.array([1]), np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0], other[0])


def test_samples_are_spread_like_the_plain_version_s():
    """Boxes, their sizes and the brightness of many samples have the same means, within chance."""
    image = cv2.resize(noise(9, 12), (160, 120), interpolation=cv2.INTER_CUBIC)
    boxes = np.float32([[20, 20, 40, 50], [100, 30, 112, 44], [60, 70, 150, 118]])
    labels = np.array([1, 1, 2])
    random.seed(0)
    transform, found = TrainTransform(32), {"ours": [], "plain": []}
    for i in range(600):
        pictures = {
            "ours": transform(image, boxes, labels, np.random.default_rng(i)),
            "plain": plain_training.augment(image, boxes.astype(float), labels, 32),
        }
        for name, (picture, kept, _) in pictures.items():
            sizes = kept[:, 2:] - kept[:, :2]
            level = picture.mean() + (np.mean((104, 117, 123)) if name == "plain" else 0)
            found[name].append([len(kept), sizes.mean(), kept[:, 0].mean(), level, picture.std()])
    ours, plain = (np.array(found[name]) for name in ("ours", "plain"))
    error = np.sqrt(ours.var(0) / len(ours) + plain.var(0) / len(plain))
    assert (np.abs(ours.mean(0) - plain.mean(0)) < 4 * error).all()
