"""Unpacking of archives that a person has downloaded: nothing leaves the folder or grows without bound."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

from utils.cli import DataError
from utils.files import atomic_path

#: WIDER FACE asks for a person to fetch it; these are its parts and where its authors keep them.
WIDER_FACE = """WIDER FACE is downloaded by hand, from the links on its authors' page:

  http://shuoyang1213.me/WIDERFACE/

  WIDER_train.zip      1.47 GB  training images
  WIDER_val.zip        363 MB   validation images
  wider_face_split.zip 3.6 MB   annotation text
  eval_tools.zip       official evaluation, with the ground truth of the three difficulties

Then: python3 prep_data.py unpack WIDER_train.zip WIDER_val.zip wider_face_split.zip --output data/wider"""

_CHUNK_BYTES = 1 << 20

#: What reading a damaged archive raises, besides an OSError for an impossible place in the file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, IndexError, struct.error)


def unpack(archive: Path, folder: Path, max_bytes: int, counts: Counter[str]) -> None:
    """Unpacks a zip file; files that are there already with the right content stay.

    Args:
        archive: the zip file.
        folder: where to.
        max_bytes: bound on the unpacked size of all its files.
        counts: files unpacked and files found there are counted here.

    Raises:
        DataError: not a zip file, damaged, encrypted, a path that leaves the folder, a link, or too large.
            All names are looked at before the first file is written.
    """
    if archive.is_dir():
        raise DataError(f"{archive}: a folder; expected an archive")
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [_checked(archive, info) for info in opened.infolist() if not info.is_dir()]
            total = sum(info.file_size for info in members)
            if total > max_bytes:
                raise DataError(
                    f"{archive}: unpacks to {total / 1e9:g} GB, above --max_gb {max_bytes / 1e9:g}"
                )
            folder.mkdir(parents=True, exist_ok=True)
            if total > (free := shutil.disk_usage(folder).free):
                raise DataError(
                    f"{folder}: {free / 1e9:.1f} GB are free; {archive} unpacks to {total / 1e9:.1f} GB"
                )
            for info in members:
                target = folder / PurePosixPath(info.filename)
                if _is_there(target, info):
                    counts["files there already"] += 1
                    continue
                _write(opened, info, target)
                counts["files unpacked"] += 1
    except FileNotFoundError as error:
        if error.filename != str(archive):
            raise
        raise DataError(f"{archive}: no such archive") from None
    except _DAMAGE as error:
        raise DataError(f"{archive}: not a zip file, or damaged ({error}); download it again") from None


def _checked(archive: Path, info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    path = PurePosixPath(info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
        raise DataError(f"{archive}: {info.filename!r} leads out of the folder; nothing was unpacked")
    if kind not in (0, stat.S_IFREG):
        raise DataError(f"{archive}: {info.filename!r} is a link or a device; nothing was unpacked")
    if info.flag_bits & 1:
        raise DataError(f"{archive}: {info.filename!r} is encrypted; nothing was unpacked")
    return info


def _is_there(target: Path, info: zipfile.ZipInfo) -> bool:
    if not target.is_file() or target.stat().st_size != info.file_size:
        return False
    crc = 0
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc == info.CRC


def _write(opened: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    try:
        source = opened.open(info)
    except OSError as error:
        raise zipfile.BadZipFile(error) from None
    with source, atomic_path(target) as temporary, temporary.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)  # ends at the announced size, checks the CRC
