"""Labelled boxes of many images, as the evaluators take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data.annotations import ImageAnnotation
from data.predictions import corners, offsets_of
from utils.image_names import image_key


@dataclass
class Truths:
    """Boxes of many images, those of image i in rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        images: key of each image (see `utils.image_names.image_key`), each once.
        offsets: int64[I + 1], ascending from 0 to G.
        boxes_xywh: float64[G, 4], in the unit of the detections.
        labels: int64[G], 1 face, 2 person.
        group_of: bool[G], boxes that enclose a group; none where it is not given.
        verified: by label, bool[I]: images of which it is known whether they show the class; a label that
            is not in it is known everywhere.
    """

    images: list[str]
    offsets: np.ndarray
    boxes_xywh: np.ndarray
    labels: np.ndarray
    group_of: np.ndarray | None = None
    verified: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.group_of is None:
            self.group_of = np.zeros(len(self.labels), bool)

    @classmethod
    def from_annotations(cls, annotations: Sequence[ImageAnnotation]) -> Truths:
        """Normalised boxes of an annotation list."""
        return cls(
            [image_key(annotation.path) for annotation in annotations],
            offsets_of(map(len, annotations)),
            np.concatenate([np.zeros((0, 4)), *(annotation.boxes_xywh_norm for annotation in annotations)]),
            np.concatenate([np.zeros(0, np.int64), *(annotation.labels for annotation in annotations)]),
        )

    @property
    def image_index(self) -> np.ndarray:
        """int64[G]: the image of each box."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.offsets))

    @property
    def boxes(self) -> np.ndarray:
        """float64[G, 4]: x1 y1 x2 y2."""
        return corners(self.boxes_xywh)

    def of_class(self, label: int) -> Truths:
        """The boxes of one class; images stay as they are, in number and order."""
        keep = self.labels == label
        ends = np.concatenate([[0], np.cumsum(keep)])
        return Truths(
            self.images,
            ends[self.offsets],
            self.boxes_xywh[keep],
            self.labels[keep],
            self.group_of[keep],
            self.verified,
        )

    def take(self, images: Sequence[int]) -> Truths:
        """The images at some indices, in that order; an index may come twice."""
        images = np.asarray(images, np.int64)
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(self.offsets[i], self.offsets[i + 1]) for i in images)]
        )
        return Truths(
            [self.images[i] for i in images],
            offsets_of(np.diff(self.offsets)[images]),
            self.boxes_xywh[rows],
            self.labels[rows],
            self.group_of[rows],
            {label: known[images] for label, known in self.verified.items()},
        )
