"""Open Images (V4 to V7 and MIAP): box CSVs to annotation lists, in near-constant memory.

The CSV goes through in blocks of a few megabytes. Polars parses a block; one that it refuses, or that holds
a faulty row, is read again line by line, which finds the line to complain about. The list is written as the
blocks come; what stays in memory is eight bytes an image. Rows of an image that are not together in the
file are held back and joined to it in a second pass, which also makes the choices between images.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from data.annotations import check_labelled_classes, format_table, write_labelled_classes
from data.config import CLASS_LABELS, CLASS_NAMES
from utils.cli import DataError
from utils.files import atomic_path, scratch_path
from utils.threads import iterate_ahead

#: Display names by class. Boxes carry the most specific name only: a boxed Man is not a Person as well.
DISPLAY_NAMES: dict[str, tuple[str, ...]] = {
    "face": ("Human face",),
    "person": ("Person", "Man", "Woman", "Boy", "Girl"),
}

#: Label ids of these names, for CSVs without a class description file.
LABEL_IDS: dict[str, str] = {
    "Human face": "/m/0dzct",
    "Person": "/m/01g317",
    "Man": "/m/04yx4",
    "Woman": "/m/03bt1vf",
    "Boy": "/m/01bl7v",
    "Girl": "/m/05r655",
}

#: Attribute columns by option; the second name is MIAP's.
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "group_of": ("IsGroupOf", "IsGroupOf"),
    "depiction": ("IsDepiction", "IsDepictionOf"),
    "inside": ("IsInside", "IsInsideOf"),
}

KEEP, DROP, DROP_IMAGE, SPLIT = "keep", "drop", "drop_image", "split"

_SUFFIX = ".jpg"
_COORDINATES = ("XMin", "XMax", "YMin", "YMax")
_BLOCK_BYTES = 16 << 20
#: Boxes may stick out of the image (`clean` clips them), but by less than its size: else these are pixels.
_LOWEST, _HIGHEST = -1.0, 2.0


def label_ids(names: Iterable[str], descriptions: str | os.PathLike | None = None) -> dict[str, str]:
    """Label ids such as ``/m/0dzct`` by display name.

    Args:
        names: display names, e.g. "Human face".
        descriptions: the class description CSV (``LabelName,DisplayName``; older ones without header);
            None: only the names of `LABEL_IDS` are known.

    Raises:
        DataError: an unknown name (the nearest ones are proposed) or a file that is not such a CSV.
    """
    known = LABEL_IDS
    if descriptions is not None:
        known = {}
        with _open(descriptions) as file:
            for number, line in enumerate(file, 1):
                fields = _fields(descriptions, number, line)
                if len(fields) != 2:
                    found = f"{len(fields)} fields"
                    raise DataError(
                        f"{descriptions}:{number}: found {found}; expected 'label id,display name'"
                    )
                known.setdefault(fields[1], fields[0])
    ids = {}
    for name in names:
        if name not in known:
            by_lower = {key.lower(): key for key in known}
            near = [by_lower[key] for key in difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)]
            raise DataError(
                f"{name!r} is not a class of {descriptions or 'this program (give --class_descriptions)'}"
                + (f"; nearest: {', '.join(map(repr, near))}" if near else "")
            )
        ids[name] = known[name]
    return ids


class IdSet:
    """A set of image ids, as 64-bit hashes (those of `polars.Series.hash`): eight bytes an id."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.uint64)
        self._pending: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._sorted())

    def add(self, hashes: np.ndarray) -> None:
        self._pending.append(hashes)

    def contains(self, hashes: np.ndarray) -> np.ndarray:
        """bool[N]: which of the ids with these hashes are in the set."""
        known = self._sorted()
        if not len(known):
            return np.zeros(len(hashes), bool)
        return known[np.searchsorted(known, hashes).clip(max=len(known) - 1)] == hashes

    def common(self, other: IdSet) -> int:
        """How many ids are in both sets."""
        return int(other.contains(self._sorted()).sum())

    def _sorted(self) -> np.ndarray:
        if self._pending:
            # Stable is a merge sort, which is fast on sorted parts.
            new = np.sort(np.concatenate(self._pending))
            hashes = np.sort(np.concatenate([self._hashes, new]), kind="stable")
            self._hashes = hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]
            self._pending = []
        return self._hashes


