"""Makes the tables of README.md and weights/README.md from files, so that text and measurements agree.

Examples:
  python3 results/tables.py            # rewrite what stands between <!-- table: NAME --> and <!-- end -->
  python3 results/tables.py --check    # change nothing; exit code 1 names what differs
  python3 results/tables.py --measured runs/small/score/*.json    # the numbers of a new row

NAME is a table of results/accuracy.csv, where a row is a measurement with its command, commit and date, or
a published figure with its source. A NAME that ends with .md is a file, whose first table is shown.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import BAD_DATA, OK, DataError, parser_of, report, run
from utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent
ACCURACY = ROOT / "results" / "accuracy.csv"
FILES = (ROOT / "README.md", ROOT / "weights" / "README.md")

#: Columns of numbers and their headings.
METRICS = {
    "easy": "easy",
    "medium": "medium",
    "hard": "hard",
    "ap_face": "faces, AP",
    "ap_person": "persons, AP",
    "person_scenes": "persons, scenes",
    "person_coco": "persons, COCO",
    "person_open_images": "persons, Open Images",
    "person_street": "persons, football and streets",
    "person_ap75": "persons, AP at IoU 0.75",
    "person_ap50_95": "persons, AP at 0.5 to 0.95",
}
COLUMNS = ("table", "network", "data", "protocol", *METRICS, "command", "source", "commit", "date")

#: What a table says below itself where all rows agree, else in a column.
SHARED = ("data", "protocol")

_SHOWN = Decimal("0.001")
_BLOCK = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_MARKER = re.compile(r"<!-- (?:table: .*|end) -->")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument(
        "files", type=Path, nargs="*", default=FILES, help="texts (default: README.md, weights/README.md)"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--check", action="store_true", help="compare, write nothing")
    group.add_argument(
        "--measured", type=Path, nargs="+", metavar="JSON", help="print what the evaluators' --json hold"
    )
    return parser.parse_args(argv)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of an accuracy file.

    Raises:
        DataError: other columns, a number that is no average precision, or a row of which nobody knows where
            it comes from; with file and line.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, restkey="more")
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path}:1: found {reader.fieldnames}; expected {','.join(COLUMNS)}")
        rows = []
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if "more" in row or None in row.values():
                raise DataError(f"{where}: expected {len(COLUMNS)} fields; quote those with commas")
            for name in METRICS:
                if row[name] and not (re.fullmatch(r"[01]\.\d+", row[name]) and Decimal(row[name]) <= 1):
                    raise DataError(f"{where}: found {name} {row[name]!r}; expected a share of 1")
            if not row["source"] and not (row["command"] and row["commit"] and row["date"]):
                raise DataError(f"{where}: expected command, commit and date, or a source")
            rows.append(row)
    return rows


def accuracy_table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown of measurements: a line each, and below where they come from, by number."""
    metrics = [name for name in METRICS if any(row[name] for row in rows)]
    varying = [name for name in SHARED if len({row[name] for row in rows}) > 1]
    origins = list(dict.fromkeys(map(_origin, rows)))
    lines = [
        f"| network | {''.join(f'{name} | ' for name in varying)}"
        f"{' | '.join(METRICS[name] for name in metrics)} | from |",
        f"|---|{'---|' * len(varying)}{'---:|' * len(metrics)}---:|",
    ]
    for row in rows:
        numbers = [
            str(Decimal(row[name]).quantize(_SHOWN, ROUND_HALF_UP)) if row[name] else "-" for name in metrics
        ]
        cells = [row["network"], *(row[name] for name in varying), *numbers]
        lines.append(f"| {' | '.join(cells)} | {origins.index(_origin(row)) + 1} |")
    shared = [
        f"{name.capitalize()}: {rows[0][name]}." for name in SHARED if name not in varying and rows[0][name]
    ]
    notes = [f"{number}. {origin}" for number, origin in enumerate(origins, 1)]
    return "\n".join([*lines, "", *shared, *([""] if shared else []), *notes])


def _origin(row: dict[str, str]) -> str:
    """Where a row comes from, in a line."""
    stamp = f"({row['commit']}, {row['date']})" if row["commit"] else ""
    command = f"`{row['command']}`" if row["command"] else ""
    return " ".join(part for part in (command, row["source"], stamp) if part)


def first_table(path: Path) -> str:
    """The first table of a Markdown file, with the line that is its title.

    Raises:
        DataError: no such file, or no table in it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a Markdown file with a table")
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("|")), None)
    if first is None:
        raise DataError(f"{path}: no table in it")
    end = next((i for i in range(first, len(lines)) if not lines[i].startswith("|")), len(lines))
    title = [line for line in lines[:first] if line][-1:]
    return "\n".join([*title, *([""] if title else []), *lines[first:end]])


def filled(text: str, name: str, rows: Iterable[dict[str, str]]) -> tuple[str, list[str]]:
    """``text`` with its tables made anew, and the names of those that changed.

    Raises:
        DataError: a marker without its counterpart, or a table that nothing is known about.
    """
    rows = list(rows)
    changed = []

    def replace(match: re.Match) -> str:
        start, table, before, end = match.groups()
        if table.endswith(".md"):
            after = first_table(ROOT / table)
        elif chosen := [row for row in rows if row["table"] == table]:
            after = accuracy_table(chosen)
        else:
            known = ", ".join(dict.fromkeys(row["table"] for row in rows))
            raise DataError(f"{name}: no table {table}; expected one of {known}, or a .md file")
        if before != f"{after}\n":
            changed.append(table)
        return f"{start}{after}\n{end}"

    for marker in _MARKER.findall(_BLOCK.sub("", text)):
        raise DataError(f"{name}: {marker} stands alone; expected <!-- table: NAME -->, lines, <!-- end -->")
    return _BLOCK.sub(replace, text), changed


def measured(paths: Iterable[Path]) -> dict[str, float]:
    """Numbers of an accuracy row from the ``--json`` files of both evaluators, as score.sh names them."""
    found: dict[str, float] = {}
    for path in paths:
        values = json.loads(path.read_text(encoding="utf-8"))
        found |= {name: subset["ap"] for name, subset in values.get("subsets", {}).items()}
        classes = {name: one["ap"] for name, one in values.get("classes", {}).items()}
        found |= {
            f"{name}_scenes" if path.stem == "SCENES" else f"ap_{name}": ap for name, ap in classes.items()
        }
    return {name: found[name] for name in METRICS if found.get(name) is not None}


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.measured:
        numbers = measured(args.measured)
        print(",".join(METRICS))
        print(",".join(f"{numbers[name]:.4f}" if name in numbers else "" for name in METRICS))
        return OK
    rows = read_rows(ACCURACY)
    different = 0
    for path in args.files:
        text = path.read_text(encoding="utf-8")
        after, changed = filled(text, str(path), rows)
        different += len(changed)
        if args.check:
            for table in changed:
                report(f"{path}: table {table} is not what its file says; run python3 results/tables.py")
        elif changed:
            write_text(path, after)
            print(f"{path}: {', '.join(changed)} made anew")
    return BAD_DATA if args.check and different else OK


if __name__ == "__main__":
    run(main)
