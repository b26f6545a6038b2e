"""Keeps what training runs say of themselves: a line each in results/runs.jsonl.

A line is JSON: the name of the run, what its run.json holds (command line, arguments, commit, versions, ...),
and ``curves``: the columns of its results.csv, null where an epoch has no value, numbers to six digits.

Example:
  python3 results/runs.py runs/small/run4 runs/small/run5    # adds these, or replaces those of the same name
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import OK, DataError, option, parser_of, run
from utils.files import read_text, write_text

RUNS = Path(__file__).resolve().parent / "runs.jsonl"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    option(parser, "--output", "file of runs", type=Path, default=RUNS, metavar="FILE")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    runs = read_runs(args.output) if args.output.exists() else {}
    for folder in args.folders:
        runs[folder.name] = describe(folder)
    lines = (json.dumps({"run": name, **run}, allow_nan=False) for name, run in runs.items())
    write_text(args.output, "".join(f"{line}\n" for line in lines))
    return OK


def describe(folder: Path) -> dict:
    """What a run's folder says of it.

    Raises:
        DataError: no run.json or results.csv of a run.
    """
    try:
        described = json.loads(read_text(folder / "run.json", "a run's description"))
        rows = list(csv.DictReader(read_text(folder / "results.csv", "results of epochs").splitlines()))
        columns = {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else ())}
        return {**described, "curves": columns}
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder}: its run.json and results.csv are not those of a run ({error})") from None


def read_runs(path: Path = RUNS) -> dict[str, dict]:
    """The runs of a file by name."""
    runs = [json.loads(line) for line in read_text(path, "runs").splitlines()]
    return {one.pop("run"): one for one in runs}


def _number(text: str) -> float | int | None:
    if not text:
        return None
    value = float(f"{float(text):.6g}")
    return int(value) if text.isdecimal() else value


if __name__ == "__main__":
    run(main)
