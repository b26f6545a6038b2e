"""Tracks over frames, and the gaps in them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from data.outputs import Tracker, fill_gaps, pair_faces
from data.predictions import Detections
from utils.cli import UsageError


def detections(*rows: tuple) -> Detections:
    """Of rows x1 y1 x2 y2 score label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_numbers_stay_over_gaps_and_weak_frames():
    pytest.importorskip("trackers", reason="the package trackers is not installed")
    tracker = Tracker(0.5)
    assert tracker.update(detections(), 0).tolist() == []
    numbers = []
    for frame in range(1, 9):
        x = 10 + 2 * frame
        face = (x, 10, x + 40, 60, 0.2 if frame == 6 else 0.9, 1)
        person, weak = (10, 10, 100, 200, 0.8, 2), (200, 200, 220, 220, 0.3, 1)
        lost = frame in (4, 5)
        numbers.append(tracker.update(detections(*[face][lost:], person, weak), frame / 25).tolist())
    assert numbers[0] == [0, 0, 0]  # a track begins with the second frame
    assert numbers[1:3] == [[1, 2, 0]] * 2
    assert numbers[3:5] == [[2, 0]] * 2
    assert numbers[5:] == [[1, 2, 0]] * 3


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(UsageError, match="pip install trackers"):
        Tracker(0.5)


def filled(frames: list[list[tuple]], most: int) -> list[list[list[float]]]:
    """Boxes of frames given as (track, x1): [x1, 0, x1 + 10, 10]."""
    stream = (
        (
            number,
            np.array([[x, 0, x + 10, 10] for _, x in frame], np.float32).reshape(-1, 4),
            np.array([track for track, _ in frame], np.int64),
        )
        for number, frame in enumerate(frames)
    )
    items, boxes = zip(*fill_gaps(stream, most), strict=True)
    assert list(items) == list(range(len(frames)))
    assert all(found.shape[1] == 4 for found in boxes)
    return [found[:, 0].tolist() for found in boxes]


def test_no_frame_and_no_box():
    assert list(fill_gaps([], 3)) == []
    assert filled([[], []], 3) == [[], []]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (3, [[0], [10], [20], [30], [40], [50]]),
        (9, [[0], [10], [20], [30], [40], [50]]),
        (2, [[0], [], [], [], [40], [50]]),
        (0, [[0], [], [], [], [40], [50]]),
    ],
)
def test_gaps_are_filled_up_to_a_length(most, expected):
    assert filled([[(7, 0)], [], [], [], [(7, 40)], [(7, 50)]], most) == expected


def test_boxes_without_a_track_and_other_tracks_are_left_alone():
    frames = [[(0, 5), (1, 0)], [(2, 8)], [(0, 9), (1, 20)]]
    assert filled(frames, 5) == [[5, 0], [8, 10], [9, 20]]


def test_no_more_frames_are_held_back_than_asked_for():
    drawn = []

    def frames():
        for number in range(10):
            drawn.append(number)
            yield number, np.zeros((0, 4)), np.zeros(0, np.int64)

    for item, _ in fill_gaps(frames(), 2):
        assert len(drawn) - 1 - item <= 2


# Faces and their persons


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
