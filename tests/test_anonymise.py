"""Nothing of what is hidden can be restored."""

import numpy as np
import pytest

from utils.anonymise import hide_boxes

NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)


def test_nothing_to_hide():
    hidden = hide_boxes(NOISE, np.zeros((0, 4)))
    assert np.array_equal(hidden, NOISE) and hidden is not NOISE


@pytest.mark.parametrize(
    ("box", "area"),
    [
        ([40, 30, 80, 70], np.s_[18:82, 28:92]),
        ([40, 30, 60, 110], np.s_[24:116, 34:66]),
        ([-30, -20, 20, 20], np.s_[:32, :32]),
        ([150, 100, 400, 300], np.s_[40:, 90:]),
        ([-1e6, -1e6, 1e6, 1e6], np.s_[:, :]),
        ([50.5, 60.5, 53, 62.5], np.s_[59:64, 49:54]),
    ],
)
def test_one_colour_is_left_of_a_box_and_all_of_the_rest(box, area):
    hidden = hide_boxes(NOISE, np.array([box]))
    assert (hidden[area] == NOISE[area].mean((0, 1)).round()).all()
    rest = np.ones(NOISE.shape[:2], bool)
    rest[area] = False
    assert np.array_equal(hidden[rest], NOISE[rest])


@pytest.mark.parametrize("box", [[10, 10, 5, 5], [200, 10, 300, 50], [-50, -50, -40, -40]])
def test_boxes_without_pixels(box):
    assert np.array_equal(hide_boxes(NOISE, np.array([box])), NOISE)
