"""Text files that people give, and atomic files: a reader sees the old file or the whole new one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.cli import DataError

#: Errors of writing that do not name their file.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it replaces ``path`` when the block ends without error.

    The temporary name keeps the suffix, since image writers choose the format by it. Missing parent folders
    are made. On an error the temporary file is removed and ``path`` stays as it was.
    """
    path = output_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if error.errno in _NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def output_path(path: str | os.PathLike) -> Path:
    """The path of a file to write, if it can be one; worth asking before the work.

    Raises:
        DataError: it is a folder, or a name that no file can have.
    """
    path = Path(path)
    try:
        what = "a folder" if path.is_dir() else ""
    except OSError as error:  # e.g. a name that is too long
        what = str(error.strerror)
    if what:
        raise DataError(f"{path}: {what}; expected the name of a file to write")
    return path


#: Descriptors of the folders that this process has locked.
_held: set[int] = set()


def _let_go() -> None:
    """A forked process, e.g. one that reads images, is not the one that holds the folders."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Holds ``folder``, which is made, for this process alone; the lock ends with the process.

    Temporary files that a killed run has left below it are removed.

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
            what = "another run is writing to this folder; wait for it to end, or take another"
            raise DataError(f"{folder}: {what}") from None
        _held.add(descriptor)
        _sweep(folder)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Removes the temporary files of processes that are gone."""
    for path in folder.rglob(".tmp-*"):
        number = path.name.split("-")[1]
        try:
            os.kill(int(number), 0)  # asks, and signals nothing
        except (ProcessLookupError, OverflowError):
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):  # it is running, or this is no file of ours
            pass


@contextmanager
def reading(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Makes a DataError of the system's own in the block: ``path`` is not there, a folder or cannot be read.

    ``what`` is what it should be, e.g. "a list of images".
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected {what}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected {what}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); expected {what}") from None


def read_text(path: str | os.PathLike, what: str) -> str:
    """The content of a text file, UTF-8 with or without byte order mark; every line ends with a newline
    character alone.

    Raises:
        DataError: see `reading`; not text, with the line.
    """
    with reading(path, what):
        content = Path(path).read_bytes()
    try:
        text, odd = content.decode("utf-8-sig"), content.find(b"\0")
    except UnicodeDecodeError as error:
        odd = error.start
    if odd >= 0:
        line = content.count(b"\n", 0, odd) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text; expected {what}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike, what: str) -> object:
    """The content of a JSON file; ``what`` and errors as in `read_text`, besides DataError: not JSON."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); expected {what}") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content; errors as `reading`."""
    with reading(path, "a file"), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
