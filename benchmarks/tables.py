"""Tables of the benchmarks: printed, and kept as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

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
