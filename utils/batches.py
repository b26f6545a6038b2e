"""Running a detector over many images, some of which may be faulty."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from utils.cli import DataError
from utils.detector import Detections, Detector
from utils.images import read_image

Item = TypeVar("Item")
Key = TypeVar("Key")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one with what is left."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def try_to_read(path: str | os.PathLike) -> np.ndarray | DataError:
    """The image, or why there is none."""
    try:
        return read_image(path)
    except DataError as error:
        return error


def detect_batch(
    detector: Detector, batch: list[tuple[Key, np.ndarray]], fault: Callable[[object], None]
) -> list[tuple[Key, np.ndarray, Detections]]:
    """(key, image, detections) of (key, image) pairs; images too large for the memory go to ``fault``."""
    try:
        found = detector([image for _, image in batch])
    except DataError as error:
        if len(batch) > 1:
            return [triple for pair in batch for triple in detect_batch(detector, [pair], fault)]
        fault(error)
        return []
    return [(key, image, detections) for (key, image), detections in zip(batch, found, strict=True)]