def _hashes(ids: pl.Series) -> np.ndarray:
    return ids.hash().to_numpy()


@dataclass(frozen=True)
class Source:
    """Box CSVs and what to take from them.

    Attributes:
        paths: CSV files, plain or ``.gz``.
        labels: class label by label id; rows of other label ids are passed over.
        known_images_only: only rows of images that earlier sources had a box on.
    """

    paths: tuple[Path, ...]
    labels: dict[str, int]
    known_images_only: bool = False


@dataclass(frozen=True)
class Choices:
    """What becomes of marked boxes and of images.

    Attributes:
        group_of, depiction, inside: of boxes with that attribute: ``keep``, ``drop`` (the box) or
            ``drop_image``.
        one_class: of images that only carry one of the classes (the other may be there, unlabelled):
            ``keep``, ``drop`` or ``split``, which gives them lists of their own.
        skip_bad: pass over faulty rows, counted, in place of stopping at the first.
    """

    group_of: str = KEEP
    depiction: str = DROP
    inside: str = KEEP
    one_class: str = KEEP
    skip_bad: bool = False


@dataclass
class Report:
    """Counts of a conversion.

    Attributes:
        rows: of the CSVs.
        boxes: written or held back, by class name.
        dropped: boxes by the attribute that they were dropped for.
        images: with boxes of ``both`` classes, of ``face`` or ``person`` alone, and ``all``.
        scattered: images whose rows were not together.
        without_file: images left out because the image folder lacks them.
        bad_rows: message of every row that was passed over.
        lists: images by written list.
    """

    rows: int = 0
    boxes: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    images: Counter = field(default_factory=Counter)
    scattered: int = 0
    without_file: int = 0
    bad_rows: list[str] = field(default_factory=list)
    lists: dict[Path, int] = field(default_factory=dict)


def convert(
    sources: list[Source],
    output: str | os.PathLike,
    choices: Choices = Choices(),
    images: str | os.PathLike | None = None,
    image_labels: Source | None = None,
) -> Report:
    """Writes the annotation list of box CSVs: every box of the chosen classes, images in CSV order.

    Args:
        sources: in order; boxes of an image that several name are joined.
        output: list to write, with ``dataset.json`` beside it. With ``one_class`` split: lists of that
            name in the folders ``both``, ``face`` and ``person`` beside it.
        choices: which boxes and images to keep.
        images: folder; images without a file ``<id>.jpg`` there are left out.
        image_labels: human-verified image-level labels; a class with a verified label, present or absent,
            counts as labelled on that image even without a box.

    Raises:
        DataError: a CSV that cannot be used, with file and line; nothing is written.
    """
    output = Path(output)
    report = Report()
    found = {label: IdSet() for label in CLASS_NAMES}
    unwanted = IdSet()
    late: dict[str, list[bytes]] = {}
    wanted = sorted({label for source in sources for label in source.labels.values()})
    split = choices.one_class == SPLIT
    if not split:
        check_labelled_classes(output, [CLASS_NAMES[label] for label in wanted])
    with scratch_path(output.parent, output.suffix) as unfinished:
        with unfinished.open("wb") as file:
            for source in sources:
                _convert_source(source, choices, report, found, unwanted, late, file)
        _count_images(report, found, late)
        if not report.images["all"]:
            raise DataError(
                f"{sources[0].paths[0]}: none of its {report.rows} rows is a box of the chosen classes; "
                f"check the class names and that this is a box CSV"
            )
        if late or len(unwanted) or images is not None or (choices.one_class != KEEP and len(wanted) > 1):
            verified = _verified(image_labels, choices.skip_bad) if image_labels else {}
            pick = _Pick(choices.one_class, wanted, unwanted, verified, _names_in(images) if images else None)
            _choose_images(unfinished, late, pick, output, report)
        else:
            unfinished.replace(output)
            report.lists[output] = report.images["all"]
    for path in report.lists:
        one_class = split and path != output and path.parent.name in CLASS_LABELS
        write_labelled_classes(path, [path.parent.name] if one_class else [CLASS_NAMES[x] for x in wanted])
    return report


