"""Names of images: the key that an image's files share, folders and lists of them, and what a command line
names as input: images, videos and cameras.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Set
from pathlib import Path

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


#: A name that is absolute, goes up, or has blanks at its ends: its file may lie outside of a folder.
LEADS_OUT = r"^[/\s]|\s$|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)"


def leads_out(name: str) -> bool:
    """Whether an image's name fits `LEADS_OUT`."""
    return re.search(LEADS_OUT, name) is not None


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
