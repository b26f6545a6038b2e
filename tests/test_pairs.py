"""Faces and their persons, by cases made by hand."""

import numpy as np
import pytest

from data.pairs import pair_faces

STANDING = [100, 100, 200, 400]
FACE = [130, 110, 170, 160]  # of STANDING


@pytest.mark.parametrize(
    ("faces", "persons", "expected"),
    [
        ([], [], []),
        ([], [STANDING], []),
        ([FACE], [], [-1]),
        ([FACE], [STANDING], [0]),
        # Beside the person, at its feet, half out of it.
        ([[300, 110, 340, 160]], [STANDING], [-1]),
        ([[130, 340, 170, 390]], [STANDING], [-1]),
        ([[185, 110, 225, 160]], [STANDING], [-1]),
        # A portrait: the face fills most of the person.
        ([[20, 20, 80, 110]], [[0, 0, 100, 150]], [0]),
        # Two faces in one person: the one in the middle.
        ([[105, 110, 125, 135], FACE], [STANDING], [-1, 0]),
        # A child before an adult: its face lies in both, and its own box fits better.
        ([[130, 210, 160, 245]], [STANDING, [110, 200, 180, 400]], [1]),
        # The best for all: the left face fits both persons, the right one only the first.
        ([[150, 105, 180, 145], [185, 110, 215, 150]], [[130, 100, 240, 400], [100, 100, 190, 400]], [1, 0]),
        # Boxes without area.
        ([[5, 5, 5, 5]], [[0, 0, 0, 0]], [-1]),
    ],
)
def test_pairs(faces, persons, expected):
    found = pair_faces(
        np.array(faces, np.float32).reshape(-1, 4), np.array(persons, np.float32).reshape(-1, 4)
    )
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_the_order_of_boxes_does_not_matter():
    rng = np.random.default_rng(0)
    persons = rng.uniform(0, 300, (8, 4)).astype(np.float32)
    persons[:, 2:] = persons[:, :2] + rng.uniform(50, 300, (8, 2))
    faces = persons.copy()
    faces[:, 2:] = faces[:, :2] + (persons[:, 2:] - persons[:, :2]) / 3
    order = rng.permutation(8)
    found = pair_faces(faces, persons)
    assert (found >= 0).all() and len(set(found.tolist())) == 8
    assert np.array_equal(order[pair_faces(faces, persons[order])], found)
