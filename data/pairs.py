"""Which face belongs to which person."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from utils.box_utils import intersections

#: Share of a face that must lie in the upper half of its person.
LEAST_INSIDE = 0.5


def pair_faces(faces: np.ndarray, persons: np.ndarray) -> np.ndarray:
    """The person of each face; no person has two, and all pairs together fit as well as they can.

    A pair fits the better, the more of the face lies in the upper half of the person, and the nearer it is to
    the middle of the person's upper edge, in heights of the face.

    Args:
        faces: [F, 4], xyxy.
        persons: [P, 4], xyxy.

    Returns:
        int64[F]: index of the person, -1 for none.
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
