"""Downloads by plain HTTPS: in parallel, retried with growing pauses, resumed; a file is whole or absent.

A file comes as ``<name>.part`` and is renamed once its size is what the server announced; then its SHA-256
goes to ``manifest.csv``. A large part that is left over is continued if the server still has the same file
(``If-Range``), a small one starts anew. So a run that was killed at any moment can be started again.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import random
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from utils.cli import DataError
from utils.files import file_digest, write_text

ANNOTATIONS_URL = "https://storage.googleapis.com/openimages"
IMAGES_URL = "https://open-images-dataset.s3.amazonaws.com"

SPLITS = ("train", "validation", "test")
CLASS_DESCRIPTIONS = "v7/oidv7-class-descriptions-boxable.csv"
BOXES = {
    "train": "v6/oidv6-train-annotations-bbox.csv",
    "validation": "v5/validation-annotations-bbox.csv",
    "test": "v5/test-annotations-bbox.csv",
}
IMAGE_LABELS = "v5/{split}-annotations-human-imagelabels-boxable.csv"
MIAP = "open_images_extended_miap/open_images_extended_miap_boxes_{split}.csv"

MANIFEST = "manifest.csv"
MISSING = "missing.txt"

#: From this size on a part is worth continuing.
RESUME_BYTES = 1 << 20

_CHUNK_BYTES = 1 << 16
_GONE = (403, 404, 410)  # S3 answers 403 for what it does not have, where listing is not allowed
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT = 60.0
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    TimeoutError,
    ConnectionError,
    ssl.SSLError,
)


@dataclass(frozen=True)
class Item:
    """What to download: address, and path below the folder."""

    url: str
    path: str


@dataclass(frozen=True)
class Policy:
    """How hard to try: attempts a file, seconds without data that fail one, seconds of the first pause."""

    tries: int = 6
    timeout: float = 30.0
    wait: float = 0.5


@dataclass
class Summary:
    """Outcome of `download_all`; ``missing`` and ``failed`` hold a reason by path."""

    fetched: int = 0
    there: int = 0
    bytes: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class _Missing(Exception):
    """The server says that there is no such file."""


class _Stopped(Exception):
    """Another thread ended the run."""


def image_item(image_id: str, split: str, base_url: str | None) -> Item:
    """The image of an image id.

    Raises:
        DataError: not an id; it would become part of a path.
    """
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", image_id):
        raise DataError(f"{image_id[:80]!r} is not an image id; expected letters and digits")
    return Item(f"{base_url or IMAGES_URL}/{split}/{image_id}.jpg", f"images/{image_id}.jpg")


def download_all(
    items: Iterable[Item],
    folder: Path,
    policy: Policy = Policy(),
    workers: int = 16,
    progress: Callable[[], object] = lambda: None,
) -> Summary:
    """Downloads what is not there yet below ``folder``.

    Args:
        items: what to download, drawn as needed.
        folder: holds manifest and list of missing files too; for one run at a time (`utils.files.locked`).
        policy: how hard to try.
        workers: downloads at once.
        progress: called after each item.

    Raises:
        DataError: the server refuses for good.
        OSError: a file cannot be written.
    """
    summary = Summary()
    known = read_manifest(folder)
    source = iter(items)
    lock, stop = threading.Lock(), threading.Event()
    errors: list[BaseException] = []
    manifest = _open_manifest(folder)

    def note(item: Item, digest: str, size: int) -> None:
        with lock:
            csv.writer(manifest, lineterminator="\n").writerow([digest, size, item.path])
            manifest.flush()

    def handle(item: Item) -> None:
        path = folder / item.path
        size = path.stat().st_size if path.exists() else 0
        if size and known.get(item.path, ("", size))[1] == size:
            if item.path not in known:  # killed between renaming and noting
                note(item, file_digest(path), size)
            with lock:
                summary.there += 1
            return
        try:
            digest, size = fetch(item.url, path, policy, stop)
        except _Missing as error:
            summary.missing[item.path] = str(error)
        except _NETWORK_ERRORS as error:
            summary.failed[item.path] = str(error) or type(error).__name__
        else:
            note(item, digest, size)
            with lock:
                summary.fetched += 1
                summary.bytes += size

    def work() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(source, None)
                if item is None:
                    return
                handle(item)
                progress()
        except _Stopped:
            pass
        except BaseException as error:  # handed over to the caller
            errors.append(error)
            stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # a join without timeout would hold back Ctrl-C
                thread.join(0.2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        manifest.close()
    if errors:
        raise errors[0]
    lines = [f"{path}\t{reason}\n" for path, reason in sorted(summary.missing.items())]
    write_text(folder / MISSING, "".join(lines))
    return summary


def fetch(url: str, path: Path, policy: Policy, stop: threading.Event | None = None) -> tuple[str, int]:
    """Downloads one file; returns its SHA-256 and size.

    Raises:
        OSError, http.client.HTTPException: all attempts failed, or the file cannot be written.
        DataError: the server refuses for good.
    """
    stop = stop or threading.Event()
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(policy.tries):
        try:
            return _attempt(url, path, policy.timeout, stop)
        except urllib.error.HTTPError as error:
            if error.code in _GONE:
                raise _Missing(f"{error.code} {url}") from None
            if error.code not in _PASSING:
                raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
            failure: Exception = error
            asked = error.headers.get("Retry-After", "")
        except _NETWORK_ERRORS as error:
            failure, asked = error, ""
        except ValueError as error:
            raise DataError(f"{url}: not an address ({error})") from None
        if attempt + 1 < policy.tries:
            pause = policy.wait * 2**attempt * random.uniform(0.5, 1.5)
            if asked.isdecimal():
                pause = max(pause, float(asked))
            if stop.wait(min(pause, _LONGEST_WAIT)):
                raise _Stopped
    raise failure


def _attempt(url: str, path: Path, timeout: float, stop: threading.Event) -> tuple[str, int]:
    part = path.with_name(path.name + ".part")
    tag_file = path.with_name(path.name + ".part.tag")
    tag = tag_file.read_text(encoding="utf-8") if part.exists() and tag_file.exists() else ""
    offset = part.stat().st_size if tag else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "retinaface-2cls"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": tag}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is no beginning of what is there now
            tag_file.unlink(missing_ok=True)
            raise ConnectionError("the server cannot continue the part") from None
        raise
    with response:
        if response.status == 206:
            start, total = _content_range(response.headers.get("Content-Range", ""))
            if start != offset:
                tag_file.unlink(missing_ok=True)
                raise ConnectionError(f"the server continued at {start} in place of {offset}")
        else:
            offset, length = 0, response.headers.get("Content-Length")
            total = int(length) if length is not None and length.isdecimal() else None
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            tag_file.unlink(missing_ok=True)
        digest = hashlib.sha256()
        if offset:
            with part.open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        with part.open("r+b" if offset else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            if not offset and tag and not tag.startswith("W/") and (total or 0) >= RESUME_BYTES:
                tag_file.write_text(tag, encoding="utf-8")
            size = offset
            while chunk := response.read(_CHUNK_BYTES):
                if stop.is_set():
                    raise _Stopped
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
    if total is not None and size != total:
        if size > total:
            tag_file.unlink(missing_ok=True)
        raise ConnectionError(f"{size} of {total} bytes came")
    if not size:
        raise ConnectionError("an empty answer")
    part.replace(path)
    tag_file.unlink(missing_ok=True)
    return digest.hexdigest(), size


def _content_range(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", text)
    if not match:
        raise ConnectionError(f"found Content-Range {text!r}")
    return int(match[1]), None if match[2] == "*" else int(match[2])


def read_manifest(folder: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and size by path; lines that are none, as one cut off by a kill, are passed over.

    Raises:
        DataError: not a text file.
    """
    try:
        with (folder / MANIFEST).open(encoding="utf-8", errors="replace", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3 and len(row[0]) == 64]
    except FileNotFoundError:
        return {}
    except (csv.Error, IsADirectoryError) as error:
        raise DataError(
            f"{folder / MANIFEST}: no manifest ({error}); remove it to check every file"
        ) from None
    return {path: (digest, int(size)) for digest, size, path in rows if re.fullmatch(r"\d{1,18}", size)}


def _open_manifest(folder: Path) -> TextIO:
    path = folder / MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
    file = path.open("a", encoding="utf-8")
    if file.tell() == 0:
        file.write("sha256,size,path\n")
    elif not whole:
        file.write("\n")
    return file


def verify(folder: Path) -> Iterator[str]:
    """Problems of the files in a folder's manifest: gone, of another size, of another content.

    Raises:
        DataError: no manifest.
    """
    known = read_manifest(folder)
    if not known:
        raise DataError(f"{folder / MANIFEST}: no such manifest, or an empty one")
    for name, (digest, size) in known.items():
        path = folder / name
        if not path.exists():
            yield f"{path}: gone"
        elif (found := path.stat().st_size) != size:
            yield f"{path}: {found} bytes, expected {size}"
        elif file_digest(path) != digest:
            yield f"{path}: another content than was downloaded"
