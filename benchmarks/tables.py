"""Times of the benchmarks and their tables: printed, and kept as Markdown."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from utils.files import write_text


def machine(threads: int) -> str:
    """Processor, threads and torch, for a table's heading."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    if torch.cuda.is_available():
        model += f" and {torch.cuda.get_device_name()}"
    return f"{model}, {threads} threads, torch {torch.__version__.split('+')[0]}"


def median_times(
    actions: dict[str, Callable[[], object]], repeats: int, in_a_row: int = 1
) -> dict[str, float]:
    """Milliseconds of each action: median over rounds in which all take turns, after one round to warm up.

    Args:
        actions: what to time, by name.
        repeats: rounds.
        in_a_row: calls a turn, of which the last counts. The waiting threads of one library keep a core busy
            for some milliseconds more, which the next library would pay for.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 1):
        for name, action in actions.items():
            for _ in range(in_a_row - 1):
                action()
            start = time.perf_counter()
            action()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def write_table(
    path: str, title: str, head: Sequence[str], rows: Sequence[Sequence], append: bool = False
) -> None:
    """Prints a table and writes it to ``path``, behind what is there already if ``append``."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "| " + " | ".join("-" * (w - 1) + ":" for w in widths) + " |")
    text = "\n".join([title, "", *lines, ""])
    print(text)
    before = Path(path).read_text() + "\n" if append else ""
    write_text(path, before + text)
