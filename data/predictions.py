"""Detections in memory, and prediction files: the only reader and writer of what the evaluators score.

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
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.config import CLASS_COLOURS, CLASS_LABELS, CLASS_NAMES
from utils.box_utils import xywh_to_xyxy, xyxy_to_xywh
from utils.cli import DataError, import_package
from utils.draw import draw_boxes
from utils.files import write_text
from utils.image_names import image_key

if TYPE_CHECKING:
    import supervision

    from data.annotations import ImageAnnotation

#: Label of a line that has five columns, before it becomes a face.
NO_CLASS = 0


def prediction_path(folder: str | os.PathLike, key: str) -> Path:
    """Prediction file of an image, given by its key (`utils.image_names.image_key`), in ``folder``."""
    return Path(folder, f"{key}.txt")


class Detection(NamedTuple):
    """One of `Detections`: its box, float32[4], its score, its label and the label's name."""

    box: np.ndarray
    score: float
    label: int
    name: str


@dataclass(frozen=True)
class Detections:
    """What was found in one image, by class, then by descending score.

    Example:
        >>> for box, score, label, name in found.above(0.5):
        ...     print(name, score, box)

    Attributes:
        boxes: float32[N, 4], xyxy in pixels of the original image.
        scores: float32[N], 0..1.
        labels: int64[N], 1 face, 2 person.
        image_size: (height, width) of the image, where it is known.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_size: tuple[int, int] | None = None

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

    def __getitem__(self, index: int | np.ndarray | slice) -> Detection | Detections:
        """One by its number, or those that a mask, an index array or a slice picks."""
        if isinstance(index, int | np.integer):
            label = int(self.labels[index])
            return Detection(self.boxes[index], float(self.scores[index]), label, CLASS_NAMES[label])
        return replace(self, boxes=self.boxes[index], scores=self.scores[index], labels=self.labels[index])

    def __iter__(self) -> Iterator[Detection]:
        return map(self.__getitem__, range(len(self)))

    @property
    def class_names(self) -> list[str]:
        """N names, ``face`` or ``person``."""
        return [CLASS_NAMES[label] for label in self.labels.tolist()]

    @property
    def boxes_xywh(self) -> np.ndarray:
        """float64[N, 4]: x and y of the top left corner, width and height, in pixels."""
        return xyxy_to_xywh(self.boxes)

    def above(self, score: float) -> Detections:
        """Those that score at least ``score``."""
        return self[self.scores >= score]

    def clipped(self) -> Detections:
        """The same with boxes cut to the image, without those that lie wholly outside.

        Raises:
            ValueError: the size of the image is not known.
        """
        if self.image_size is None:
            raise ValueError("expected detections with the size of their image, but image_size is None")
        height, width = self.image_size
        boxes = self.boxes.clip(0, np.array([width, height] * 2, np.float32))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return replace(self, boxes=boxes)[inside]

    def draw(
        self,
        image: np.ndarray,
        names: Sequence[str] | None = None,
        colours: Sequence[tuple[int, int, int]] | None = None,
    ) -> np.ndarray:
        """A copy of ``image``, uint8[height, width, 3], BGR, with name and score at every box, the best on
        top; no caption covers a face. N ``names`` and BGR ``colours`` are those of the classes by default."""
        names = names or self.class_names
        colours = colours or [CLASS_COLOURS[label] for label in self.labels.tolist()]
        order = np.argsort(self.scores, kind="stable")
        return draw_boxes(
            image,
            self.boxes[order],
            [f"{names[i]} {self.scores[i]:.2f}" for i in order],
            [colours[i] for i in order],
            self.labels[order] == CLASS_LABELS["face"],
        )

    def to_dict(self) -> dict[str, list]:
        """Plain numbers and texts, e.g. for JSON: ``boxes``, ``scores``, ``labels`` and ``class_names``."""
        columns = {name: getattr(self, name).tolist() for name in ("boxes", "scores", "labels")}
        return columns | {"class_names": self.class_names}

    def to_supervision(self) -> supervision.Detections:
        """As the library supervision has them, with its ``class_name``.

        Raises:
            UsageError: it is not installed.
        """
        return import_package("supervision", "to_supervision").Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.class_names, np.str_)},
        )


@dataclass
class BoxTable:
    """Boxes of many images, found or true: those of image i are the rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        images: key of each image (see `utils.image_names.image_key`).
        offsets: int64[I + 1], ascending from 0 to N.
        boxes: float64[N, 4], xyxy, in pixels or divided by the image's width and height.
        labels: int64[N], 1 face, 2 person.
        scores: float64[N] of detections; None for truths.
        group_of: bool[N], truths that enclose a group; None: not one does.
        counted: by subset of WIDER FACE, bool[N]: truths to be found there; the others are ignored.
        verified: by label, bool[I]: images of which it is known whether they show the class; a label that
            is not in it is known everywhere.
        regions: ignore regions of the same images, with negative labels; None: there are none.
    """

    images: list[str]
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    group_of: np.ndarray | None = None
    counted: dict[str, np.ndarray] = field(default_factory=dict)
    verified: dict[int, np.ndarray] = field(default_factory=dict)
    regions: BoxTable | None = None

    @classmethod
    def from_images(
        cls,
        images: Sequence[str],
        boxes: Iterable[np.ndarray],
        labels: Iterable[np.ndarray],
        scores: Iterable[np.ndarray] | None = None,
        **more: object,
    ) -> BoxTable:
        """A table of the arrays of each image, in the order of ``images``; ``more`` as in the attributes."""
        boxes = [np.reshape(one, (-1, 4)) for one in boxes]
        return cls(
            list(images),
            offsets_of(map(len, boxes)),
            np.concatenate([np.zeros((0, 4)), *boxes]),
            np.concatenate([np.zeros(0, np.int64), *labels]).astype(np.int64),
            None if scores is None else np.concatenate([np.zeros(0), *scores]),
            **more,
        )

    @classmethod
    def from_annotations(cls, annotations: Sequence[ImageAnnotation]) -> BoxTable:
        """Normalised boxes of an annotation list, its ignore regions apart."""
        table = cls.from_images(
            [image_key(annotation.path) for annotation in annotations],
            [xywh_to_xyxy(annotation.boxes_xywh_norm) for annotation in annotations],
            [annotation.labels for annotation in annotations],
        )
        is_box = table.labels > 0
        return table if is_box.all() else replace(table.select(is_box), regions=table.select(~is_box))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def image_index(self) -> np.ndarray:
        """int64[N]: the image of each box."""
        return np.repeat(np.arange(len(self.images)), np.diff(self.offsets))

    def select(self, keep: np.ndarray) -> BoxTable:
        """The boxes where ``keep`` (bool[N]) is true; images stay as they are, in number and order."""
        ends = np.concatenate([[0], np.cumsum(keep)])
        return self if keep.all() else self._rows(np.flatnonzero(keep), offsets=ends[self.offsets])

    def of_class(self, label: int) -> BoxTable:
        """The boxes of one class."""
        return self.select(self.labels == label)

    def by_score(self) -> BoxTable:
        """Each image's detections by descending score; equal scores keep their order."""
        drops = self.scores[1:] <= self.scores[:-1]
        if (drops | (np.diff(self.image_index) > 0)).all():
            return self
        return self._rows(np.lexsort((-self.scores, self.image_index)))

    def take(self, images: Sequence[int]) -> BoxTable:
        """The images at some indices, in that order; an index may come twice."""
        images = np.asarray(images, np.int64)
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in images]
        return self._rows(
            np.concatenate([np.zeros(0, np.int64), *rows]),
            images=[self.images[i] for i in images],
            offsets=offsets_of(map(len, rows)),
            verified={label: known[images] for label, known in self.verified.items()},
            regions=self.regions and self.regions.take(images),
        )

    def _rows(self, rows: np.ndarray, **changes: object) -> BoxTable:
        columns = {name: getattr(self, name) for name in ("boxes", "labels", "scores", "group_of")}
        return replace(
            self,
            **{name: column if column is None else column.take(rows, 0) for name, column in columns.items()},
            counted={name: column.take(rows) for name, column in self.counted.items()},
            **changes,
        )


