"""Names of images: the key that an image's files share, folders and lists of them, and what a command line
names as input: images, videos and cameras.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from utils.cli import DataError, UsageError
from utils.files import read_text

#: File name endings that are taken for images; any other ending is part of the name.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "gif", "bmp", "dib", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2"),
    )
)

#: Endings that annotated images keep; every other is written as JPEG.
WRITABLE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})


def image_key(path: str) -> str:
    """An image's path without its suffix and without `/` or `./` in front: the name that its files share."""
    name = path.replace("\\", "/").lstrip("/").removeprefix("./")
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else name


def image_of(folder: Path, key: str) -> Path:
    """The image of a key in ``folder``, whatever its suffix; ``key.jpg`` where there is none."""
    for suffix in (".jpg", *sorted(IMAGE_SUFFIXES - {".jpg"}), ".JPG"):
        path = folder / f"{key}{suffix}"
        if path.is_file():
            return path
    return folder / f"{key}.jpg"


def is_odd(path: str) -> bool:
    """Whether an image suffix is in a path, but not at its end.

    The published list has five such lines, e.g. ``/6ff9809f93ee9ae9.jpg.2888Ac4d``.
    """
    *inner, last = path.lower().rsplit("/", 1)[-1].split(".")
    return f".{last}" not in IMAGE_SUFFIXES and any(f".{part}" in IMAGE_SUFFIXES for part in inner[1:])


def read_image_list(path: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Image paths that a text file names, one a line, and the lines that are `is_odd`.

    Paths may have a slash in front. Of an annotation list, which begins with ``#``, the lines with a path are
    taken.

    Raises:
        DataError: no such file, or not text.
    """
    text = read_text(path, "a list with one image a line")
    lines = [line.strip() for line in text.split("\n")]
    if text.lstrip().startswith("#"):
        lines = [line[1:].strip() for line in lines if line.startswith("#")]
    named = [line for line in lines if line and not is_odd(line)]
    return named, [line for line in lines if is_odd(line)]


def images_below(folder: str | os.PathLike) -> list[str]:
    """Paths of all images below ``folder``, relative to it and sorted; links to folders are followed."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        found += [
            (relative / name).as_posix()
            for name in files
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)


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
        for source in found:
            key = source.path if source.kind == "camera" else os.path.realpath(source.path)
            if key not in sources:
                sources[key] = replace(source, output=_unique(source.output, outputs))
    return list(sources.values()), faults


def _look_up(text: str, listed: bool = False) -> list[Source]:
    """What one input, or one line of a list, leads to.

    Raises:
        DataError: nothing.
    """
    path, found = Path(text), []
    try:
        if path.is_dir():
            found = [_source(file, file.relative_to(path)) for file in _files_below(path)]
            nothing = "no image or video in this folder"
        elif path.is_file():
            is_list = path.suffix.lower() == ".txt" and not listed
            found = _read_list(path) if is_list else [_source(path)]
            nothing = "an empty list; expected one image a line"
        elif text.isdecimal() and len(text) < 5:
            return [Source("camera", text, Path(f"camera{text}.mp4"))]
        elif "://" in text:
            return [Source("camera", text, Path("stream.mp4"))]
        elif glob.has_magic(text):
            files = [Path(name) for name in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207
            found = [_source(file) for file in files if file.is_file()]
            nothing = "no file fits this pattern"
        else:
            nothing = "no such file or folder"
    except OSError as error:  # e.g. a name that is too long
        nothing = error.strerror
    if not found:
        raise DataError(f"{text}: {nothing}")
    return found


def _read_list(path: Path) -> list[Source]:
    found: list[Source] = []
    for line in map(str.strip, read_text(path, "a list with one image a line").split("\n")):
        if not line:
            continue
        beside = path.parent / line
        try:
            found += _look_up(str(beside if os.path.exists(beside) else line), listed=True)  # noqa: PTH110
        except DataError:  # stays a source, so that reading it reports the file
            found.append(_source(Path(line)))
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return (
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )


def _source(path: Path, output: Path | None = None) -> Source:
    """The image or video in a file; its output gets an ending that can be written."""
    output = Path(path.name) if output is None else output
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return Source("video", str(path), output.with_suffix(".mp4"))
    is_writable = path.suffix.lower() in WRITABLE_SUFFIXES
    return Source("image", str(path), output if is_writable else output.with_suffix(".jpg"))


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
