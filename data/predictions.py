"""Prediction files: the only reader and writer of the text that the evaluators score.

One file an image, `<folder>/<image path without suffix>.txt`:

    0_Parade_marchingband_1_849
    2
    541.25 354.5 36.75 45.125 0.99812 1
    12 8.5 200 410.75 0.4321 2

The image's name, the number of lines that follow, then `x y w h score class` a detection: top left corner,
width and height in pixels (WIDER FACE) or divided by the image's width and height (Open Images), score,
class (1 face, 2 person). Detectors of one class leave the last column out; that means a face.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.config import CLASS_COLOURS, CLASS_LABELS, CLASS_NAMES
from utils.cli import DataError
from utils.draw import draw_boxes
from utils.files import write_text

try:
    from data.prediction_parser import parse_texts
except ImportError:
    parse_texts = None

_FILES_A_TASK = 64


def prediction_path(folder: str | os.PathLike, key: str) -> Path:
    """Prediction file of an image, given by its key (`utils.image_names.image_key`), in ``folder``."""
    return Path(folder, f"{key}.txt")


@dataclass(frozen=True)
class Detections:
    """What was found in one image, by class, then by descending score.

    The arrays are those that supervision takes:
    ``sv.Detections(xyxy=d.boxes, confidence=d.scores, class_id=d.labels)``.

    Attributes:
        boxes: float32[N, 4], xyxy in pixels of the original image; they may reach beyond it.
        scores: float32[N], 0..1.
        labels: int64[N], 1 face, 2 person.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,) or self.labels.shape != (count,):
            raise ValueError(
                f"expected boxes [N, 4], scores [N] and labels [N], but got {self.boxes.shape}, "
                f"{self.scores.shape} and {self.labels.shape}"
            )

    @classmethod
    def empty(cls) -> Detections:
        """No detection at all."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: np.ndarray | slice) -> Detections:
        """Those that a mask, an index array or a slice picks."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])

    @property
    def boxes_xywh(self) -> np.ndarray:
        """float64[N, 4]: x and y of the top left corner, width and height, in pixels."""
        boxes = self.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        return boxes

    def above(self, score: float) -> Detections:
        """Those that score at least ``score``."""
        return self[self.scores >= score]