def offsets_of(counts: Iterable[int]) -> np.ndarray:
    """int64[I + 1]: where the rows of each image begin, for ``counts`` rows an image."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))])


class ReadReport(NamedTuple):
    """Keys of images without a file, of those whose count line is absent or not the number of lines that
    follow, and of those that have lines of five columns, read as faces; in the order asked for."""

    missing: list[str]
    miscounted: list[str]
    classless: list[str]


def read_predictions(folder: Path, images: Sequence[str]) -> tuple[BoxTable, ReadReport]:
    """Reads the files of ``images`` in ``folder``; a missing one gives an image without detections.

    Raises:
        DataError: a line that is not `x y w h score [class]`, a number that is not finite, a negative
            width or height, an unknown class; with file and line.
    """
    paths = [prediction_path(folder, image) for image in images]
    contents = [_read_bytes(path) for path in paths]
    texts = [content or b"" for content in contents]
    parsed = parse(texts) or parse([_tidy(text) for text in texts])
    if parsed is None:
        files = zip(paths, texts, strict=True)
        raise next(_fault(path, text) for path, text in files if parse([_tidy(text)]) is None)
    rows, counts, declared = parsed
    boxes, labels, scores = xywh_to_xyxy(rows[:, :4]), rows[:, 5].astype(np.int64), rows[:, 4].copy()
    table = BoxTable(list(images), offsets_of(counts), boxes, labels, scores)
    classless = np.unique(table.image_index[labels == NO_CLASS])
    labels[labels == NO_CLASS] = CLASS_LABELS["face"]
    missing = np.array([content is None for content in contents], bool)
    miscounted = ~missing & (np.array(counts, int) != np.array(declared, int))
    chosen = (np.flatnonzero(missing), np.flatnonzero(miscounted), classless)
    return table, ReadReport(*([images[i] for i in indices] for indices in chosen))


def write_prediction(
    path: Path, name: str, boxes_xywh: np.ndarray, scores: np.ndarray, labels: np.ndarray
) -> None:
    """Writes one image's file atomically, numbers with nine digits: enough to give any float32 back.

    ``name``, of the image, stands in the first line; ``boxes_xywh`` are in pixels or normalised.
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
        _, report = read_predictions(path.parent, [path.name.removesuffix(".txt")])
    except DataError:
        return False
    return not report.missing and not report.miscounted


