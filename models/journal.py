"""What a training run tells: lines on the terminal, results.csv and TensorBoard curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from utils.cli import DataError
from utils.files import read_text, write_text


class Journal:
    """Writes about a run while it is entered.

    Args:
        folder: the run's.
        active: whether this process is the one that writes; the others stay silent.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._rows: list[dict] = []
        self._curves = None

    def say(self, text: object) -> None:
        """A line, or several, for a person."""
        if self.active:
            print(text, flush=True)

    def open(self, epoch: int, step: int) -> Journal:
        """Begins after so many epochs and steps; what was written about later ones is dropped.

        Raises:
            DataError: a results.csv that is none.
        """
        if self.active:
            from torch.utils.tensorboard import SummaryWriter

            path = self.folder / "results.csv"
            if epoch and path.exists():
                rows = csv.DictReader(read_text(path, "results of epochs").splitlines(), strict=True)
                try:
                    self._rows = [row for row in rows if int(row["epoch"]) <= epoch and None not in row]
                except (KeyError, ValueError, TypeError, csv.Error):
                    raise DataError(
                        f"{path}:{rows.line_num}: not the results of an epoch; mend it, or move it away"
                    ) from None
            self._curves = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        return self

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._curves:
            self._curves.close()

    def step(self, step: int, losses: dict[str, float]) -> None:
        """Losses of one step."""
        if self._curves:
            for name, value in losses.items():
                self._curves.add_scalar(f"train/{name}", value, step)

    def epoch(self, row: dict[str, float]) -> None:
        """A row of results.csv, with its ``epoch``; the file is written anew, atomically."""
        self.say(", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        if not self.active:
            return
        self._rows.append(row)
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.folder / "results.csv", text.getvalue())
        for name, value in row.items():
            self._curves.add_scalar(f"epoch/{name}", value, row["epoch"])
