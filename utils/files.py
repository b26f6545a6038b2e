"""Atomic files: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import DataError


@contextmanager
def scratch_path(folder: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Yields a free file name in ``folder``, which is made; the file is removed when the block ends."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it replaces ``path`` when the block ends without error.

    The temporary name keeps the suffix, since image writers choose the format by it. Missing parent
    folders are made. On an error the temporary file is removed and ``path`` stays as it was.
    """
    path = Path(path)
    with scratch_path(path.parent, path.suffix) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Holds ``folder``, which is made, for this process alone; the lock ends with the process.

    Raises:
        DataError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another run is writing to this folder; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
