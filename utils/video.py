"""Videos and cameras: frames in, mp4 files out, a window to watch."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from utils.cli import DataError, UsageError
from utils.files import atomic_path
from utils.threads import Stopwatch


def frames(
    capture: cv2.VideoCapture, stopwatch: Stopwatch, pace: float | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and frames until there are no more, at most ``pace`` of them a second."""
    start = time.perf_counter()
    for index in count():
        with stopwatch("read"):
            done, frame = capture.read()
        if not done:
            return
        if pace:
            time.sleep(max(0.0, start + index / pace - time.perf_counter()))
        yield index, frame


@contextmanager
def video_file(path: Path, rate: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray], None]]:
    """Yields ``write(frame)``; the mp4 file appears under its name at the end of the block.

    Raises:
        DataError: it cannot be written, or not as a whole.
    """
    with atomic_path(path) as temporary:
        video = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        if not video.isOpened():
            raise DataError(f"{path}: a video of {size[0]}x{size[1]} pixels cannot be written here")
        frames = 0

        def write(frame: np.ndarray) -> None:
            nonlocal frames
            video.write(frame)
            frames += 1

        try:
            yield write
        finally:
            video.release()
        written = cv2.VideoCapture(str(temporary))
        found = max(0, int(written.get(cv2.CAP_PROP_FRAME_COUNT)))
        written.release()
        if found != frames:  # OpenCV does not tell of a disk that is full
            raise DataError(f"{path}: {found} of {frames} frames could be written; is the disk full?")


def check_display() -> None:
    """Raises UsageError where no window can be opened."""
    if sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise UsageError("--show: there is no display here (DISPLAY is not set)")


class Stopped(Exception):
    """The user closed the window."""


def show(image: np.ndarray, wait: int) -> None:
    """Shows an image for ``wait`` milliseconds (0: until a key); q stops everything."""
    try:
        cv2.imshow("detections", image)
        key = cv2.waitKey(wait) & 0xFF
    except cv2.error:
        raise UsageError("--show: this OpenCV opens no windows (opencv-python-headless does not)") from None
    if key == ord("q"):
        raise Stopped
