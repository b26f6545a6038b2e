"""Which face belongs to which person, and objects followed over the frames of a video."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from data.predictions import Detections
from utils.box_utils import intersections
from utils.cli import import_package

#: Least score of a detection that goes on with a track, as in ByteTrack (Zhang et al. 2022).
LEAST_SCORE = 0.1

#: Share of a face that must lie in the upper half of its person.
LEAST_INSIDE = 0.5

Item = TypeVar("Item")


def pair_faces(faces: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """The person of each face, xyxy [F, 4] and [P, 4]: int64[F], -1 for none.

    No person has two, and all pairs together fit as well as they can: the better, the more of the face lies
    in the upper half of the person, and the nearer it is to the middle of its edge, in heights of the face.
    """
    faces, persons = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (faces, persons))
    found = np.full(len(faces), -1)
    upper = persons.copy()
    upper[:, 3] = persons[:, [1, 3]].mean(1)
    height = np.maximum(faces[:, 3] - faces[:, 1], 1e-9)
    area = np.maximum((faces[:, 2] - faces[:, 0]) * height, 1e-9)
    inside = intersections(faces, upper) / area[:, None]
    across = (faces[:, None, [0, 2]].mean(2) - persons[None, :, [0, 2]].mean(2)) / height[:, None]
    down = (faces[:, None, 1] - persons[None, :, 1]) / height[:, None]
    fit = np.where(inside >= LEAST_INSIDE, inside / (1 + np.hypot(across, down)), 0)
    face, person = linear_sum_assignment(fit, maximize=True)
    real = fit[face, person] > 0
    found[face[real]] = person[real]
    return found


class Tracker:
    """Gives the objects of a video numbers that stay the same over its frames, by ByteTrack.

    A detection from ``score`` on begins a track; weaker ones can only go on with one.
    """

    def __init__(self, score: float) -> None:
        self._new = import_package("trackers", "--track").ByteTrackTracker
        self._boxes = import_package("supervision", "--track").Detections
        self._score = score
        self._by_class: dict[int, object] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def update(self, found: Detections, seconds: float) -> np.ndarray:
        """Numbers of the detections of the next frame, ``seconds`` after the first, of all scores from
        `LEAST_SCORE` on: int64[N], from 1 on, 0 where there is no track yet."""
        numbers = np.zeros(len(found), np.int64)
        for label in {*found.labels.tolist(), *self._by_class}:
            rows = np.flatnonzero((found.labels == label) & (found.scores >= LEAST_SCORE))
            if label not in self._by_class:
                self._by_class[label] = self._new(
                    track_activation_threshold=self._score,
                    high_conf_det_threshold=self._score,
                    minimum_consecutive_frames=1,
                )
            boxes = self._boxes(xyxy=found.boxes[rows], confidence=found.scores[rows], class_id=rows)
            tracked = self._by_class[label].update(boxes, timestamp=seconds)
            for row, track in zip(tracked.class_id, tracked.tracker_id, strict=True):
                if track >= 0:
                    numbers[row] = self._numbers.setdefault((label, int(track)), len(self._numbers) + 1)
        return numbers


def fill_gaps(
    frames: Iterable[tuple[Item, np.ndarray, np.ndarray]], most: int
) -> Iterator[tuple[Item, np.ndarray]]:
    """Adds the boxes of tracks that were lost for at most ``most`` frames, on the straight line in between.

    Of ``frames``, what stands for each, its boxes [N, 4] and their tracks int[N], 0 for none, ``most`` are
    held back; yields each frame and its boxes, [M, 4].
    """
    waiting: deque[tuple[Item, list[np.ndarray]]] = deque()
    last: dict[int, tuple[int, np.ndarray]] = {}
    for now, (item, boxes, tracks) in enumerate(frames):
        waiting.append((item, list(boxes)))
        for track, box in zip(tracks.tolist(), boxes, strict=True):
            if not track:
                continue
            before, start = last.get(track, (now, box))
            last[track] = now, box
            if now - before - 1 <= most:
                for frame in range(before + 1, now):
                    share = (frame - before) / (now - before)
                    waiting[frame - now - 1][1].append(start + share * (box - start))
        while len(waiting) > most:
            item, boxes = waiting.popleft()
            yield item, np.reshape(boxes, (-1, 4))
    for item, boxes in waiting:
        yield item, np.reshape(boxes, (-1, 4))