def image_ids(source: Source) -> Iterator[str]:
    """Ids of the images that carry a box of the source's classes, each once, in CSV order.

    Raises:
        DataError: as `convert`.
    """
    seen = IdSet()
    for path in source.paths:
        for rows in _read_rows(path, source.labels, ("ImageID",), Report()):
            ids = rows["ImageID"].unique(maintain_order=True)
            ids = ids.filter(pl.Series(~seen.contains(_hashes(ids))))
            seen.add(_hashes(ids))
            yield from ids.to_list()


def _convert_source(
    source: Source,
    choices: Choices,
    report: Report,
    found: dict[int, IdSet],
    unwanted: IdSet,
    late: dict[str, list[bytes]],
    file: BinaryIO,
) -> None:
    """Writes the boxes of a source to ``file``; those of images that are already closed go to ``late``."""
    known = [deepcopy(ids) for ids in found.values()] if source.known_images_only else []
    previous, previous_is_late = "", False
    in_order = not any(map(len, found.values()))
    for path in source.paths:
        for rows in iterate_ahead(
            _read_rows(path, source.labels, ("ImageID", *_COORDINATES), report, choices), 1
        ):
            if source.known_images_only:
                hashes = _hashes(rows["ImageID"])
                rows = rows.filter(pl.Series(np.any([ids.contains(hashes) for ids in known], 0)))
            for option in ATTRIBUTES:
                choice = getattr(choices, option)
                if choice != KEEP and (marked := rows[option]).any():
                    report.dropped[option] += marked.sum()
                    if choice == DROP_IMAGE:
                        unwanted.add(_hashes(rows["ImageID"].filter(marked)))
                    rows = rows.filter(~marked)
            if not len(rows):
                continue
            ids, labels = rows["ImageID"], rows["label"].to_numpy()
            starts = (ids != ids.shift(1)).fill_null(ids[0] != previous).to_numpy()
            # Runs of rows of one image; run 0, which may be empty, goes on with the last image before.
            run = starts.cumsum()
            run_ids = pl.concat([pl.Series([previous]), ids.filter(pl.Series(starts))])
            run_hashes = _hashes(run_ids)
            in_order = in_order and run_ids.is_sorted()
            if in_order:  # as in the official files: an image that starts here has not been seen
                closed = np.zeros(len(run_ids), bool)
            else:
                closed = ~run_ids.is_first_distinct().to_numpy()
                closed |= np.any([known_ids.contains(run_hashes) for known_ids in found.values()], 0)
                closed[0] = previous_is_late
            is_late = closed[run]
            if is_late.any():
                _hold_back(rows.filter(is_late), late)
                rows, starts, ids = rows.filter(~is_late), starts[~is_late], ids.filter(~is_late)
            first_rows = np.flatnonzero(starts)
            file.write(format_table(rows, first_rows, ids.gather(first_rows) + _SUFFIX))
            previous, previous_is_late = run_ids[-1], closed[-1]
            for label, label_images in found.items():
                of_label = run[labels == label]
                report.boxes[CLASS_NAMES[label]] += len(of_label)
                label_images.add(run_hashes[of_label[np.diff(of_label, prepend=-1) != 0]])


def _hold_back(rows: pl.DataFrame, late: dict[str, list[bytes]]) -> None:
    no_rows = np.zeros(0, np.int64)
    lines = format_table(rows, no_rows, pl.Series(dtype=pl.String)).splitlines(keepends=True)
    for name, line in zip(rows["ImageID"] + _SUFFIX, lines, strict=True):
        late.setdefault(name, []).append(line)


def _count_images(report: Report, found: dict[int, IdSet], late: dict[str, list[bytes]]) -> None:
    face, person = found[CLASS_LABELS["face"]], found[CLASS_LABELS["person"]]
    both = face.common(person)
    report.images.update(both=both, face=len(face) - both, person=len(person) - both)
    report.images["all"] = len(face) + len(person) - both
    report.scattered = len(late)


