"""Downloads in parallel, retried and resumed, and unpacking of archives: a file is whole or absent.

A file comes as ``<name>.part`` and is renamed when all of it is there. A large part that is left over is
continued if the server still has the same file (``If-Range``), a small one starts anew. So a run that was
killed at any moment can be started again.
"""

from __future__ import annotations

import argparse
import errno
import random
import re
import shutil
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from data.config import CLASS_LABELS
from utils.cli import BAD_DATA, OK, DataError, Number, UsageError, count, option, print_rows, printable, warn
from utils.files import atomic_path, file_digest, locked, read_text, write_text
from utils.image_names import leads_out
from utils.threads import map_ahead

ANNOTATIONS_URL = "https://storage.googleapis.com/openimages"
IMAGES_URL = "https://open-images-dataset.s3.amazonaws.com"

SPLITS = ("train", "validation", "test")
BOXES = {
    "train": "v6/oidv6-train-annotations-bbox.csv",
    "validation": "v5/validation-annotations-bbox.csv",
    "test": "v5/test-annotations-bbox.csv",
}
CLASS_DESCRIPTIONS = "v7/oidv7-class-descriptions-boxable.csv"
IMAGE_LABELS = "v5/{split}-annotations-human-imagelabels-boxable.csv"
MIAP = "open_images_extended_miap/open_images_extended_miap_boxes_{split}.csv"

#: SHA-256 of the published files that commands of this project take, at one commit of the original.
WEIGHTS_URL = (
    "https://raw.githubusercontent.com/NN-RTK/Pytorch_Retinaface_2cls/"
    "0a749f4a4cb5878590ee78944539314c03667a8a/weights"
)
WEIGHTS = {
    "mobilenetV1X0.25_pretrain.tar": "75c37f8d438b7c6aed2e6b310fd0540c40dabf0dd820770bd7082668dfd7c1c1",
    "mobilenet0.25_Final.pth": "2979b33ffafda5d74b6948cd7a5b9a7a62f62b949cef24e95fd15d2883a65220",
    "mobilenet0.25_2cls6anchors_130324_epoch_150.pth": (
        "ebe9e24b57a8a4820bfb6a355869095912303086d3f040d9f6369e2d55b03ad8"
    ),
}

#: WIDER FACE asks for a person to fetch it; these are its parts and where its authors keep them.
WIDER_FACE = """WIDER FACE is downloaded by hand, from the links on its authors' page:

  http://shuoyang1213.me/WIDERFACE/

  WIDER_train.zip      1.47 GB  training images
  WIDER_val.zip        363 MB   validation images
  wider_face_split.zip 3.6 MB   annotation text
  eval_tools.zip       official evaluation, with the ground truth of the three difficulties

Then: python3 prep_data.py unpack WIDER_train.zip WIDER_val.zip wider_face_split.zip --save_folder wider"""

#: Written beside the files: their sums, for ``sha256sum -c``, and what the server does not have.
SUMS, MISSING = "SHA256SUMS", "missing.txt"

TRIES = 6
WAIT = 0.5  # seconds before the second attempt, doubled before every further one
_LONGEST_WAIT = 60.0
_TIMEOUT = 30.0  # seconds without data
_LEAST_SPEED = 1000  # bytes a second
_CHUNK_BYTES = 1 << 16
_RESUME_BYTES = 1 << 20  # from this size on a part is worth continuing
_MOST_IMAGE_BYTES, _MOST_BYTES = 1 << 26, 1 << 34
_MOST_UNPACKED_BYTES = 10_000_000_000

#: Parts of the longest path in an archive; those of WIDER FACE have four.
_MOST_FOLDERS = 100
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "retinaface-2cls"}
_GONE = (403, 404, 410)  # S3 answers 403 for what it does not have, where listing is not allowed
_PASSING = (408, 425, 429, 500, 502, 503, 504)


def download_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what")
    option(group, "--split", "part of Open Images", choices=SPLITS)
    option(group, "--weights", "the published weights instead, checked by their SHA-256")
    classes = list(CLASS_LABELS)
    option(group, "--classes", "images with a box of these", default=classes, nargs="+", choices=classes)
    option(group, "--limit", "at most the first N images (default: all)", count)
    option(group, "--image_labels", "also the image-level labels")
    option(group, "--miap", "also the MIAP boxes, which have all persons")
    group = parser.add_argument_group("how")
    mirror = "a mirror with the layout of the official servers (default: these)"
    option(group, "--base_url", mirror, str, metavar="URL")
    option(group, "--num_workers --workers", "downloads at once", Number(int, 1, 256), 16)
    group = parser.add_argument_group("output")
    folder = "a folder with the name of the split is made in it (default with --weights: weights)"
    option(group, "--save_folder --name", folder, Path, metavar="FOLDER")


