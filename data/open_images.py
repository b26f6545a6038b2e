"""Reading of Open Images' CSVs (V4 to V7 and MIAP): boxes, image-level labels, class names.

A lazy polars query reads the wanted columns and rows as text and turns them into numbers. Where one of them
is faulty, the file is read again to find the line.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import polars as pl

from utils.cli import DataError, printable

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

COORDINATES = ("XMin", "XMax", "YMin", "YMax")

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
        for number, line in _lines(descriptions):
            fields = _fields(descriptions, number, line)
            if len(fields) != 2:
                found = f"found {len(fields)} fields; expected 'label id,display name'"
                raise DataError(f"{descriptions}:{number}: {found}")
            known.setdefault(fields[1], fields[0])
    for name in names:
        if name not in known:
            by_lower = {key.lower(): key for key in known}
            near = [by_lower[key] for key in difflib.get_close_matches(name.lower(), by_lower, 3, 0.5)]
            raise DataError(
                f"{name!r} is not a class of {descriptions or 'this program (give --class_descriptions)'}"
                + (f"; nearest: {', '.join(map(repr, near))}" if near else "")
            )
    return {name: known[name] for name in names}


def image_ids(path: Path, labels: Iterable[str] | None = None) -> list[str]:
    """Ids of the images with a box of these label ids (None: of any), each once, in CSV order.

    Raises:
        DataError: as `read_rows`.
    """
    rows = read_rows(path, None if labels is None else dict.fromkeys(labels, 1))
    return rows["image"].unique(maintain_order=True).to_list()


def read_boxes(
    paths: Iterable[Path],
    labels: Mapping[str, int],
    attributes: Iterable[str] = (),
    bad_rows: list[str] | None = None,
) -> pl.DataFrame:
    """The boxes of box CSVs, in file order.

    Args:
        paths: CSVs, plain or ``.gz``.
        labels, bad_rows: as in `read_rows`.
        attributes: names in `ATTRIBUTES`.

    Returns:
        Columns ``image``, ``LabelName`` (str), ``label`` (int8), ``x y w h`` (float64, normalised, x y of the
        top left corner), and a bool column an attribute; -1 and an empty field, for unknown, are False.

    Raises:
        DataError: as `read_rows`.
    """
    tables = []
    for path in paths:
        header = _header(path)
        flags = {name: next((c for c in ATTRIBUTES[name] if c in header), "") for name in attributes}
        for name in flags:
            if not flags[name]:
                raise DataError(f"{path}:1: no column {ATTRIBUTES[name][0]}; do without it by --{name} keep")
        rows = read_rows(path, labels, COORDINATES, tuple(flags.values()), bad_rows)
        x1, x2, y1, y2 = map(pl.col, COORDINATES)
        box = {"x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}
        marks = {name: pl.col(column).fill_null(0) == 1 for name, column in flags.items()}
        tables.append(rows.select("image", "LabelName", "label", **box, **marks))
    return pl.concat(tables)


def read_rows(
    path: Path,
    labels: Mapping[str, int] | None,
    numbers: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    bad_rows: list[str] | None = None,
) -> pl.DataFrame:
    """Rows of a CSV with the columns ImageID and LabelName, in file order.

    Args:
        path: the CSV, plain or ``.gz``.
        labels: class label by label id; rows of other label ids are passed over. None: all rows.
        numbers: columns of numbers that every row must have, of a box or a confidence.
        flags: columns of numbers that may be empty.
        bad_rows: faulty rows are passed over, and a message of each added here; None: they are an error.

    Returns:
        Columns ``image``, ``LabelName`` (str), ``label`` (int8, 0 without ``labels``), the others (float64).

    Raises:
        DataError: no such file, a column is missing, or a row is faulty; with file and line.
    """
    header, needed = _header(path), ("ImageID", "LabelName", *numbers, *flags)
    if missing := [name for name in needed if name not in header]:
        raise DataError(f"{path}:1: no column {', '.join(missing)}; found {', '.join(header)[:200]}")
    if repeated := [name for name in needed if header.count(name) > 1]:
        raise DataError(f"{path}:1: the column {repeated[0]} is there more than once")
    cut_line = _cut_line(path, header, bad_rows)
    rules = _rules(numbers, flags)
    is_faulty = pl.any_horizontal(rule.fill_null(True) for rule, _ in rules)
    label = pl.col("LabelName").replace_strict(labels or {}, default=0, return_dtype=pl.Int8)
    is_wanted = label > 0 if labels is not None else pl.col("line") > 1
    # A row without image or class is faulty, whatever else it holds; one without both is an empty line.
    is_wanted |= pl.col("ImageID").is_null() != pl.col("LabelName").is_null()
    columns = [pl.col("ImageID").alias("image"), "LabelName", label.alias("label")]
    columns += [pl.col(name).cast(pl.Float64, strict=False) for name in (*numbers, *flags)]
    message = pl.coalesce(pl.when(rule.fill_null(True)).then(text) for rule, text in rules)

    def read(quote: str | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        lines = _scan(path, header, needed, quote)
        rows = lines.filter(is_wanted, pl.col("line") < cut_line if cut_line else True)
        found = rows.select(*columns, is_faulty.alias("is_faulty")).collect(engine="streaming")
        if not found["is_faulty"].any():
            return found, pl.DataFrame()
        return found, rows.filter(is_faulty).select("line", message.alias("message")).collect()

    try:
        try:
            found, faults = read('"')
        except pl.exceptions.PolarsError:  # a quote that is not closed
            found, faults = read(None)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: damaged or cut off ({reason}); get the file again") from None
    messages = [f"{path}:{line}: {printable(text)}" for line, text in faults.rows()]
    if messages and bad_rows is None:
        raise DataError(messages[0])
    if messages:
        bad_rows.extend(messages)
    return found.filter(~pl.col("is_faulty")).drop("is_faulty")


def _scan(path: Path, header: list[str], needed: tuple[str, ...], quote: str | None) -> pl.LazyFrame:
    """The lines of a CSV, header included, as text, with their number in the column ``line``."""
    # Columns that are not needed may share a name or have none.
    names = [name if name in needed else f"column {i}" for i, name in enumerate(header)]
    return pl.scan_csv(
        path,
        has_header=False,
        schema=dict.fromkeys(names, pl.String),
        quote_char=quote,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        row_index_name="line",
        row_index_offset=1,
    )


def _rules(numbers: tuple[str, ...], flags: tuple[str, ...]) -> list[tuple[pl.Expr, pl.Expr]]:
    """What is wrong with a row, the first that holds: condition and message."""
    image = pl.col("ImageID")
    shown = image.str.slice(0, 40)
    rules = [(pl.col(name).is_null(), pl.lit(f"no {name}")) for name in ("ImageID", "LabelName", *numbers)]
    rules.append((image.str.contains("\ufffd", literal=True), pl.format("not UTF-8 text: {}", shown)))
    rules.append((image.str.contains(r'["\p{Cc}]'), pl.format("not a CSV line: {}", shown)))
    value = {name: pl.col(name).cast(pl.Float64, strict=False) for name in (*numbers, *flags)}
    for name, number in value.items():
        expected = "1, 0 or -1" if name in flags else "a number divided by the image's size"
        text = pl.format(f"found {name} '{{}}'; expected {expected}", pl.col(name).str.slice(0, 40))
        odd = ~number.is_between(_LOWEST, _HIGHEST).fill_null(False)
        rules.append((odd & pl.col(name).is_not_null(), text))
    for low, high in (COORDINATES[:2], COORDINATES[2:]):
        if low in numbers:
            text = f"found {low} {{}} above {high} {{}}; expected {low} <= {high}"
            rules.append((value[low] > value[high], pl.format(text, low, high)))
    return rules


def count_rows(path: Path) -> int:
    """Rows of a CSV, of any class."""
    lines, last = 0, b""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while block := file.read(1 << 20):  # polars would map the whole file to count them
            lines, last = lines + block.count(b"\n"), block
    return lines - last.endswith(b"\n")  # one is the header


def _cut_line(path: Path, header: list[str], bad_rows: list[str] | None) -> int:
    """Number of the last line of a plain CSV if a download that ended early cut it off, else 0."""
    if path.suffix == ".gz":  # which notices itself
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        fields = file.read().rpartition(b"\n")[2].split(b",")
    if fields == [b""] or len(fields) >= len(header):
        return 0
    number = sum(1 for _ in _lines(path))
    message = f"{path}:{number}: cut off after {len(fields)} of {len(header)} fields; get the file again"
    if bad_rows is None:
        raise DataError(message)
    bad_rows.append(message)
    return number


def _header(path: Path) -> list[str]:
    _, line = next(_lines(path), (1, b""))
    if not line.strip():
        raise DataError(f"{path}:1: empty; expected a header line")
    return _fields(path, 1, line.removeprefix(codecs.BOM_UTF8))


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Number and text of the lines of a CSV, plain or ``.gz``."""
    try:
        with gzip.open(path) if Path(path).suffix == ".gz" else Path(path).open("rb") as file:
            yield from enumerate(file, 1)
    except FileNotFoundError:
        raise DataError(f"{path}: no such CSV") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected a CSV file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut off ({error}); get the file again") from None


def _fields(path: str | os.PathLike, number: int, line: bytes) -> list[str]:
    try:
        return next(csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True))
    except UnicodeDecodeError:
        raise DataError(f"{path}:{number}: not UTF-8 text") from None
    except (csv.Error, StopIteration):
        raise DataError(f"{path}:{number}: not a CSV line: {line[:80]!r}") from None
