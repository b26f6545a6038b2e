"""What is done with whole annotation lists: statistics, splitting, merging, checking, linking of images."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.annotations import ImageAnnotation, iter_annotations
from data.config import CLASS_NAMES
from utils.cli import DataError, warn
from utils.files import file_digest, write_text
from utils.images import read_image
from utils.threads import map_ahead


@dataclass
class ListStatistics:
    """Counts of a list.

    Attributes:
        images: in the list, by which classes they carry: ``both``, ``face``, ``person``, ``none``.
        boxes: by class name.
        per_image: images by number of boxes.
        problems: boxes beyond the image, boxes without area, images named again.
    """

    images: Counter[str] = field(default_factory=Counter)
    boxes: Counter[str] = field(default_factory=Counter)
    per_image: Counter[int] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, str]]:
        """What to print, as names and values."""
        images, boxes = self.images.total(), self.boxes.total()
        share = {key: f"{count} ({count / max(images, 1):.1%})" for key, count in self.images.items()}
        table = [
            ("images", str(images)),
            *((f"  with {key}", share.get(key, "0")) for key in ("both", *CLASS_NAMES.values(), "none")),
        ]
        table += [
            ("boxes", str(boxes)),
            *((f"  {name}", str(self.boxes[name])) for name in CLASS_NAMES.values()),
        ]
        if images:
            counts = np.repeat(list(self.per_image), list(self.per_image.values()))
            quantiles = np.quantile(counts, [0.5, 0.9, 0.99, 1])
            table.append(
                ("boxes an image, median / 90 % / 99 % / most", " / ".join(f"{q:g}" for q in quantiles))
            )
        return table + [(name, str(count)) for name, count in self.problems.items()]


def list_statistics(path: str | os.PathLike) -> ListStatistics:
    """Counts a list; errors as `iter_annotations`."""
    found = ListStatistics()
    seen: set[str] = set()
    for annotation in iter_annotations(path):
        present = set(annotation.labels.tolist())
        kind = "both" if len(present) == 2 else CLASS_NAMES[present.pop()] if present else "none"
        found.images[kind] += 1
        found.per_image[len(annotation)] += 1
        for label, count in zip(*np.unique(annotation.labels, return_counts=True), strict=True):
            found.boxes[CLASS_NAMES[int(label)]] += int(count)
        beyond, flat = box_faults(annotation)
        found.problems["boxes beyond the image"] += int(beyond.sum())
        found.problems["boxes without area"] += int(flat.sum())
        found.problems["images named again"] += annotation.path in seen
        seen.add(annotation.path)
    return found


def box_faults(annotation: ImageAnnotation) -> tuple[np.ndarray, np.ndarray]:
    """bool[N] and bool[N]: boxes that reach beyond the image, boxes without area."""
    boxes = annotation.boxes_xywh_norm
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    return ((corners < -1e-8) | (corners > 1 + 1e-8)).any(1), (boxes[:, 2:] <= 0).any(1)


def split_annotations(
    annotations: Iterable[ImageAnnotation], val_share: float, seed: int, images_dir: Path | None
) -> tuple[list[ImageAnnotation], list[ImageAnnotation]]:
    """Training and validation part, each in list order.

    An image's part hangs on the seed and its content alone, so that equal images stay together and an
    image stays in its part when others are added; but where that leaves a part of a small list empty, the
    image nearest to it goes there.

    Args:
        annotations: the list.
        val_share: share of the images for validation, 0..1.
        seed: another seed, another split.
        images_dir: folder of the images, to tell equal ones by their content; None: by path.

    Raises:
        DataError: an image that cannot be read.
    """
    annotations = list(annotations)
    if images_dir is None:
        keys: Iterable[str] = (annotation.path for annotation in annotations)
    else:
        keys = map_ahead(lambda a: file_digest(images_dir / a.path), annotations, workers=4, ahead=32)
    draws = [int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8]) / 2**64 for key in keys]
    cut = val_share
    if draws and min(draws) < max(draws):  # two different images or more
        cut = min(max(val_share, math.nextafter(min(draws), 1)), max(draws))
    parts: tuple[list[ImageAnnotation], list[ImageAnnotation]] = ([], [])
    for annotation, draw in zip(annotations, draws, strict=True):
        parts[draw < cut].append(annotation)
    return parts


def merge_annotations(
    paths: list[str | os.PathLike], prefixes: list[str], on_repeat: str = "error"
) -> Iterator[ImageAnnotation]:
    """The images of several lists, one list after the other.

    Args:
        paths: annotation lists.
        prefixes: folder put before the image paths of each list, "" for none.
        on_repeat: of an image that an earlier list has: ``error`` or ``first`` (leave the later one out).

    Raises:
        DataError: an image twice; see also `iter_annotations`.
    """
    seen: dict[str, int] = {}
    for index, (path, prefix) in enumerate(zip(paths, prefixes, strict=True)):
        for annotation in iter_annotations(path):
            if prefix:
                annotation.path = f"{prefix}/{annotation.path}"
            if (earlier := seen.setdefault(annotation.path, index)) != index:
                if on_repeat == "error":
                    raise DataError(
                        f"{path}:{annotation.line}: {annotation.path} is in {paths[earlier]} too; tell "
                        f"the lists apart with --prefix, or give --on_repeat first"
                    )
                continue
            yield annotation


def check_list(
    path: str | os.PathLike, images_dir: Path, cache: Path | None, counts: Counter[str]
) -> Iterator[str]:
    """Problems of a list: images that do not decode, boxes out of range, images named again.

    Args:
        path: annotation list.
        images_dir: folder of its images.
        cache: file that remembers the images that decoded, by size and time of change; None: none.
        counts: what was looked at is counted here.

    Yields:
        One line a problem, with file and line.
    """
    known = _read_cache(cache)
    passed: dict[str, list[int]] = {}

    def decode(annotation: ImageAnnotation) -> tuple[ImageAnnotation, str | None]:
        file = images_dir / annotation.path
        try:
            status = file.stat()
            stamp = [status.st_size, status.st_mtime_ns]
            if known.get(annotation.path) != stamp:
                read_image(file)
                counts["images decoded"] += 1
            passed[annotation.path] = stamp
        except OSError:
            return annotation, f"{file}: no such image"
        except DataError as error:
            return annotation, str(error)
        return annotation, None

    seen: dict[str, int] = {}
    for annotation, fault in map_ahead(decode, iter_annotations(path), os.cpu_count() or 2, ahead=16):
        where = f"{path}:{annotation.line}"
        counts["images"] += 1
        if fault:
            yield f"{where}: {fault}"
        for name, mask in zip(("beyond the image", "without area"), box_faults(annotation), strict=True):
            if mask.any():
                first = annotation.boxes_xywh_norm[mask][0].round(6).tolist()
                yield f"{where}: {int(mask.sum())} boxes {name}, the first {first}; clean takes care of them"
        if (earlier := seen.setdefault(annotation.path, annotation.line)) != annotation.line:
            yield f"{where}: {annotation.path} is named in line {earlier} already; clean joins them"
    if cache is not None:
        try:
            write_text(cache, json.dumps(passed))
        except OSError as error:  # a list on a read-only disk can be checked all the same
            warn(f"{cache}: not written ({error.strerror}); the next check decodes every image again")


def _read_cache(cache: Path | None) -> dict[str, list[int]]:
    try:
        known = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
    except (OSError, ValueError):  # a lost cache costs time alone
        return {}
    return known if isinstance(known, dict) else {}


def link_images(source: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Makes the symbolic link ``<folder>/images`` to ``source``; one that is there and right stays.

    Raises:
        DataError: no such source, or something else is at the link's place.
    """
    source, link = Path(source).resolve(), Path(folder) / "images"
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; expected the folder of the images")
    if link.is_symlink() and link.resolve() == source:
        return link
    if link.is_symlink() or link.exists():
        kind = f"a link to {link.readlink()}" if link.is_symlink() else "there already"
        raise DataError(f"{link}: {kind}; remove it first")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(source, target_is_directory=True)
    return link
