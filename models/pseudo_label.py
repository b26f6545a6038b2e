"""Boxes of a class from another model, added where no truth is; a side file tells them apart.

Every added box has a line in ``<list>.pseudo.jsonl``, with its source and score, so that it can be taken
out again.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_iou, nms

from data.annotations import ImageAnnotation
from data.config import CLASS_LABELS, CLASS_NAMES
from data.predictions import Detections
from models.detector import Detector, batches, detect_batch, try_to_read
from utils.cli import DataError, UsageError, report
from utils.files import read_json, read_text, write_text
from utils.images import read_size
from utils.threads import map_ahead

#: Boxes of a list and of its side file are equal up to the rounding of nine decimals.
_ROUNDING = 2e-9


@dataclass(frozen=True)
class Limits:
    """Which detections are added.

    Attributes:
        score: least score.
        min_size: least width and height in pixels of the image.
        max_iou: overlap with a truth, or a better detection, of the same class up to which one is added.
    """

    score: float = 0.7
    min_size: float = 8.0
    max_iou: float = 0.3

    def __post_init__(self) -> None:
        if not (0 <= self.score <= 1 and 0 <= self.max_iou <= 1 and self.min_size >= 0):
            raise UsageError(f"expected scores and overlaps from 0 to 1 and a size from 0, got {self}")


@dataclass(frozen=True)
class AddedBox:
    """A line of the side file: image path, class label, box as in the list, score, name of the model."""

    image: str
    label: int
    box_xywh_norm: tuple[float, float, float, float]
    score: float
    source: str


def boxes_to_add(
    annotation: ImageAnnotation,
    found: Detections,
    image_size: tuple[int, int],
    limits: Limits,
    source: str,
) -> list[AddedBox]:
    """The detections that pass ``limits``, cut to the image, best first within a class.

    Args:
        annotation: truth of the image; an earlier added box counts as truth.
        found: detections, in pixels of the image.
        image_size: (height, width).
        limits: what is added.
        source: name of the model.
    """
    height, width = image_size
    scale = np.array([width, height, width, height], np.float64)
    boxes = found.boxes.astype(np.float64).clip(0, scale)
    fits = ((boxes[:, 2:] - boxes[:, :2]) >= max(limits.min_size, 1e-3)).all(1) & (
        found.scores >= limits.score
    )
    boxes, scores, labels = boxes[fits], found.scores[fits], found.labels[fits]
    truth = annotation.boxes_xywh_norm * scale
    truth[:, 2:] += truth[:, :2]
    added = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        own = torch.from_numpy(boxes[of_class])
        own_truth = torch.from_numpy(truth[annotation.labels == label])
        free = (box_iou(own, own_truth) <= limits.max_iou).all(1)
        own, of_class = own[free], of_class[free.numpy()]
        best_first = nms(own, torch.from_numpy(scores[of_class]).double(), limits.max_iou).numpy()
        for i in of_class[best_first]:
            x1, y1, x2, y2 = (boxes[i] / scale).round(9).tolist()
            box = (x1, y1, round(x2 - x1, 9), round(y2 - y1, 9))
            added.append(AddedBox(annotation.path, int(label), box, round(float(scores[i]), 6), source))
    return added


def with_boxes(annotation: ImageAnnotation, added: Iterable[AddedBox]) -> ImageAnnotation:
    """The image with the boxes behind its own."""
    added = list(added)
    labels = np.concatenate([annotation.labels, [box.label for box in added]])
    boxes = np.concatenate(
        [annotation.boxes_xywh_norm, np.reshape([box.box_xywh_norm for box in added], (-1, 4))]
    )
    return ImageAnnotation(annotation.path, labels, boxes, annotation.line)


def without_boxes(annotation: ImageAnnotation, added: Iterable[AddedBox]) -> tuple[ImageAnnotation, int]:
    """The image without these boxes, and how many of them were found."""
    keep = np.ones(len(annotation), bool)
    for box in added:
        near = (np.abs(annotation.boxes_xywh_norm - box.box_xywh_norm) <= _ROUNDING).all(1)
        keep &= ~(near & (annotation.labels == box.label))
    rest = ImageAnnotation(
        annotation.path, annotation.labels[keep], annotation.boxes_xywh_norm[keep], annotation.line
    )
    return rest, int((~keep).sum())


def detect_in(
    detector: Detector, annotations: Iterable[ImageAnnotation], images_dir: Path, batch_size: int
) -> Iterator[tuple[ImageAnnotation, tuple[int, int], Detections]]:
    """Runs the detector over a list's images; those that cannot be read are reported and left out."""

    def read(annotation: ImageAnnotation) -> tuple[ImageAnnotation, np.ndarray | DataError]:
        return annotation, try_to_read(images_dir / annotation.path)

    for batch in batches(map_ahead(read, annotations), batch_size):
        for _, image in batch:
            if isinstance(image, DataError):
                report(image)
        readable = [(a, image) for a, image in batch if not isinstance(image, DataError)]
        for annotation, image, found in detect_batch(detector, readable, report):
            yield annotation, image.shape[:2], found


