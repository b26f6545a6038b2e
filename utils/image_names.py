"""Names of images: the key that an image's files share, folders and lists of them, and what a person names on
the command line as images, videos and cameras.
"""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Iterable, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils.cli import DataError, UsageError, some_of, warn
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

#: A name that is absolute, goes up, or has blanks at its ends: its file may lie outside of a folder.
LEADS_OUT = r"^[/\s]|\s$|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)"


def leads_out(name: str) -> bool:
    """Whether an image's name fits `LEADS_OUT`."""
    return re.search(LEADS_OUT, name) is not None


def check_image_name(name: str, place: str) -> str:
    """``name`` if it can stand in an annotation list and leads to an image below a folder; else a DataError
    that begins with ``place``."""
    if not name or re.search(r"[\n\r\0\ud800-\udfff]", name):
        what = "has no name of one line of UTF-8 text"
    elif leads_out(name):
        what = "leads out of its folder"
    else:
        return name
    raise DataError(
        f"{place}: the image {name!r:.80} {what}; expected a path below the images' folder, without '..' "
        f"and blanks at its ends; rename the file"
    )


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


def read_image_list(path: str | os.PathLike) -> list[str]:
    """Images that a text file names, one a line, each once; warns of lines that repeat or are `is_odd`.

    Paths may have a slash in front. Of an annotation list, which begins with ``#``, the lines with a path are
    taken.
    """
    text = read_text(path, "a list with one image a line")
    lines = [line.strip() for line in text.split("\n")]
    if text.lstrip().startswith("#"):
        lines = [line[1:].strip() for line in lines if line.startswith("#")]
    if odd := [line for line in lines if is_odd(line)]:
        warn(f"{path}: {some_of(odd, 'lines name no image and are skipped')}")
    named = [line.lstrip("/") for line in lines if line and not is_odd(line)]
    unique = list(dict.fromkeys(named))
    if len(unique) < len(named):
        warn(f"{path}: {len(named) - len(unique)} images are named again and taken once")
    return unique


def files_below(folder: str | os.PathLike, suffixes: Set[str]) -> list[str]:
    """Paths of the regular files with one of these endings below ``folder``, relative to it and sorted.

    Hidden ones are left out. Links to folders are followed, but each folder is taken once, in its own place
    where that is below ``folder``, so that links in a circle come to an end.
    """
    found, seen = [], set()
    folders = deque([""])
    while folders:
        place = folders.popleft()
        try:
            status = Path(folder, place).stat()
            entries = list(os.scandir(Path(folder, place)))
        except OSError:  # one that cannot be read
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{place}/{entry.name}" if place else entry.name
            if entry.is_dir():
                (folders.append if entry.is_symlink() else folders.appendleft)(path)  # links at last
            elif entry.is_file() and Path(entry.name).suffix.lower() in suffixes:
                found.append(path)
    return sorted(found)


