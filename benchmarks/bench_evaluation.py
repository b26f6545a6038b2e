"""Time of both evaluators, whole processes, beside the plain loops of tests/plain on the same files.

    python3 benchmarks/bench_evaluation.py
    python3 benchmarks/bench_evaluation.py --repeats 1 --images 300
    python3 benchmarks/bench_evaluation.py --wider_predictions DIR --wider_ground_truth DIR

The files are made by this script, 1.3 million detections for each evaluator; real ones are measured as well
where they are given. The programs take turns within one run, so that only the ratios mean something on a busy
machine. Every program has to give the same average precision, else nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from os import times
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.tables import machine, write_table
from data.annotations import ImageAnnotation, write_annotations
from data.predictions import prediction_path, write_prediction
from utils.cli import DataError, run
from utils.image_names import image_key

ROOT = Path(__file__).resolve().parent.parent
RESULTS = str(ROOT / "benchmarks" / "results" / "evaluation.md")


@dataclass
class Case:
    """A set of files and the programs that score it: command lines by name, the plain one first."""

    name: str
    files: int
    detections: int
    programs: dict[str, list[str]]


def make_set(folder: Path, images: int, detections: int, pixels: bool) -> list[ImageAnnotation]:
    """Writes ``detections`` prediction lines for each of ``images`` images; returns the truths, normalised.

    Half of the detections are truths moved about, the others lie anywhere; ``pixels`` times 1,000 and in
    event folders, faces only, else faces and persons.
    """
    random = np.random.default_rng(0)
    annotations = []
    for i in range(images):
        count = int(random.geometric(1 / 12))
        sides = random.uniform(0.01, 0.2, (count, 2))
        truths = np.concatenate([random.uniform(0, 1 - sides), sides], 1)
        labels = np.ones(count, np.int64) if pixels else random.integers(1, 3, count)
        name = f"{i % 61}--Event/{i:05d}.jpg" if pixels else f"{i:05d}.jpg"
        annotations.append(ImageAnnotation(name, labels, truths))
        source = random.integers(0, count, detections)
        near = truths[source] * random.uniform(0.8, 1.25, (detections, 4))
        far = random.uniform(0, 0.5, (detections, 4))
        boxes = np.where(random.random((detections, 1)) < 0.5, near, far)
        scores = np.sort(random.beta(0.4, 2, detections))[::-1] * 0.98 + 0.02
        scale, digits = (1000, 2) if pixels else (1, 5)
        write_prediction(
            prediction_path(folder, image_key(name)),
            Path(name).stem,
            (boxes * scale).round(digits),
            scores.round(5),
            labels[source],
        )
    return annotations


def write_mat_files(
    folder: Path, annotations: list[ImageAnnotation], image_size: tuple[int, int] = (1000, 1000)
) -> None:
    """Writes truths as WIDER FACE's .mat files: faces from 25, 15 and 0 pixels in easy, medium and hard."""
    from scipy.io import savemat

    pixels = np.array([*image_size[::-1], *image_size[::-1]])

    def cells(items: list) -> np.ndarray:
        column = np.empty((len(items), 1), object)
        column[:, 0] = items
        return column

    events = sorted({Path(annotation.path).parent.name for annotation in annotations})
    groups = [[a for a in annotations if Path(a.path).parent.name == event] for event in events]
    folder.mkdir()
    names = cells([cells([Path(a.path).stem for a in group]) for group in groups])
    boxes = cells([cells([(a.boxes_xywh_norm * pixels).round() for a in group]) for group in groups])
    savemat(
        folder / "wider_face_val.mat",
        {"event_list": cells(events), "file_list": names, "face_bbx_list": boxes},
    )
    for subset, least in (("easy", 25), ("medium", 15), ("hard", 0)):
        kept = [
            cells([np.flatnonzero(a.boxes_xywh_norm[:, 3] * pixels[3] >= least)[:, None] + 1 for a in group])
            for group in groups
        ]
        savemat(folder / f"wider_{subset}_val.mat", {"gt_list": cells(kept)})