@dataclass
class Predictions:
    """Detections of many images, those of image i in rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        offsets: int64[I + 1], ascending from 0 to N.
        boxes_xywh: float64[N, 4], x y of the top left corner, width, height, in the unit of the source.
        scores: float64[N].
        labels: int64[N], 1 face, 2 person.
    """

    offsets: np.ndarray
    boxes_xywh: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    @classmethod
    def from_images(cls, images: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Predictions:
        """Detections held in memory: (boxes_xywh [n, 4], scores [n], labels [n]) of each image, in order."""
        images = list(images)
        counts = [len(scores) for _, scores, _ in images]
        return cls(
            offsets_of(counts),
            np.concatenate([np.zeros((0, 4)), *(np.reshape(boxes, (-1, 4)) for boxes, _, _ in images)]),
            np.concatenate([np.zeros(0), *(scores for _, scores, _ in images)]),
            np.concatenate([np.zeros(0, np.int64), *(labels for _, _, labels in images)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def image_index(self) -> np.ndarray:
        """int64[N]: the image of each detection."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def boxes(self) -> np.ndarray:
        """float64[N, 4]: x1 y1 x2 y2."""
        return corners(self.boxes_xywh)

    def select(self, keep: np.ndarray) -> Predictions:
        """The detections where ``keep`` (bool[N]) is true; images stay as they are, in number and order."""
        if keep.all():
            return self
        ends = np.concatenate([[0], np.cumsum(keep)])
        # compress is several times faster than indexing with a mask
        boxes, scores, labels = (np.compress(keep, a, 0) for a in (self.boxes_xywh, self.scores, self.labels))
        return Predictions(ends[self.offsets], boxes, scores, labels)

    def by_score(self) -> Predictions:
        """Each image's detections by descending score; equal scores keep their order."""
        drops = self.scores[1:] <= self.scores[:-1]
        firsts = self.offsets[1:-1]
        drops[firsts[(firsts > 0) & (firsts < len(self))] - 1] = True
        if drops.all():
            return self
        order = np.lexsort((-self.scores, self.image_index))
        return Predictions(self.offsets, self.boxes_xywh[order], self.scores[order], self.labels[order])


@dataclass
class ReadReport:
    """What a reader has to tell beside the detections.

    Attributes:
        missing: files that are not there, in the order asked for.
        miscounted: files whose count line is not the number of lines that follow (or is absent).
        classless: number of files with lines of five columns, read as faces.
    """

    missing: list[Path]
    miscounted: list[Path]
    classless: int


def read_predictions(paths: Sequence[Path]) -> tuple[Predictions, ReadReport]:
    """Reads prediction files; a file that is missing gives an image without detections.

    Raises:
        DataError: a line that is not `x y w h score [class]`, a number that is not finite, a negative
            width or height, an unknown class; with file and line.
    """
    tasks = [paths[start : start + _FILES_A_TASK] for start in range(0, len(paths), _FILES_A_TASK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(_read_some, tasks))
    empty = np.zeros((0, 4)), np.zeros(0), *[np.zeros(0, np.int64)] * 3
    boxes, scores, labels, counts, declared = map(np.concatenate, zip(empty, *parts, strict=True))
    offsets = offsets_of(np.maximum(counts, 0))
    classless = labels == 0
    files = 0
    if classless.any():
        files = len(np.unique(np.searchsorted(offsets, np.flatnonzero(classless), "right")))
        labels[classless] = CLASS_LABELS["face"]
    report = ReadReport(
        missing=[paths[i] for i in np.flatnonzero(counts < 0)],
        miscounted=[paths[i] for i in np.flatnonzero((counts >= 0) & (counts != declared))],
        classless=files,
    )
    return Predictions(offsets, boxes, scores, labels), report


def write_prediction(
    path: Path, name: str, boxes_xywh: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> None:
    """Writes one image's file atomically, numbers with nine digits: enough to give any float32 back.

    Args:
        path: the file; missing folders are made.
        name: the image's name, for the first line.
        boxes_xywh: float[N, 4], in pixels or normalised.
        scores, labels: [N].
    """
    rows = zip(boxes_xywh.tolist(), scores.tolist(), labels.tolist(), strict=True)
    lines = [
        f"{x:.9g} {y:.9g} {w:.9g} {h:.9g} {score:.9g} {label:d}\n" for (x, y, w, h), score, label in rows
    ]
    name = " ".join(name.encode("utf-8", "replace").decode().split("\n"))  # a file's name may be anything
    write_text(path, "".join([f"{name}\n{len(lines)}\n", *lines]))


def is_whole(path: Path) -> bool:
    """Whether a prediction file is there with as many valid lines as it says."""
    try:
        _, report = read_predictions([path])
    except DataError:
        return False
    return not report.missing and not report.miscounted


def parse_text(path: Path, text: bytes) -> tuple[np.ndarray, int]:
    """Rows float64[N, 6] (label 0: none given) and count line (-1: none) of a file's text, line by line.

    This is what says where a faulty line is, and what reads where the Cython parser is not built.
    """
    rows, declared = [], -1
    for number, line in enumerate(text.split(b"\n")[1:], 2):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields]
        except ValueError:
            values = []
        if declared < 0:
            if len(values) != 1 or values[0] < 0 or values[0] % 1:
                raise DataError(
                    f"{path}:{number}: found {_show(line)}; expected the number of lines that follow"
                )
            declared = int(values[0])
            continue
        if len(values) not in (5, 6) or not np.isfinite(values).all():
            raise DataError(f"{path}:{number}: found {_show(line)}; expected numbers 'x y w h score [class]'")
        if values[2] < 0 or values[3] < 0:
            raise DataError(f"{path}:{number}: found {_show(line)}; width and height must not be negative")
        if len(values) == 6 and values[5] not in CLASS_NAMES:
            known = ", ".join(f"{label} {name}" for label, name in CLASS_NAMES.items())
            raise DataError(f"{path}:{number}: found class {values[5]:g}; expected one of: {known}")
        rows.append(values if len(values) == 6 else [*values, 0])
    return np.array(rows, np.float64).reshape(-1, 6), declared


def corners(boxes_xywh: np.ndarray) -> np.ndarray:
    """float64[N, 4], x1 y1 x2 y2, row after row in memory as the kernels want it."""
    boxes = np.array(boxes_xywh, np.float64, order="C")
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def offsets_of(counts: Iterable[int]) -> np.ndarray:
    """int64[I + 1]: where the rows of each image begin, for ``counts`` rows an image."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))])


def _show(line: bytes) -> str:
    return repr(line.decode("utf-8", "replace").strip()[:80])


def _read_some(paths: Sequence[Path]) -> tuple[np.ndarray, ...]:
    """Boxes, scores, labels (0: none), counts (-1: missing) and count lines (-1: none) of some files."""
    texts = [_read_bytes(path) for path in paths]
    contents = [text or b"" for text in texts]
    if parse_texts:
        boxes, scores, labels, counts, declared = parse_texts(contents)
    if not parse_texts or (counts < 0).any() or (labels > max(CLASS_NAMES)).any():
        parsed = [parse_text(path, content) for path, content in zip(paths, contents, strict=True)]
        rows = np.concatenate([rows for rows, _ in parsed])
        boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        counts = np.array([len(rows) for rows, _ in parsed])
        declared = np.array([count for _, count in parsed])
    counts[[text is None for text in texts]] = -1
    return boxes, scores, labels, counts, declared


def _read_bytes(path: Path) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - thousands of files, three times faster
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a prediction file") from None


def draw_detections(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """A copy of ``image`` with class and score at every box, the best on top.

    Args:
        image: uint8[height, width, 3], BGR.
        boxes: [N, 4], xyxy in pixels.
        scores, labels: [N].
    """
    order = np.argsort(scores, kind="stable")
    return draw_boxes(
        image,
        np.asarray(boxes)[order],
        [f"{CLASS_NAMES[int(labels[i])]} {scores[i]:.2f}" for i in order],
        [CLASS_COLOURS[int(labels[i])] for i in order],
    )
