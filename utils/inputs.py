"""What a person names on the command line, as images, videos and cameras."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils.cli import DataError, UsageError
from utils.files import read_text
from utils.image_names import IMAGE_SUFFIXES
from utils.images import WRITABLE_SUFFIXES

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})


@dataclass(frozen=True)
class Source:
    """One image, video or camera.

    Attributes:
        kind: ``image``, ``video`` or ``camera``.
        path: file, camera index or stream address.
        output: relative path for what is written of it, unique in a run; below a named folder it repeats
            the folder's layout.
    """

    kind: str
    path: str
    output: Path


#: What an input leads to: kind, file or address, and the path below the output folder.
Found = tuple[str, str | Path, Path]


def expand_inputs(inputs: Iterable[str]) -> tuple[list[Source], list[str]]:
    """Sources of any mix of images, folders (recursive), globs, ``.txt`` lists, videos and cameras.

    A line of a list is relative to the list's folder or else to the current one. A file named twice is taken
    once.

    Returns:
        The sources in the order given (folders and globs sorted), and a message for each that gave none.
    """
    sources: dict[str, Source] = {}
    faults: list[str] = []
    outputs: set[Path] = set()
    for text in inputs:
        try:
            found = _look_up(text)
        except DataError as error:
            faults.append(str(error))
            continue
        for kind, path, output in found:
            key = str(path) if kind == "camera" else os.path.realpath(path)
            if key not in sources:
                sources[key] = Source(kind, str(path), _unique(_writable(kind, output), outputs))
    return list(sources.values()), faults


def _look_up(text: str, listed: bool = False) -> list[Found]:
    """What one input, or one line of a list, leads to.

    Raises:
        DataError: nothing.
    """
    path, found = Path(text), []
    try:
        if path.is_dir():
            found = [(_kind(file), file, file.relative_to(path)) for file in _files_below(path)]
            nothing = "no image or video in this folder"
        elif path.is_file():
            is_list = path.suffix.lower() == ".txt" and not listed
            found = _read_list(path) if is_list else [(_kind(path), path, Path(path.name))]
            nothing = "an empty list; expected one image a line"
        elif text.isdecimal() and len(text) < 5:
            return [("camera", text, Path(f"camera{text}"))]
        elif "://" in text:
            return [("camera", text, Path("stream"))]
        elif glob.has_magic(text):
            files = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
            found = [(_kind(file), file, Path(file.name)) for file in files if file.is_file()]
            nothing = "no file fits this pattern"
        else:
            nothing = "no such file or folder"
    except OSError as error:  # e.g. a name that is too long
        nothing = error.strerror
    if not found:
        raise DataError(f"{text}: {nothing}")
    return found


def _read_list(path: Path) -> list[Found]:
    found: list[Found] = []
    for line in map(str.strip, read_text(path, "a list with one image a line").split("\n")):
        if not line:
            continue
        beside = path.parent / line
        try:
            found += _look_up(str(beside if os.path.exists(beside) else line), listed=True)  # noqa: PTH110
        except DataError:  # stays a source, so that reading it reports the file
            found.append(("image", line, Path(Path(line).name)))
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return (
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def _kind(path: Path) -> str:
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"


def _writable(kind: str, path: Path) -> Path:
    """``path`` with an ending that can be written."""
    if kind != "image":
        return path.with_suffix(".mp4")
    return path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".jpg")


def _unique(path: Path, taken: set[Path]) -> Path:
    """``path``, numbered from the second of its name on."""
    candidate, number = path, 1
    while candidate in taken:
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    taken.add(candidate)
    return candidate


def sample_photos() -> list[str]:
    """Public-domain photos that installed packages bring: Grace Hopper, and the astronaut Eileen Collins."""
    import matplotlib

    photos = [Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"]
    with suppress(ImportError):
        import skimage

        photos.append(Path(skimage.__file__).parent / "data" / "astronaut.png")
    found = [str(photo) for photo in photos if photo.exists()]
    if not found:
        raise UsageError("no sample photo is installed; name an image: python3 detect.py photo.jpg")
    return found
