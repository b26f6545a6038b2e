"""Time and peak memory of `prep_data.py openimages` beside a plain polars scan of the same generated CSV.

    python3 benchmarks/bench_prep_data.py
    python3 benchmarks/bench_prep_data.py --rows 200000 --repeats 1

The CSV has the shape of Open Images' box files: 8 rows an image on average, three in ten of the wanted
classes, sorted by image. It is made for the number of rows and for twice that. The scan reads the same
columns, keeps the rows of the same classes and collects them; the converter also checks every row, joins
images and writes the list. Whole processes take turns, so that on a busy machine the ratios still mean
something; peak memory is what the system shows while they run, pages of the mapped CSV included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import polars as pl

from benchmarks.tables import machine, write_table
from data.open_images import label_of_ids
from utils.cli import DataError, run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = str(ROOT / "benchmarks" / "results" / "prep_data.md")

_COLUMNS = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsDepiction"]

PLAIN_SCAN = f"""
import sys, polars as pl
rows = pl.scan_csv(sys.argv[1]).filter(pl.col("LabelName").is_in({list(label_of_ids())!r}))
print(rows.select({_COLUMNS!r}).collect(engine="streaming").height)
"""


def make_csv(path: Path, rows: int, seed: int = 0) -> None:
    """Writes a box CSV of ``rows`` rows, in parts, so that memory does not grow with it."""
    generator = np.random.default_rng(seed)
    others = [f"/m/0{i:05x}" for i in range(595)]
    labels = pl.Series([*label_of_ids(), *others])
    shares = [0.07, 0.07, 0.10, 0.05, 0.005, 0.005]
    shares = np.array(shares + [(1 - sum(shares)) / len(others)] * len(others))
    first = 0
    with path.open("wb") as file:
        for start in range(0, rows, 500_000):
            count = min(500_000, rows - start)
            images = first + np.cumsum(generator.random(count) < 1 / 8)
            first = int(images[-1]) + 1
            sides = np.sort(generator.random((count, 2, 2)), 2).round(6)
            pl.DataFrame(
                {
                    "ImageID": pl.Series([f"{i:016x}" for i in images.tolist()]),
                    "Source": pl.Series(["xclick"]).new_from_index(0, count),
                    "LabelName": labels.gather(generator.choice(len(labels), count, p=shares)),
                    "Confidence": np.ones(count, np.int8),
                    "XMin": sides[:, 0, 0],
                    "XMax": sides[:, 0, 1],
                    "YMin": sides[:, 1, 0],
                    "YMax": sides[:, 1, 1],
                    **{
                        name: generator.integers(0, 2, count) * (name == "IsOccluded")
                        for name in ("IsOccluded", "IsTruncated", "IsGroupOf", "IsDepiction", "IsInside")
                    },
                }
            ).write_csv(file, include_header=start == 0)


@dataclass
class Measure:
    """One run of a process: seconds, CPU seconds of all its threads, peak memory in MB."""

    wall: float
    cpu: float
    peak: float


def measure(command: list[str]) -> Measure:
    """Runs a command and waits for it."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak, status = 0.0, Path(f"/proc/{process.pid}/status")
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):  # not ru_maxrss, which begins at the size of this process
                peak = max(peak, float(line.split()[1]) / 1024)
        time.sleep(0.01)
    wall = time.perf_counter() - start
    _, code, usage = ended
    process.returncode = os.waitstatus_to_exitcode(code)
    if process.returncode:
        raise DataError(f"{' '.join(command)[:200]}: ended with {process.returncode}")
    return Measure(wall, usage.ru_utime + usage.ru_stime, peak)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rows", type=int, default=5_000_000, metavar="N", help="of the smaller CSV")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs of each process")
    parser.add_argument(
        "--folder", type=Path, metavar="FOLDER", help="for the CSVs (default: a temporary one)"
    )
    args = parser.parse_args(argv)
    table = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for rows in (args.rows, 2 * args.rows):
            csv, output = Path(folder) / "boxes.csv", Path(folder) / "out" / "list.txt"
            make_csv(csv, rows)
            programs = {
                "plain polars scan": [sys.executable, "-c", PLAIN_SCAN, str(csv)],
                "prep_data.py openimages": [
                    *(sys.executable, "prep_data.py", "openimages"),
                    *(str(csv), "--output", str(output)),
                ],
            }
            runs: dict[str, list[Measure]] = {name: [] for name in programs}
            for repeat in range(args.repeats + 1):
                for name, command in programs.items():
                    found = measure(command)
                    if repeat:  # the first of each warms the file cache
                        runs[name].append(found)
            plain = runs["plain polars scan"]
            for name, own in runs.items():
                wall = statistics.median(m.wall for m in own)
                cpu = statistics.median(m.cpu for m in own)
                ratio = statistics.median(m.wall / p.wall for m, p in zip(own, plain, strict=True))
                cpu_ratio = statistics.median(m.cpu / p.cpu for m, p in zip(own, plain, strict=True))
                peak = max(m.peak for m in own)
                table.append(
                    [
                        f"{rows / 1e6:g} M",
                        f"{csv.stat().st_size / 1e6:.0f}",
                        name,
                        f"{wall:.2f}",
                        f"{cpu:.2f}",
                        f"{wall / rows * 1e6:.3f}",
                        f"{peak:.0f}",
                        f"{ratio:.2f}",
                        f"{cpu_ratio:.2f}",
                    ]
                )
            csv.unlink()
    head = ["rows", "MB", "process", "s", "CPU s", "µs a row", "peak MB", "time / scan", "CPU / scan"]
    where = machine(os.cpu_count() or 1)
    title = f"Open Images box CSV to list, medians of {args.repeats} whole processes ({where})"
    write_table(RESULTS, title, head, table)
    return 0


if __name__ == "__main__":
    run(main)