def images_below(folder: str | os.PathLike) -> list[str]:
    """`files_below` that are images."""
    return files_below(folder, IMAGE_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """An ``image``, ``video`` or ``camera``: file, camera index or stream address, and the relative path for
    what is written of it, unique in a run; below a named folder it repeats the folder's layout."""

    kind: str
    path: str
    output: Path


def expand_inputs(inputs: Iterable[str]) -> tuple[list[Source], list[str]]:
    """Sources of any mix of images, folders (recursive), globs, ``.txt`` lists, videos and cameras.

    A line of a list is relative to the list's folder or else to the current one. A file named twice is taken
    once. Of several inputs, as a shell makes of ``folder/*``, those that are there but hold no image or video
    are left out with one warning; of a single one that is a fault.

    Returns:
        The sources in the order given (folders and globs sorted), and a message for each that gave none.
    """
    inputs = list(inputs)
    sources: dict[str, Source] = {}
    faults: list[str] = []
    skipped: list[str] = []
    outputs: set[Path] = set()
    for text in inputs:
        try:
            found = _look_up(text)
        except (DataError, OSError) as error:  # e.g. a name that is too long
            if len(inputs) > 1 and _exists(text):
                skipped.append(text)
            else:
                faults.append(str(error) if isinstance(error, DataError) else f"{text}: {error.strerror}")
            continue
        for kind, path, output in found:
            if kind == "other" and len(inputs) + len(found) > 2:
                skipped.append(str(path))
                continue
            key = str(path) if kind == "camera" else os.path.realpath(path)
            if key not in sources:
                kind = "image" if kind == "other" else kind
                sources[key] = Source(kind, str(path), _unique(_output(kind, output), outputs))
    if skipped:
        message = f"no image or video in {len(skipped)} of the inputs ({', '.join(skipped[:3])})"
        if sources:
            warn(f"{message}; left out")
        else:
            faults.append(message)
    return list(sources.values()), faults


def _look_up(text: str, listed: bool = False) -> list[tuple[str, str | Path, Path]]:
    """(kind, path, output) of what one input names; DataError where there is nothing."""
    path = Path(text)
    if path.is_dir():
        files = files_below(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        found = [(_kind(path / file), path / file, Path(file)) for file in files]
        what = "no image or video in this folder"
    elif path.is_file():
        if path.suffix.lower() == ".txt" and not listed:
            return _read_list(path)
        return [(_kind(path), path, Path(path.name))]
    elif text.isdecimal() and len(text) < 5:
        return [("camera", text, Path(f"camera{text}"))]
    elif "://" in text:
        return [("camera", text, Path("stream"))]
    else:
        found = [(_kind(file), file, Path(file.name)) for file in _matches(text)]
        what = "no file fits this pattern" if glob.has_magic(text) else "no such file or folder"
    if not found:
        raise DataError(f"{text}: {what}")
    return found


def _read_list(path: Path) -> list[tuple[str, str | Path, Path]]:
    lines = [line.strip() for line in read_text(path, "a list with one image a line").split("\n")]
    lines = list(filter(None, lines))
    if not lines:
        raise DataError(f"{path}: an empty list; expected one image a line")
    first, beside = lines[0], path.parent
    may_be_source = "://" in first or Path(first).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
    if not (may_be_source or _exists(beside / first) or _exists(first)):
        raise DataError(f"{path}: not a list of images; its first line, {first[:60]!r}, names none")
    found = []
    for line in lines:
        try:
            found += _look_up(str(beside / line) if _exists(beside / line) else line, listed=True)
        except (DataError, OSError):  # it stays a source, so that reading it reports the file
            found.append(("image", line, Path(Path(line).name)))
    return found


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - of any length


def _matches(pattern: str) -> list[Path]:
    """Regular files that a pattern fits, sorted, no hidden ones; ``**`` follows no links."""
    parts = Path(pattern).parts
    first = next((place for place, part in enumerate(parts) if glob.has_magic(part)), None)
    if first is None:
        return []
    base, rest = Path(*parts[:first]), [*parts[first:], *["*"] * (parts[-1] == "**")]
    found = sorted(path for path in base.glob("/".join(rest)) if path.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(base).parts)]


def _kind(path: Path) -> str:
    """``video`` or ``image`` by the ending, else by the content, or ``other``."""
    from utils.images import read_size  # here, because OpenCV takes a while to import

    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix not in IMAGE_SUFFIXES:
        try:
            read_size(path)
        except DataError:
            return "other"
    return "image"


def _output(kind: str, path: Path) -> Path:
    """``path`` with an ending that can be written."""
    if kind != "image":
        return path.with_suffix(".mp4")
    return path if path.suffix.lower() in WRITABLE_SUFFIXES else path.with_suffix(".jpg")


def _unique(path: Path, taken: set[Path]) -> Path:
    """``path``, numbered from the second of its name on, whatever the ending: texts have none of it."""
    candidate, number = path, 1
    while candidate.with_suffix("") in taken:
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    taken.add(candidate.with_suffix(""))
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