@dataclass
class _Pick:
    """Says for a block of images which list they go to: "" (the only one), both, face, person, or None."""

    one_class: str
    wanted: list[int]
    unwanted: IdSet
    verified: dict[int, IdSet]
    files: set[str] | None
    without_file: int = 0

    def __call__(self, paths: list[str], labels: list[set[int]]) -> list[str | None]:
        ids = _hashes(pl.Series([path.removesuffix(_SUFFIX) for path in paths]))
        refused = self.unwanted.contains(ids)
        verified = {label: known.contains(ids) for label, known in self.verified.items()}
        answers: list[str | None] = []
        for i, path in enumerate(paths):
            if self.files is not None and path not in self.files:
                self.without_file += 1
                answers.append(None)
            elif refused[i] or not labels[i]:
                answers.append(None)
            elif self.one_class == KEEP or len(self.wanted) == 1:
                answers.append("")
            else:
                labelled = labels[i] | {label for label, known in verified.items() if known[i]}
                if len(labelled) == len(self.wanted):
                    answers.append("both" if self.one_class == SPLIT else "")
                else:
                    answers.append(CLASS_NAMES[labelled.pop()] if self.one_class == SPLIT else None)
        return answers


def _choose_images(
    unfinished: Path, late: dict[str, list[bytes]], pick: _Pick, output: Path, report: Report
) -> None:
    """Copies the images that are wanted to the list or lists, with the boxes that were held back."""
    split = pick.one_class == SPLIT and len(pick.wanted) > 1
    targets = (
        {name: output.parent / name / output.name for name in ("both", *CLASS_LABELS)}
        if split
        else {"": output}
    )
    written: Counter[str] = Counter()
    with ExitStack() as stack:
        files = {}
        for name, path in targets.items():
            files[name] = stack.enter_context(stack.enter_context(atomic_path(path)).open("wb"))
        images = _text_of_images(unfinished, late)
        while block := list(islice(images, 4096)):
            paths, texts = zip(*block, strict=True)
            labels = [{int(line[:1]) for line in text[1:]} for text in texts]
            for answer, text in zip(pick(paths, labels), texts, strict=True):
                if answer is not None:
                    files[answer].writelines(text)
                    written[answer] += 1
    report.without_file = pick.without_file
    report.lists.update((path, written[name]) for name, path in targets.items())