def download(args: argparse.Namespace) -> int:
    """Downloads Open Images, box CSV and images, by plain HTTPS. What is there already stays; a run that was
    cut off goes on where it was. `sha256sum -c SHA256SUMS` in the folder of the split finds files that
    changed. With --weights it downloads the published weights, which training and pseudo-labels start from.

    Example:
      python3 prep_data.py download --split validation --save_folder datasets/open_images --limit 1000
      python3 prep_data.py download --weights
    """
    if args.weights:
        folder = args.save_folder or Path("weights")
        with locked(folder):
            download_weights(folder, (args.base_url or WEIGHTS_URL).rstrip("/"))
        return OK
    if args.split is None or args.save_folder is None:
        raise UsageError("expected --split and --save_folder, or --weights")
    folder = args.save_folder / args.split
    names = {"class-descriptions.csv": CLASS_DESCRIPTIONS, "boxes.csv": BOXES[args.split]}
    if args.image_labels:
        names["image-labels.csv"] = IMAGE_LABELS.format(split=args.split)
    if args.miap:
        names["miap-boxes.csv"] = MIAP.format(split="val" if args.split == "validation" else args.split)
    with locked(folder):
        base = (args.base_url or ANNOTATIONS_URL).rstrip("/")
        if not _download({name: f"{base}/{url}" for name, url in names.items()}, folder, 2):
            return BAD_DATA
        from data.open_images import image_ids, label_of_ids  # takes a while to import

        labels = label_of_ids(args.classes, folder / "class-descriptions.csv")
        base, urls = (args.base_url or IMAGES_URL).rstrip("/"), {}
        for image_id in islice(image_ids(folder / "boxes.csv", labels), args.limit):
            if not re.fullmatch(r"[0-9A-Za-z_-]{1,64}", image_id):
                raise DataError(f"{image_id[:80]!r} is not an image id; expected letters and digits")
            urls[f"images/{image_id}.jpg"] = f"{base}/{args.split}/{image_id}.jpg"
        return OK if _download(urls, folder, args.num_workers) else BAD_DATA


def download_weights(folder: Path, base_url: str) -> None:
    """Downloads what is missing of `WEIGHTS`; a file takes its name when its content is the published one."""
    with _session(1) as session:
        for name, published in WEIGHTS.items():
            path, new, url = folder / name, folder / f".{name}.new", f"{base_url}/{name}"
            is_there = path.exists()
            try:
                digest = file_digest(path) if is_there else fetch(url, new, session, threading.Event())[0]
            except requests.RequestException as error:
                answer = printable(str(error)) if error.response is not None else "no answer"
                what = f"{answer}; try again, or put the file there yourself: {path}"
                raise DataError(f"{url}: {what}") from None
            if digest != published:
                new.unlink(missing_ok=True)
                place = f"{path}, which is there already" if is_there else url
                what = f"SHA-256 {digest}, expected {published}; it is not the published file"
                raise DataError(f"{place}: {what}")
            if not is_there:
                new.replace(path)
            print(f"{path}: {'there already' if is_there else 'downloaded'}, SHA-256 as published")


def _download(urls: Mapping[str, str], folder: Path, workers: int) -> bool:
    """Downloads and prints what happened; whether all is there that the server has."""
    summary = download_all(urls, folder, workers)
    see = f", see {folder / MISSING}" if summary.missing else ""
    rows = {
        "files downloaded": f"{summary.fetched} ({summary.bytes / 1e6:.1f} MB)",
        "there already": summary.there,
        "not on the server": f"{len(summary.missing)}{see}",
        "failed": len(summary.failed),
    }
    print_rows(rows.items())
    for path, reason in islice(summary.failed.items(), 5):
        warn(f"{path}: {reason}")
    if summary.failed:
        warn(f"{len(summary.failed)} files are not there yet; start the same command again")
    for path, reason in summary.missing.items():
        if path.endswith(".csv"):
            raise DataError(f"{reason}: the server does not have it; check --base_url")
    return not summary.failed


