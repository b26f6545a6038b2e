"""A training run: how far it is, and the files that it writes."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import torch
import torchvision
from torch.utils.data import DataLoader

from models.checkpoint import Checkpoint, save_checkpoint
from models.engine import Recipe, bare, train_one_epoch
from models.retinaface import RetinaFace
from utils.cli import OK, DataError, StopSignal
from utils.files import read_text, write_text
from utils.processes import copy_from_first, wait_for_all, world_size


@dataclass
class TrainingRun:
    """Trains, validates and saves until the last epoch or a signal.

    Attributes:
        recipe: what a step needs.
        loader: batches of an `EpochSampler`.
        epochs: how many the whole run has.
        log: what is told of it; its folder is the run's.
        settings: plain data kept in last.pth, which a continuation must not change.
        validate: average precisions of a network with their mean ``ap``; None: no validation.
        val_every: epochs between validations; the last epoch is always validated.
        epoch: epochs done.
        totals: sums of the steps that the next epoch has done already, see `train_one_epoch`.
        best: the highest ``ap`` so far.
    """

    recipe: Recipe
    loader: DataLoader
    epochs: int
    log: RunLog
    settings: dict
    validate: Callable[[RetinaFace], dict[str, float]] | None = None
    val_every: int = 1
    epoch: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    best: float = -1.0

    @property
    def step(self) -> int:
        """Steps done in the whole run."""
        return self.epoch * len(self.loader) + int(self.totals.get("steps", 0))

    @property
    def result(self) -> RetinaFace:
        """The network that is validated and saved: the running average where there is one."""
        average = self.recipe.average
        return average.module if average else bare(self.recipe.network)

    def restore(self, state: Checkpoint) -> None:
        """Goes on where the run of a last.pth stopped; the network has its weights already.

        Raises:
            DataError: a part of the state is not there or does not fit.
        """
        try:
            self.recipe.optimizer.load_state_dict(state.extra["optimizer"])
            if self.recipe.average:
                self.recipe.average.load_state_dict(state.extra["average"])
            progress = state.extra["progress"]
            self.epoch, self.best = int(progress["epoch"]), float(progress["best"])
            self.totals = dict(progress["totals"])
        except Exception as error:  # what torch raises depends on which part is damaged
            reason = " ".join(str(error).split())[:120]
            raise DataError(
                f"{state.path}: the state of its run is damaged ({reason}); start from its weights: "
                f"--resume_net"
            ) from None

    def train(self, stop: StopSignal) -> int:
        """All epochs that are left; returns the exit code."""
        name = f"{self.result.cfg.backbone}_2cls6anchors"
        for epoch in range(self.epoch, self.epochs):
            self.loader.batch_sampler.set_epoch(epoch, self.totals.get("steps", 0))
            self.totals, stopped = train_one_epoch(
                self.recipe, self.loader, epoch, len(self.loader), self.totals, stop, self.log.step
            )
            if stopped:
                self._save_last()
                self.log.say(
                    f"stopped in epoch {epoch + 1} after step {self.totals['steps']}; "
                    f"to go on: the same command and --resume"
                )
                return stop.exit_code
            row = {"epoch": epoch + 1, **self._means()}
            if self.validate and ((epoch + 1) % self.val_every == 0 or epoch + 1 == self.epochs):
                self._save_last()  # a run that is killed while it validates goes on from here
                row |= self._validate()
            self.epoch, self.totals = epoch + 1, {}
            self.log.epoch(row)
            if self._is_numbered():
                self._save(f"{name}_epoch_{self.epoch}")
            self._save_last()
        self._save(f"{name}_Final")
        wait_for_all()
        return OK

    def _means(self) -> dict[str, float]:
        """An epoch's row of results.csv: means of the losses, rate, speed, share of time waiting for data."""
        sums, counted = self.totals, ("steps", "images", "seconds", "seconds_waiting")
        return {
            "steps": sums["steps"],
            "lr": max(group["lr"] for group in self.recipe.optimizer.param_groups),
            **{name: value / sums["steps"] for name, value in sums.items() if name not in counted},
            "images_per_second": sums["images"] / sums["seconds"],
            "waiting_share": sums["seconds_waiting"] / sums["seconds"],
        }

    def _validate(self) -> dict[str, float]:
        copy_from_first(self.result.buffers())  # without SyncBatchNorm every process has its own statistics
        found = self.validate(self.result)
        if found["ap"] > self.best:
            self.best = found["ap"]
            self._save("best")
        return found

    def _is_numbered(self) -> bool:
        """Whether an epoch's weights are kept: every tenth, every fifth after the published first decay."""
        first_decay = self.result.cfg.lr_decay_epochs[0]
        return self.epoch % 10 == 0 or (self.epoch % 5 == 0 and self.epoch > first_decay)

    def _save(self, name: str) -> None:
        if self.log.active:
            save_checkpoint(self.log.folder / f"{name}.pth", self.result)

    def _save_last(self) -> None:
        if not self.log.active:
            return
        average = self.recipe.average
        save_checkpoint(
            self.log.folder / "last.pth",
            bare(self.recipe.network),
            optimizer=self.recipe.optimizer.state_dict(),
            progress={"epoch": self.epoch, "totals": self.totals, "best": self.best},
            settings=self.settings,
            **({"average": average.state_dict()} if average else {}),
        )


class RunLog:
    """What is told of a run: lines on the terminal, results.csv and TensorBoard curves.

    Args:
        folder: the run's.
        active: whether this process is the one that writes; the others stay silent.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._rows: list[dict] = []
        self._curves = None

    def say(self, text: object) -> None:
        """Prints a line or several."""
        if self.active:
            print(text, flush=True)

    def open(self, epoch: int, step: int) -> RunLog:
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

    def __enter__(self) -> RunLog:
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


def describe_run(argv: list[str], arguments: dict) -> dict:
    """What run.json holds: command line, arguments, commit, versions."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "argv": argv,
        "arguments": arguments,
        "commit": git.stdout.strip() or None,
        "processes": world_size(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "opencv": cv2.__version__,
        },
    }