class CocoDetections:
    """Detections of a COCO JSON file by image.

    Args:
        path: a list of ``{"image_id", "category_id", "bbox", "score"}``, bbox x y w h in pixels.
        categories: class name by category id; others are passed over.
        images: COCO file whose ``images`` give the file name of each image id; None: an image id is the
            image's path in the list, or that without its ending, leading zeros aside.

    Raises:
        DataError: not such a file; with the entry.
    """

    def __init__(self, path: Path, categories: dict[int, str], images: Path | None = None) -> None:
        names = None
        if images is not None:
            try:
                names = {
                    entry["id"]: entry["file_name"] for entry in read_json(images, "COCO images")["images"]
                }
            except (KeyError, TypeError):
                raise DataError(
                    f"{images}: expected a COCO file with images, each with id and file_name"
                ) from None
        self.source = path.name
        self._rows: dict[str, list[tuple[float, ...]]] = {}
        entries = read_json(path, "detections in COCO's result format")
        if not isinstance(entries, list):
            raise DataError(f"{path}: expected a list of detections, found a {type(entries).__name__}")
        for index, entry in enumerate(entries):
            try:
                label = CLASS_LABELS.get(categories.get(entry["category_id"], ""))
                x, y, width, height = map(float, entry["bbox"])
                row = (x, y, x + width, y + height, float(entry["score"]), label or 0)
                image = entry["image_id"] if names is None else names[entry["image_id"]]
            except (KeyError, TypeError, ValueError, OverflowError):
                raise DataError(
                    f"{path}: detection {index}: found {str(entry)[:120]}; expected image_id"
                    f"{' of ' + str(images) if images else ''}, category_id, bbox of four numbers, score"
                ) from None
            if not np.isfinite(row).all() or width < 0 or height < 0 or not 0 <= row[4] <= 1:
                raise DataError(
                    f"{path}: detection {index}: bbox {entry['bbox']} or score {entry['score']} out of range"
                )
            if label:
                self._rows.setdefault(_image_key(image), []).append(row)
        self._used: set[str] = set()

    def __call__(self, annotation: ImageAnnotation) -> Detections:
        """Those of an image."""
        for key in (_image_key(annotation.path), _image_key(Path(annotation.path).stem)):
            if key in self._rows:
                self._used.add(key)
                table = np.array(self._rows[key])
                order = table[:, 4].argsort(kind="stable")[::-1]
                table = table[order]
                return Detections(
                    table[:, :4].astype(np.float32),
                    table[:, 4].astype(np.float32),
                    table[:, 5].astype(np.int64),
                )
        return Detections.empty()

    def unused(self) -> list[str]:
        """Images with detections that were not asked for."""
        return [key for key in self._rows if key not in self._used]


def _image_key(image: object) -> str:
    text = str(image)
    return text.lstrip("0") if text.isdecimal() else text


def detections_of(
    coco: CocoDetections, annotations: Iterable[ImageAnnotation], images_dir: Path
) -> Iterator[tuple[ImageAnnotation, tuple[int, int], Detections]]:
    """As `detect_in`, from a file; only images with detections need to be there."""
    for annotation in annotations:
        if len(found := coco(annotation)):
            try:
                yield annotation, read_size(images_dir / annotation.path), found
            except DataError as error:
                report(error)


def side_file(list_path: Path) -> Path:
    """Where the added boxes of a list are noted."""
    return list_path.with_name(f"{list_path.stem}.pseudo.jsonl")


def read_side_file(path: str | os.PathLike) -> list[AddedBox]:
    """The boxes noted; none where there is no file.

    Raises:
        DataError: a line of another form, with file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    added = []
    for number, line in enumerate(read_text(path, "boxes that pseudo_label added").splitlines(), 1):
        try:
            values = json.loads(line)
            values["box_xywh_norm"] = x, y, w, h = tuple(map(float, values["box_xywh_norm"]))
            box = AddedBox(**values)
            named = isinstance(box.image, str) and isinstance(box.source, str)
            if not (named and box.label in CLASS_NAMES and np.isfinite([x, y, w, h, box.score]).all()):
                raise ValueError
            added.append(box)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise DataError(
                f"{path}:{number}: found {line[:80]!r}; expected a box that pseudo_label added"
            ) from None
    return added


def write_side_file(path: str | os.PathLike, added: Iterable[AddedBox]) -> None:
    """Writes the side file, atomically."""
    write_text(path, "".join(json.dumps(asdict(box)) + "\n" for box in added))


def by_image(added: Iterable[AddedBox]) -> dict[str, list[AddedBox]]:
    """Boxes by image path."""
    images: dict[str, list[AddedBox]] = {}
    for box in added:
        images.setdefault(box.image, []).append(box)
    return images


def taken_out(
    annotations: Iterable[ImageAnnotation], added: Iterable[AddedBox], counts: Counter[str]
) -> Iterator[ImageAnnotation]:
    """The images without these boxes."""
    images = by_image(added)
    for annotation in annotations:
        rest, found = without_boxes(annotation, images.get(annotation.path, ()))
        counts["boxes taken out"] += found
        yield rest