@dataclass
class Summary:
    """Outcome of `download_all`; ``missing`` and ``failed`` hold a reason by path."""

    fetched: int = 0
    there: int = 0
    bytes: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def download_all(urls: Mapping[str, str], folder: Path, workers: int = 16) -> Summary:
    """Downloads what is not there yet; writes `SUMS` and `MISSING`. A folder is for one run at a time.

    ``urls`` are addresses by path below ``folder``; DataError where the server refuses for good, or an
    address is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary, sums, stop = Summary(), read_sums(folder / SUMS), threading.Event()

    def get(path: str) -> tuple[str | requests.RequestException, int]:
        """SHA-256 of a file, or why there is none, and the bytes that it took: 0 where it was there."""
        target = folder / path
        if target.exists() and target.stat().st_size:
            return sums.get(path) or file_digest(target), 0
        try:
            return fetch(urls[path], target, session, stop)
        except requests.RequestException as error:
            return error, 0

    with _session(workers) as session, tqdm(total=len(urls), unit="file", disable=None) as bar:
        try:
            found = map_ahead(get, urls, workers, 4 * workers, stop)
            for path, (digest, size) in zip(urls, found, strict=True):
                bar.update()
                if isinstance(digest, str):
                    sums[path] = digest
                    summary.fetched += size > 0
                    summary.there += size == 0
                    summary.bytes += size
                else:
                    outcome = summary.missing if _code(digest) in _GONE else summary.failed
                    outcome[path] = printable(str(digest))
        finally:
            write_text(folder / SUMS, "".join(f"{digest}  {path}\n" for path, digest in sums.items()))
    lines = [f"{path}\t{reason}\n" for path, reason in sorted(summary.missing.items())]
    write_text(folder / MISSING, "".join(lines))
    return summary


def _session(workers: int) -> requests.Session:
    session = requests.Session()
    session.headers.update(_HEADERS)
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=workers))
    return session


def read_sums(path: Path) -> dict[str, str]:
    """SHA-256 by path of an earlier run's `SUMS`, none where there is no such file."""
    text = read_text(path, "sums of files; remove it, and they are made anew") if path.exists() else ""
    return {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)}


def _code(error: requests.RequestException) -> int | None:
    return None if error.response is None else error.response.status_code


