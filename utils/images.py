"""Images: reading any file into BGR, writing, sizes; figures; frames of videos and cameras."""

from __future__ import annotations

import os
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.cli import DataError, UsageError
from utils.files import atomic_path, reading
from utils.threads import Stopwatch, map_ahead

try:
    import cv2
except ImportError as error:
    raise ImportError(
        f"{error}; OpenCV needs system libraries that are missing: install them (Debian: libgl1 libglib2.0-0 "
        f"libxcb1), or use opencv-python-headless instead of opencv-python"
    ) from None

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Endings of plots.
FIGURE_SUFFIXES = (".png", ".svg", ".pdf")

# Twice this limit is refused, see `read_image`; what lies between is no reason for two lines on the terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image as uint8[height, width, 3], BGR, turned upright by its EXIF orientation.

    Grey, 16-bit, transparent and CMYK images are converted; of an animation the first frame is taken. A small
    file may claim any size, so one of more than twice ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million pixels
    in all) is not decoded.

    Raises:
        DataError: no such file, empty, not an image, cut off, or too large.
    """
    _check_file(path)
    with reading(path, "an image"):
        content = np.fromfile(path, np.uint8)
    if not content.size:
        raise DataError(f"{path}: an empty file; expected an image")
    try:
        Image.open(path).close()  # reads the header alone
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except Exception:  # Pillow's readers of formats raise whatever they stumble on
        pass  # OpenCV may know better
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
    except cv2.error:  # e.g. more pixels than OpenCV allows
        image = None
    if image is None or _may_be_cut_off(content):
        image = _read_carefully(path, image)
    return image


def _too_large(path: str | os.PathLike, error: Image.DecompressionBombError) -> DataError:
    return DataError(f"{path}: {str(error).partition(', ')[0]}; make it smaller")


def _check_file(path: str | os.PathLike) -> None:
    """Raises DataError for what is no regular file: reading a pipe or a device might never end."""
    with reading(path, "an image"):
        mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise DataError(f"{path}: {what}; expected an image")


def to_bgr(image: str | os.PathLike | Image.Image | np.ndarray, rgb: bool = False) -> np.ndarray:
    """An image in any form as `read_image` gives it, uint8[height, width, 3], BGR: a path, an image of
    Pillow, which is turned upright by its EXIF orientation, or an array, whose channels may be ``rgb``."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        image, rgb = np.asarray(ImageOps.exif_transpose(image).convert("RGB")), True
    return np.ascontiguousarray(image[..., ::-1]) if rgb else image


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``image`` in a smaller (height, width): halved while that goes, the rest in between; near to the mean
    of the area that each pixel takes, and five times as fast."""
    height, width = image.shape[:2]
    while height >= 2 * size[0] and width >= 2 * size[1]:
        height, width = height // 2, width // 2
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def _may_be_cut_off(content: np.ndarray) -> bool:
    """Whether a JPEG lacks its end marker; OpenCV fills what is missing with grey and goes on."""
    head, tail = content[:2].tobytes(), content[-32:].tobytes().rstrip(b"\0\r\n \t")
    return head == b"\xff\xd8" and not tail.endswith(b"\xff\xd9")


def _read_carefully(path: str | os.PathLike, decoded: np.ndarray | None) -> np.ndarray:
    """What OpenCV failed on or may have got wrong, judged by Pillow, which refuses incomplete files."""
    try:
        with Image.open(path) as file:
            file.load()
            if decoded is not None:
                return decoded
            return to_bgr(file)
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image, or of a format that cannot be read") from None
    except Exception as error:  # Pillow's readers of formats raise whatever they stumble on
        raise DataError(f"{path}: a damaged image ({' '.join(str(error).split())})") from None


def write_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8[height, width, 3], BGR, atomically, in the format of the file name's ending; DataError
    where that cannot be written or cannot hold an image of that size."""
    path = Path(path)
    try:
        done, content = cv2.imencode(path.suffix, image)
    except cv2.error:
        done = False
    if not done:
        what = f"an image of {image.shape[1]}x{image.shape[0]} pixels"
        raise DataError(f"{path}: {what} cannot be written as {path.suffix or 'no format'}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.data)  # unlike tofile, it tells why it cannot be written


def write_figure(path: str | os.PathLike, figure: Figure, dots_per_inch: int) -> None:
    """Writes a figure of matplotlib, atomically, in the format of the file name's ending; UsageError where
    that is none of a figure."""
    if Path(path).suffix.lower() not in FIGURE_SUFFIXES:
        raise UsageError(f"{path}: expected a name that ends with {', '.join(FIGURE_SUFFIXES)}")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dots_per_inch)


_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image on its side


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` gives it, read from the file's header; DataError where there
    is none or it is too large for `read_image`."""
    _check_file(path)
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(_ORIENTATION, 1) >= 5
    except Image.DecompressionBombError as error:
        raise _too_large(path, error) from None
    except Exception:  # Pillow's readers of formats raise whatever they stumble on
        raise DataError(f"{path}: not an image, or damaged") from None
    return (width, height) if turned else (height, width)


def read_sizes(folder: Path, names: Iterable[str]) -> Iterator[tuple[int, int] | DataError]:
    """`read_size` of each name, in order, read by several threads; an error in place of a size."""

    def size(name: str) -> tuple[int, int] | DataError:
        try:
            return read_size(folder / name)
        except DataError as error:
            return error

    return map_ahead(size, names, workers=4, ahead=64)


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
    """Yields ``write(frame)``; the mp4 file appears under its name at the end of the block. DataError where
    it cannot be written as a whole."""
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
