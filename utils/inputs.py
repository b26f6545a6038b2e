"""What a person names on the command line, as images, videos and cameras."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from utils.cli import DataError, UsageError, warn
from utils.files import read_text
from utils.image_names import IMAGE_SUFFIXES, WRITABLE_SUFFIXES, files_below
from utils.images import read_size

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


def expand_inputs(inputs: Iterable[str]) -> tuple[list[Source], list[str]]:
    """Sources of any mix of images, folders (recursive), globs, ``.txt`` lists, videos and cameras.

    A line of a list is relative to the list's folder or else to the current one. A file named twice is taken
    once. Of several inputs, as a shell makes of ``folder/*``, those that are there but hold no image or video
    are left out with one warning; of a single one that is a fault.

    Returns:
        The sources in the order given (folders and globs sorted), and a message for each that gave none.
    """
    inputs = list(inputs)
    sources: list[Source] = []
    faults: list[str] = []
    skipped: list[str] = []
    seen: set[str] = set()
    outputs: set[Path] = set()
    for text in inputs:
        found = _expand(text)
        if isinstance(found, str):
            if len(inputs) > 1 and os.path.exists(text):  # noqa: PTH110 - of any length
                skipped.append(text)
            else:
                faults.append(found)
            continue
        for kind, path, output in found:
            if kind == "other" and len(inputs) + len(found) > 2:
                skipped.append(str(path))
                continue
            key = str(path) if kind == "camera" else os.path.realpath(path)
            if key not in seen:
                seen.add(key)
                kind = "image" if kind == "other" else kind
                sources.append(Source(kind, str(path), _unique(_output(kind, output), outputs)))
    if skipped:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        message = f"no image or video in {len(skipped)} of the inputs ({names})"
        if sources:
            warn(f"{message}; left out")
        else:
            faults.append(message)
    return sources, faults


def _expand(text: str, listed: bool = False) -> list[tuple[str, str | Path, Path]] | str:
    """(kind, path, output) of one input, or what is wrong with it."""
    try:
        return _look_up(text, listed)
    except OSError as error:  # e.g. a name that is too long
        return f"{text}: {error.strerror}"


def _look_up(text: str, listed: bool) -> list[tuple[str, str | Path, Path]] | str:
    path = Path(text)
    if path.is_dir():
        files = files_below(path, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        found = [(_kind(path / file), path / file, Path(file)) for file in files]
        return found or f"{text}: no image or video in this folder"
    if path.is_file() and path.suffix.lower() == ".txt" and not listed:
        return _read_list(path)
    if path.is_file():
        return [(_kind(path), path, Path(path.name))]
    if text.isdecimal() and len(text) < 5:
        return [("camera", text, Path(f"camera{text}"))]
    if "://" in text:
        return [("camera", text, Path("stream"))]
    if glob.has_magic(text):
        found = [(_kind(file), file, Path(file.name)) for file in _matches(text)]
        return found or f"{text}: no file fits this pattern"
    return f"{text}: no such file or folder"


def _read_list(path: Path) -> list[tuple[str, str | Path, Path]] | str:
    try:
        lines = [line.strip() for line in read_text(path, "a list with one image a line").split("\n")]
    except DataError as error:
        return str(error)
    lines = list(filter(None, lines))
    if lines and not _may_be_source(lines[0], path.parent):
        return f"{path}: not a list of images; its first line, {lines[0][:60]!r}, names none"
    found: list[tuple[str, str | Path, Path]] = []
    for line in lines:
        beside = path.parent / line
        # A line that names nothing stays a source, so that reading it reports the file.
        entry = _expand(str(beside if os.path.exists(beside) else line), listed=True)  # noqa: PTH110 - of any length
        found += [("image", line, Path(Path(line).name))] if isinstance(entry, str) else entry
    return found or f"{path}: an empty list; expected one image a line"


def _may_be_source(line: str, folder: Path) -> bool:
    """Whether a line of a list names something that is there, or could be an image, a video or a stream."""
    there = os.path.exists(folder / line) or os.path.exists(line)  # noqa: PTH110 - of any length
    return there or "://" in line or Path(line).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def _matches(pattern: str) -> list[Path]:
    """Regular files that a pattern fits, sorted; ``**`` follows no links, which may lead in circles."""
    if "**" not in pattern:
        names = glob.glob(pattern)  # noqa: PTH207 - any pattern, absolute ones too
        return [path for path in map(Path, sorted(names)) if path.is_file()]
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:first]), [*parts[first:], *["*"] * (parts[-1] == "**")]
    found = sorted(path for path in base.glob("/".join(rest)) if path.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(base).parts)]


def _kind(path: Path) -> str:
    """``video`` or ``image`` by the ending, else by the content, or ``other``."""
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