def fetch(url: str, path: Path, session: requests.Session, stop: threading.Event) -> tuple[str, int]:
    """Downloads one file; returns its SHA-256 and size.

    Raises:
        requests.RequestException: the server does not have it, all attempts failed, or ``stop`` was set.
        DataError: the server refuses for good, or the address is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(TRIES):
        try:
            return _attempt(url, path, session, stop)
        except ValueError as error:  # no host, or a scheme other than http and https
            raise DataError(f"{url}: not an address ({error})") from None
        except requests.RequestException as error:
            failure, code = error, _code(error)
        if code not in (None, *_GONE, *_PASSING):
            raise DataError(f"{url}: the server answers {code}")
        pause = min(WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.5)
        if code in _GONE or attempt + 1 == TRIES or stop.wait(pause):
            break
    raise failure


def _attempt(url: str, path: Path, session: requests.Session, stop: threading.Event) -> tuple[str, int]:
    part, tag_file = (path.with_name(path.name + ending) for ending in (".part", ".part.tag"))
    start = part.stat().st_size if part.exists() and tag_file.exists() else 0
    wanted = {"Range": f"bytes={start}-", "If-Range": tag_file.read_text("utf-8")} if start else {}
    with session.get(url, headers=wanted, stream=True, timeout=_TIMEOUT) as response:
        code, headers, begun = response.status_code, response.headers, time.monotonic()
        if code in (206, 416) and not headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            tag_file.unlink(missing_ok=True)
            raise requests.ConnectionError("the server cannot continue the part")
        if code not in (200, 206):
            raise requests.HTTPError(f"{code} {url}", response=response)
        length = int(text) if (text := headers.get("Content-Length", "")).isdecimal() else 0
        if code == 200:
            start = 0
            tag_file.unlink(missing_ok=True)
            if "ETag" in headers and length >= _RESUME_BYTES:
                tag_file.write_text(headers["ETag"], "utf-8")
        with part.open("ab" if start else "wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                _check_content(path, chunk, file.tell())
                file.write(chunk)
                seconds = time.monotonic() - begun
                if stop.is_set() or (seconds > _TIMEOUT and file.tell() - start < _LEAST_SPEED * seconds):
                    raise requests.ConnectionError("the run ends" if stop.is_set() else "too slow")
            size = file.tell()
    if not size or (length and size != start + length):
        raise requests.ConnectionError(f"{size - start} of {length or 'some'} bytes came")
    digest = file_digest(part)
    part.replace(path)
    tag_file.unlink(missing_ok=True)
    return digest, size


def _check_content(path: Path, chunk: bytes, start: int) -> None:
    """Refuses a page in the place of an image or a CSV, and a file without end."""
    found, is_image = chunk[:20], path.suffix == ".jpg"
    if start + len(chunk) > (_MOST_IMAGE_BYTES if is_image else _MOST_BYTES):
        raise requests.ConnectionError("more bytes came than such a file can have")
    if start == 0 and is_image and not found.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        raise requests.ConnectionError(f"found {found!r}; expected an image")
    if start == 0 and path.suffix == ".csv" and found.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(b"<"):
        raise requests.ConnectionError(f"found {found!r}; expected a CSV")


def unpack_arguments(parser: argparse.ArgumentParser) -> None:
    option(parser, "zip", "archives; with none it prints where to get them", Path, nargs="*")
    group = parser.add_argument_group("output")
    option(group, "--save_folder --name", "folder to unpack to", Path, metavar="FOLDER")


def unpack(args: argparse.Namespace) -> int:
    """Says where WIDER FACE is, and unpacks its archives. Names are checked before anything is written;
    files that are there already stay.

    Example:
      python3 prep_data.py unpack WIDER_train.zip WIDER_val.zip wider_face_split.zip \\
          --save_folder datasets/wider
    """
    if not args.zip:
        print(WIDER_FACE)
        return OK
    if args.save_folder is None:
        raise UsageError("give the folder to unpack to with --save_folder")
    with locked(args.save_folder):
        for archive in args.zip:
            counts = unpack_zip(archive, args.save_folder)
            print(f"{archive}: {', '.join(f'{number} {name}' for name, number in counts.items()) or 'empty'}")
    return OK


def unpack_zip(archive: Path, folder: Path, max_bytes: int = _MOST_UNPACKED_BYTES) -> Counter[str]:
    """Unpacks a zip file and counts its files; those that are there already with the right size stay.

    Raises:
        DataError: not a zip file, damaged, encrypted, larger than ``max_bytes`` in all, or a path that leaves
            the folder, goes too deep or through a link; names are looked at before the first is written.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: no such archive")
    counts: Counter[str] = Counter()
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            _check_members(archive, folder, members, max_bytes)
            for info in members:
                target = folder / info.filename
                is_there = target.is_file() and not target.is_symlink()
                if is_there and target.stat().st_size == info.file_size:
                    counts["files there already"] += 1
                    continue
                with opened.open(info) as file, atomic_path(target) as part, part.open("wb") as copy:
                    shutil.copyfileobj(file, copy)  # ends at the announced size, checks the CRC
                counts["files unpacked"] += 1
    except DataError:
        raise
    except Exception as error:  # zipfile and its decompressors raise a dozen kinds
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise DataError(f"{archive}: not a zip file, or damaged ({error}); download it again") from None
    return counts


def _check_members(archive: Path, folder: Path, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    """Refuses names that lead out of the folder, also by a link that is there, too deep ones, and a bomb."""
    for info in members:
        if leads_out(info.filename) or "\\" in info.filename:
            raise DataError(f"{archive}: {info.filename!r:.80} leads out of the folder; nothing was unpacked")
        parents = PurePosixPath(info.filename).parents
        if len(parents) > _MOST_FOLDERS:
            depth = f"lies below {len(parents) - 1} folders; expected at most {_MOST_FOLDERS}"
            raise DataError(f"{archive}: {info.filename!r:.80}... {depth}, nothing was unpacked")
        for parent in parents[:-1]:
            if (folder / parent).is_symlink():
                raise DataError(f"{folder / parent}: a link; remove it or unpack to another folder")
    if (total := sum(info.file_size for info in members)) > max_bytes:
        raise DataError(f"{archive}: unpacks to {total / 1e9:g} GB; expected at most {max_bytes / 1e9:g}")
