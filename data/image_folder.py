"""The images that a list names: where they are and how large."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from utils.background import map_ahead
from utils.cli import DataError

_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 turn the image on its side


def image_folder(list_path: str | os.PathLike, given: str | os.PathLike | None = None) -> Path:
    """Folder of a list's images: the given one, else ``images`` beside the list.

    Raises:
        DataError: no such folder.
    """
    folder = Path(given) if given is not None else Path(list_path).parent / "images"
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; give the images' folder with --images, or make it with link"
        )
    return folder


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) in pixels as `utils.images.read_image` gives it, read from the file's header.

    Raises:
        DataError: no such file or not an image.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(_ORIENTATION, 1) >= 5
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
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