def _text_of_images(unfinished: Path, late: dict[str, list[bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """Path and lines (header first) of every image of a list, boxes that were held back at the end."""
    with unfinished.open("rb") as file:
        text: list[bytes] = []
        for line in file:
            if line.startswith(b"#"):
                if text:
                    yield _with_late(text, late)
                text = []
            text.append(line)
        if text:
            yield _with_late(text, late)
    for path in list(late):  # a hash that two ids share: an image without lines of its own
        yield _with_late([f"# {path}\n".encode()], late)


def _with_late(text: list[bytes], late: dict[str, list[bytes]]) -> tuple[str, list[bytes]]:
    path = text[0][2:-1].decode()
    return path, text + late.pop(path, [])


def _names_in(folder: str | os.PathLike) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _verified(source: Source, skip_bad: bool) -> dict[int, IdSet]:
    """Images with a verified image-level label of a class, by class label."""
    verified = {label: IdSet() for label in set(source.labels.values())}
    for path in source.paths:
        for rows in _read_rows(path, source.labels, ("ImageID",), Report(), Choices(skip_bad=skip_bad)):
            for label, ids in verified.items():
                ids.add(_hashes(rows.filter(pl.col("label") == label)["ImageID"]))
    return verified


def _read_rows(
    path: Path, labels: dict[str, int], needed: tuple[str, ...], report: Report, choices: Choices = Choices()
) -> Iterator[pl.DataFrame]:
    """Blocks of the rows of ``path`` whose label id is in ``labels``.

    Yields:
        Columns ``ImageID`` and ``label``; with coordinates among the ``needed`` columns also ``x y w h`` and
        a bool column for each of `ATTRIBUTES` that ``choices`` does not keep.

    Raises:
        DataError: a column is missing or a row is faulty, with file and line.
    """
    blocks = _blocks(path)
    number, header, _ = next(blocks)
    columns = _fields(path, number, header.lstrip(b"\xef\xbb\xbf"))
    attributes = {}
    if "XMin" in needed:
        for option, names in ATTRIBUTES.items():
            if getattr(choices, option) == KEEP:
                continue
            attributes[option] = next((name for name in names if name in columns), None)
            if attributes[option] is None:
                raise DataError(
                    f"{path}:1: no column {names[0]}, which --{option} {getattr(choices, option)} needs"
                )
    missing = [name for name in ("LabelName", *needed) if name not in columns]
    if missing:
        raise DataError(f"{path}:1: no column {', '.join(missing)}; found {', '.join(columns)[:200]}")
    repeated = [name for name in ("LabelName", *needed) if columns.count(name) > 1]
    if repeated:
        raise DataError(f"{path}:1: the column {repeated[0]} is there more than once")
    reader = _RowReader(path, columns, labels, needed, attributes, report, choices.skip_bad)
    for number, block, lines in blocks:
        report.rows += lines
        if len(rows := reader(number, block)):
            yield rows


class _RowReader:
    """Turns a block of CSV text into a table; the state is what all blocks of a file share."""

    def __init__(
        self,
        path: Path,
        columns: list[str],
        labels: dict[str, int],
        needed: tuple[str, ...],
        attributes: dict[str, str],
        report: Report,
        skip_bad: bool,
    ) -> None:
        self.path, self.labels, self.report, self.skip_bad = path, labels, report, skip_bad
        self.needed = ("LabelName", *needed)
        self.columns = columns
        self.has_boxes = "XMin" in needed
        types = dict.fromkeys(self.needed, pl.String)
        types.update((name, pl.Float64) for name in _COORDINATES if name in needed)
        types.update(dict.fromkeys(attributes.values(), pl.Int8))
        self.schema = {  # other columns may share a name or have none
            (name if name in types else f"column {i}"): types.get(name, pl.String)
            for i, name in enumerate(columns)
        }
        self.selection: list[pl.Expr] = [
            pl.col("ImageID"),
            pl.col("LabelName").replace_strict(labels, return_dtype=pl.Int8).alias("label"),
        ]
        if self.has_boxes:
            self.selection += [
                pl.col("XMin").alias("x"),
                pl.col("YMin").alias("y"),
                (pl.col("XMax") - pl.col("XMin")).alias("w"),
                (pl.col("YMax") - pl.col("YMin")).alias("h"),
                *(  # -1 and an empty field mean unknown
                    (pl.col(name).fill_null(0) == 1).alias(option) for option, name in attributes.items()
                ),
            ]
        self.valid = pl.all_horizontal(pl.col(self.needed).is_not_null())
        if self.has_boxes:
            self.valid &= pl.all_horizontal(pl.col(_COORDINATES).is_between(_LOWEST, _HIGHEST))
            self.valid &= (pl.col("XMin") <= pl.col("XMax")) & (pl.col("YMin") <= pl.col("YMax"))

    def __call__(self, number: int, block: bytes) -> pl.DataFrame:
        """The rows of ``block``, whose first line is line ``number`` of the file."""
        if self._is_whole(block):
            try:
                rows = self._wanted(pl.scan_csv(block, has_header=False, schema=self.schema)).collect()
            except pl.exceptions.PolarsError:
                rows = None
            if rows is not None and rows["valid"].all() and not self._has_odd_ids(block, rows):
                return rows
        return self._wanted(self._line_by_line(number, block).lazy()).collect()

    def _wanted(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        unreadable = pl.col("LabelName").is_null() | pl.col("ImageID").is_null()
        rows = rows.filter(pl.col("LabelName").is_in(list(self.labels)) | unreadable)
        return rows.select(*self.selection, self.valid.fill_null(False).alias("valid"))

    def _is_whole(self, block: bytes) -> bool:
        if block.endswith(b"\n"):
            return True
        last = block[block.rfind(b"\n") + 1 :]
        return last.count(b",") >= len(self.columns) - 1

    @staticmethod
    def _has_odd_ids(block: bytes, rows: pl.DataFrame) -> bool:
        """Whether an image id has a line break or the like in it, which takes quotes or a NUL character."""
        suspicious = b'"' in block or b"\0" in block
        return suspicious and rows["ImageID"].str.contains(r"\p{Cc}").any()

    def _line_by_line(self, number: int, block: bytes) -> pl.DataFrame:
        """The valid rows of the classes; the slow path, which names the faulty line."""
        lines = block.split(b"\n")
        kept = []
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                fields = _fields(self.path, number + i, line)
                if fault := self._fault(fields, last=i == len(lines) - 1):
                    raise DataError(f"{self.path}:{number + i}: {fault}")
            except DataError as error:
                if not self.skip_bad:
                    raise
                self.report.bad_rows.append(str(error))
                continue
            row = dict(zip(self.schema, fields, strict=False))
            if row["LabelName"] in self.labels:
                kept.append({name: self._value(row.get(name), kind) for name, kind in self.schema.items()})
        return pl.DataFrame(kept, self.schema)

    @staticmethod
    def _value(text: str | None, kind: type[pl.DataType]) -> str | float | None:
        """A field in the type of its column, None where it is empty."""
        return {pl.Float64: float, pl.Int8: int}.get(kind, str)(text) if text else None

    def _fault(self, fields: list[str], last: bool) -> str | None:
        """What is wrong with a row, if anything is; rows of other classes only need to have their columns."""
        row = dict(zip(self.columns, fields, strict=False))
        if last and len(fields) < len(self.columns):
            return f"cut off after {len(fields)} of {len(self.columns)} fields; get the file again"
        if missing := [name for name in self.needed if not row.get(name)]:
            return f"no {missing[0]}"
        if not row["ImageID"].isprintable():
            return f"found ImageID {row['ImageID'][:40]!r}; expected letters and digits"
        if row["LabelName"] not in self.labels:
            return None
        for name, kind in self.schema.items():
            if kind == pl.String:
                continue
            try:
                value = self._value(row.get(name), kind) or 0
            except ValueError:
                value = float("nan")
            if not _LOWEST <= value <= _HIGHEST:
                kinds = "a number divided by the image's size" if kind == pl.Float64 else "1, 0 or -1"
                return f"found {name} {row[name][:40]!r}; expected {kinds}"
        if self.has_boxes:
            for low, high in (("XMin", "XMax"), ("YMin", "YMax")):
                if float(row[low]) > float(row[high]):
                    return f"found {low} {row[low]} above {high} {row[high]}; expected {low} <= {high}"
        return None


def _open(path: str | os.PathLike) -> BinaryIO:
    try:
        return gzip.open(path, "rb") if Path(path).suffix == ".gz" else Path(path).open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such CSV") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a CSV file") from None


def _blocks(path: str | os.PathLike) -> Iterator[tuple[int, bytes, int]]:
    """The header line, then the others in blocks of whole lines: number of the first one, text, lines.

    A quoted field with a line break in it, which Open Images does not have, counts as two lines.
    """
    with _open(path) as file:
        try:
            header = file.readline(_BLOCK_BYTES)
            if not header.strip():
                raise DataError(f"{path}:1: empty; expected a header line")
            yield 1, header, 1
            number = 2
            while block := file.read(_BLOCK_BYTES):
                block += file.readline(_BLOCK_BYTES)
                if len(block) == 2 * _BLOCK_BYTES and not block.endswith(b"\n"):
                    raise DataError(f"{path}:{number}: a line of more than {_BLOCK_BYTES} bytes; not a CSV?")
                lines = block.count(b"\n") + (not block.endswith(b"\n"))
                yield number, block, lines
                number += lines
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut off ({error}); get the file again") from None


def _fields(path: str | os.PathLike, number: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number}: not UTF-8 text") from None
    except (csv.Error, StopIteration):
        raise DataError(f"{path}:{number}: not a CSV line: {line[:80]!r}") from None