def parse(texts: Sequence[bytes]) -> tuple[np.ndarray, list[int], list[int]] | None:
    """Parses the texts of many files as one CSV.

    Returns:
        float64[N, 6] rows `x y w h score class` (0: none given), rows of each file and count line of each
        file (-1: none), or None where a line is faulty or has other blanks than one between two numbers.
    """
    import polars as pl

    parts = [[*text.split(b"\n", 2), b"", b""][:3] for text in texts]
    heads = [head.strip()[:18] for _, head, _ in parts]
    bodies = [body.rstrip() + b"\n" if body.strip() else b"" for _, _, body in parts]
    if not all(head.isdigit() for head, body in zip(heads, bodies, strict=True) if head or body):
        return None
    numbers = ("x", "y", "w", "h", "score", "label")
    schema = dict.fromkeys(numbers, pl.Float64) | {"end": pl.String}  # a blank at the end makes a column
    content = b"".join([" ".join(schema).encode(), b"\n", *bodies])
    try:
        table = pl.read_csv(content, separator=" ", quote_char=None, schema=schema)
    except pl.exceptions.PolarsError:
        return None
    known = table["label"].is_in([float(label) for label in CLASS_NAMES])  # null where none is given
    rows = table.select(*numbers[:5], pl.col("label").fill_null(NO_CLASS)).to_numpy()
    counts = [body.count(b"\n") for body in bodies]
    whole = len(rows) == sum(counts) and table["end"].null_count() == len(rows)
    if not (whole and known.all() and np.isfinite(rows).all() and (rows[:, 2:4] >= 0).all()):
        return None
    return rows, counts, [int(head or -1) for head in heads]


def _tidy(text: bytes) -> bytes:
    """The text without blank lines below the first, and with one blank between two numbers."""
    first, *lines = text.split(b"\n")
    return b"\n".join([first, *(b" ".join(line.split()) for line in lines if line.strip())])


_EXPECTED = "numbers 'x y w h score [class]', width and height not negative, class one of " + ", ".join(
    f"{label} {name}" for label, name in CLASS_NAMES.items()
)


def _fault(path: Path, text: bytes) -> DataError:
    """Names the first faulty line of a file that has one."""
    lines = text.split(b"\n")

    def is_faulty(last: int) -> bool:
        return parse([_tidy(b"\n".join(lines[: last + 1]))]) is None

    faulty = bisect_left(range(len(lines) - 1), True, key=is_faulty)
    is_count = not b"".join(lines[1:faulty]).strip()
    shown = lines[faulty].decode("utf-8", "replace").strip()[:80]
    expected = "the number of lines that follow" if is_count else _EXPECTED
    return DataError(f"{path}:{faulty + 1}: found {shown!r}; expected {expected}")


def _read_bytes(path: Path) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - thousands of files, three times faster
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a prediction file") from None
