"""Nothing of what is made unrecognisable can be restored."""

import numpy as np
import pytest

from utils.anonymise import pixelate

NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_nothing_to_hide():
    hidden = pixelate(NOISE, np.zeros((0, 4)))
    assert np.array_equal(hidden, NOISE) and hidden is not NOISE


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([40, 30, 80, 70], np.s_[24:76, 34:86]),
        ([-30, -20, 20, 20], np.s_[:26, :28]),
        ([150, 100, 400, 300], np.s_[70:, 112:]),
        ([-1e6, -1e6, 1e6, 1e6], np.s_[:, :]),
        ([50.5, 60.5, 53, 62], np.s_[60:63, 50:54]),
    ],
)
def test_few_colours_are_left_of_a_box_and_all_of_the_rest(box, area):
    hidden = pixelate(NOISE, np.array([box]))
    inside = hidden[area].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) <= min(16, max(1, len(inside) // 40))
    rest = np.ones(NOISE.shape[:2], bool)
    rest[area] = False
    assert np.array_equal(hidden[rest], NOISE[rest])


@pytest.mark.parametrize("box", [[10, 10, 5, 5], [200, 10, 300, 50], [-50, -50, -40, -40]])
def test_boxes_without_pixels(box):
    assert np.array_equal(pixelate(NOISE, np.array([box])), NOISE)


def test_images_that_differ_within_the_box_alone_become_the_same():
    other = NOISE.copy()
    other[40:48, 50:58] = other[40:48, 50:58][::-1, ::-1]
    box = np.array([[50.0, 40, 58, 48]])
    assert np.array_equal(pixelate(NOISE, box), pixelate(other, box))