def commands(kind: str, predictions: Path, truths: Path, folder: Path) -> dict[str, list[str]]:
    """The programs of a case; the fast ones write their numbers to ``folder``."""
    evaluator = {"widerface": "widerface_evaluate", "openimages": "wider_openimagespersonface_evaluate"}[kind]
    fast = [sys.executable, f"{evaluator}/evaluation.py", "-p", str(predictions), "-g", str(truths)]
    programs = {
        "plain loops": [
            sys.executable,
            "tests/plain/evaluation.py",
            kind,
            str(predictions),
            str(truths),
        ],
        "this evaluator": [*fast, "--protocol", "legacy", "--json", str(folder / "numbers.json")],
    }
    if kind == "openimages":
        programs["this evaluator, standard protocol"] = fast
    return programs


def measure(case: Case, repeats: int, folder: Path) -> dict[str, list[tuple[float, float]]]:
    """(wall clock, CPU) seconds of each run by program.

    Raises:
        DataError: a program failed, or two disagree.
    """
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in case.programs}
    for _ in range(repeats):
        for name, program in case.programs.items():
            start = times()
            done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
            end = times()
            seconds[name].append((end.elapsed - start.elapsed, sum(end[2:4]) - sum(start[2:4])))
            if done.returncode:
                raise DataError(f"{' '.join(program)}: {done.stderr.strip()[-500:]}")
            if name == "plain loops":
                plain = [float(line.split()[1]) for line in done.stdout.splitlines()]
        numbers = json.loads((folder / "numbers.json").read_text())
        fast = [value["ap"] for value in (numbers.get("subsets") or numbers["classes"]).values()]
        if not np.allclose(fast, plain, rtol=0, atol=1e-12):
            raise DataError(f"{case.name}: the plain loops give {plain}, the evaluator {fast}")
    return seconds


def table_rows(case: Case, seconds: dict[str, list[tuple[float, float]]]) -> list[list[str]]:
    """Medians and how many times less than the plain loops."""
    medians = {name: np.median(runs, 0) for name, runs in seconds.items()}
    rows = []
    for name, median in medians.items():
        pairs = zip(median, medians["plain loops"] / median, strict=True)
        cells = [cell for value, factor in pairs for cell in (f"{value:.2f}", f"{factor:.1f}")]
        rows.append([case.name, f"{case.files:,}", f"{case.detections:,}", name, *cells])
    return rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs of each program (default: 3)"
    )
    parser.add_argument("--images", type=int, default=3226, metavar="N", help="files to make (default: 3226)")
    parser.add_argument(
        "--detections", type=int, default=403, metavar="N", help="detections in each of them (default: 403)"
    )
    parser.add_argument("--wider_predictions", type=Path, metavar="DIR", help="real prediction files")
    parser.add_argument("--wider_ground_truth", type=Path, metavar="DIR", help="the benchmark's .mat files")
    parser.add_argument("--out", default=RESULTS, metavar="FILE", help="table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = args.images * args.detections
        cases = []
        if args.wider_predictions:
            files = list(args.wider_predictions.rglob("*.txt"))
            lines = sum(path.read_bytes().count(b"\n") - 2 for path in files)
            programs = commands(
                "widerface", args.wider_predictions.resolve(), args.wider_ground_truth.resolve(), folder
            )
            cases.append(Case("WIDER FACE, given", len(files), lines, programs))
        faces = make_set(folder / "faces", args.images, args.detections, pixels=True)
        write_mat_files(folder / "mat", faces)
        programs = commands("widerface", folder / "faces", folder / "mat", folder)
        cases.append(Case("WIDER FACE, made", args.images, made, programs))
        write_annotations(
            folder / "list.txt", make_set(folder / "both", args.images, args.detections, pixels=False)
        )
        programs = commands("openimages", folder / "both", folder / "list.txt", folder)
        cases.append(Case("Open Images, made", args.images, made, programs))
        rows = [row for case in cases for row in table_rows(case, measure(case, args.repeats, folder))]
    title = (
        f"Evaluators, whole processes, medians of {args.repeats} runs in turns; plain loops and evaluator "
        f"give the same average precision to 1e-12. `python3 benchmarks/bench_evaluation.py`, "
        f"{machine(os.cpu_count() or 1)}"
    )
    head = ["set", "files", "detections", "program", "seconds", "times less", "CPU seconds", "times less"]
    write_table(args.out, title, head, rows)
    return 0


if __name__ == "__main__":
    run(main)
