"""The figure that needs no data says what its text says: boxes that do not touch, taken for a hit."""

from __future__ import annotations

import numpy as np

from docs.figures import draw_pixel
from utils.box_utils import ious


def test_one_pixel_makes_a_hit_of_boxes_that_do_not_touch():
    box, other = np.array([[0.1, 0.4, 0.2, 0.5]]), np.array([[0.35, 0.4, 0.45, 0.5]])
    assert ious(box, other, 0)[0, 0] == 0
    # Shared (1 - 0.15) x 1.1 of two areas of 1.1 x 1.1.
    shared = 0.85 * 1.1
    overlap = ious(box, other, 1)[0, 0]
    assert abs(overlap - shared / (2 * 1.21 - shared)) < 1e-9 and overlap > 0.5
    assert len(draw_pixel().axes) == 2
