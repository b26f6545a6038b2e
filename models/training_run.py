"""A training run: how far it is, and the files that it writes."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader

from data.annotations import DATASET_INFO
from data.config import CLASS_COLOURS, CLASS_NAMES, ModelConfig
from data.wider_face import WiderFaceDetection
from layers.functions.matching import BEST_PRIOR_IOU
from models.checkpoint import Checkpoint, save_checkpoint
from models.engine import Recipe, bare, train_one_epoch
from models.retinaface import RetinaFace
from utils.box_utils import areas
from utils.cli import OK, DataError, StopSignal
from utils.draw import hex_colour
from utils.files import read_text, write_text
from utils.images import write_figure
from utils.processes import copy_from_first, wait_for_all, world_size

#: Names of columns on the terminal.
SHORT = {"images_per_second": "images/s", "waiting_share": "waiting"}

#: What validation tells, by the beginning of its column, and how it is drawn.
SCORES = {"ap": "-", "precision": "--", "recall": ":"}

#: Share of boxes that are too small from which on this is worth a warning.
MANY = 0.2


@dataclass
class TrainingRun:
    """Trains, validates and saves until the last epoch or a signal.

    Attributes:
        recipe, loader: what a step needs, and batches of an `EpochSampler`.
        epochs: how many the whole run has.
        log: what is told of it; its folder is the run's.
        settings: plain data kept in last.pth, which a continuation must not change.
        validate: average precisions of a network with their mean ``ap``; None: no validation.
        val_every: epochs between validations; the start and the last epoch are always validated.
        patience: epochs without a better validation after which the run ends; 0: never.
        numbered: whether the weights of every tenth epoch are kept, as published.
        epoch: epochs done.
        totals: sums of the steps that the next epoch has done already, see `train_one_epoch`.
        best, best_epoch: the highest ``ap`` so far, and the epoch after which it was found.
    """

    recipe: Recipe
    loader: DataLoader
    epochs: int
    log: RunLog
    settings: dict
    validate: Callable[[RetinaFace], dict[str, float]] | None = None
    val_every: int = 1
    patience: int = 0
    numbered: bool = True
    epoch: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    best_epoch: int = 0

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
            saved, optimizer = state.extra["optimizer"], self.recipe.optimizer
            for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
                group["fused"] = own["fused"]  # depends on the device, which may be another
            optimizer.load_state_dict(saved)
            if self.recipe.average:
                self.recipe.average.load_state_dict(state.extra["average"])
            progress = state.extra["progress"]
            self.epoch, self.best = int(progress["epoch"]), float(progress["best"])
            self.best_epoch = int(progress["best_epoch"])
            self.totals = dict(progress["totals"])
        except Exception as error:  # what torch raises depends on which part is damaged
            reason = " ".join(str(error).split())[:120]
            raise DataError(
                f"{state.path}: the state of its run is damaged ({reason}); start from its weights: --weights"
            ) from None

    def train(self, stop: StopSignal) -> int:
        """All epochs that are left; returns the exit code."""
        name = f"{self.result.cfg.backbone}_2cls6anchors"
        if self.validate and self.best < 0 and not self.totals:  # the start
            self._save_last()
            self.log.epoch({"epoch": self.epoch, **self._validate(self.epoch)})
        first, began = self.epoch, time.monotonic()
        for epoch in range(self.epoch, self.epochs):
            if self.patience and epoch - self.best_epoch >= self.patience:
                self.log.say(f"no better validation in {self.patience} epochs: ended")
                break
            self.loader.batch_sampler.set_epoch(epoch, self.totals.get("steps", 0))
            self.totals, stopped = train_one_epoch(
                self.recipe, self.loader, epoch, len(self.loader), self.totals, stop, self.log.step
            )
            if stopped:
                self._save_last()
                self.log.draw()
                self.log.say(
                    f"stopped in epoch {epoch + 1} after step {self.totals['steps']}; "
                    f"to go on: the same command and --resume"
                )
                return stop.exit_code
            row = {"epoch": epoch + 1, **self._means()}
            if self.validate and ((epoch + 1) % self.val_every == 0 or epoch + 1 == self.epochs):
                self._save_last()  # a run that is killed while it validates goes on from here
                row |= self._validate(epoch + 1)
            self.epoch, self.totals = epoch + 1, {}
            seconds = (time.monotonic() - began) / (self.epoch - first) * (self.epochs - self.epoch)
            self.log.epoch(row, timedelta(seconds=round(seconds)))
            often = 5 if self.epoch > self.result.cfg.lr_decay_epochs[0] else 10  # as published
            if self.numbered and self.epoch % often == 0:
                self._save(f"{name}_epoch_{self.epoch}")
            self._save_last()
        self._save(f"{name}_Final")
        self.log.summary(self.best_epoch, "best.pth" if self.validate else f"{name}_Final.pth")
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

    def _validate(self, epoch: int) -> dict[str, float]:
        """Average precisions after ``epoch`` epochs; the best network is saved."""
        copy_from_first(self.result.buffers())  # without SyncBatchNorm every process has its own statistics
        found = self.validate(self.result)
        if found["ap"] > self.best:
            self.best, self.best_epoch = found["ap"], epoch
            self._save("best")
        return found

    def _save(self, name: str, network: RetinaFace | None = None, **extra: object) -> None:
        if self.log.active:
            save_checkpoint(self.log.folder / f"{name}.pth", network or self.result, **extra)

    def _save_last(self) -> None:
        average = self.recipe.average
        self._save(
            "last",
            bare(self.recipe.network),
            optimizer=self.recipe.optimizer.state_dict(),
            progress={name: getattr(self, name) for name in ("epoch", "totals", "best", "best_epoch")},
            settings=self.settings,
            **({"average": average.state_dict()} if average else {}),
        )


class RunLog:
    """What is told of a run: a table on the terminal, results.csv and results.png, TensorBoard curves.

    Of several processes only one is ``active``; the others stay silent.
    """

    def __init__(self, folder: Path, active: bool = True) -> None:
        self.folder, self.active = folder, active
        self._rows: list[dict] = []
        self._shown: list[str] = []
        self._curves = None

    def say(self, text: object) -> None:
        """Prints a line or several."""
        if self.active:
            print(text, flush=True)

    @contextmanager
    def open(self, epoch: int, step: int) -> Iterator[None]:
        """Begins after so many epochs and steps; what was written about later ones is dropped.

        Raises:
            DataError: a results.csv that is none.
        """
        if not self.active:
            yield
            return
        from torch.utils.tensorboard import SummaryWriter

        path = self.folder / "results.csv"
        if step and path.exists():
            rows = csv.DictReader(read_text(path, "results of epochs").splitlines(), strict=True)
            try:
                kept = [row for row in rows if int(row["epoch"]) <= epoch and None not in row]
                self._rows = [{name: text for name, text in row.items() if text} for row in kept]
            except (KeyError, ValueError, TypeError, csv.Error):
                raise DataError(
                    f"{path}:{rows.line_num}: not the results of an epoch; mend it, or move it away"
                ) from None
        with SummaryWriter(str(self.folder / "tensorboard"), purge_step=step) as self._curves:
            yield

    def step(self, step: int, losses: dict[str, float]) -> None:
        """Losses of one step."""
        if self._curves:
            for name, value in losses.items():
                self._curves.add_scalar(f"train/{name}", value, step)

    def epoch(self, row: dict[str, float], left: timedelta | None = None) -> None:
        """Adds a row, numbers by column with the ``epoch``; ``left`` is how long the rest will take."""
        if not self.active:
            return
        self._show(row, left)
        if self._rows and int(self._rows[-1]["epoch"]) == row["epoch"]:
            row = self._rows.pop() | row
        self._rows.append(row)
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.folder / "results.csv", text.getvalue())
        for name, value in row.items():
            self._curves.add_scalar(f"epoch/{name}", value, row["epoch"])

    def _show(self, row: dict[str, float], left: timedelta | None) -> None:
        """Prints a row of the table, below its head where the columns are new."""
        left_out = {"steps", *(name for name in row if kind(name) in ("precision", "recall"))}
        left_out |= {name for name in row if name.startswith("distil_") and not row[name]}  # no teacher
        shown = {name: value for name, value in row.items() if name not in left_out}
        texts = {SHORT.get(name, name): f"{value:.4g}" for name, value in shown.items()}
        texts = {"epoch": texts.pop("epoch")} | ({} if left is None else {"left": str(left)}) | texts
        widths = {name: max(len(name), 8) for name in texts}
        if list(texts) != self._shown[: len(texts)]:  # an epoch may be without validation
            self._shown = list(texts)
            self.say("  ".join(f"{name:>{widths[name]}}" for name in texts))
        self.say("  ".join(f"{text:>{widths[name]}}" for name, text in texts.items()))

    def summary(self, best_epoch: int, result: str) -> None:
        """Draws results.png, and prints what was reached, and how to use the file ``result``."""
        self.draw()
        path, table = self.folder / result, self.folder / "results.csv"
        if validated := [row for row in self._rows if "ap" in row]:
            columns = sorted(filter(kind, validated[-1]), key=lambda name: list(SCORES).index(kind(name)))
            best = next((row for row in validated if int(row["epoch"]) == best_epoch), validated[0])
            self.say(f"{'':>5}  {'epoch':>5}" + "".join(f"  {name:>9}" for name in columns))
            for name, row in {"start": validated[0], "best": best, "last": validated[-1]}.items():
                texts = [f"{float(row[column]):.4f}" if column in row else "-" for column in columns]
                values = [f"  {text:>{max(len(c), 9)}}" for c, text in zip(columns, texts, strict=True)]
                self.say(f"{name:>5}  {row['epoch']:>5}{''.join(values)}")
            if best is validated[0]:
                self.say(f"no epoch was better than the start, which {path} is")
        else:
            self.say("nothing says how good it is; a --val_dataset would")
        self.say(f"{path}: the network\n{table} and results.png: losses, AP, precision and recall by epoch")
        self.say(f"use it: python3 detect.py PHOTO -m {path}")

    def draw(self) -> None:
        """Writes results.png: losses and, where it was validated, AP, precision and recall by class."""
        if not self.active or not self._rows:
            return
        from matplotlib.figure import Figure  # takes a while to import

        names = list(dict.fromkeys(name for row in self._rows for name in row))
        aps = [name for name in names if kind(name) == "ap"]
        panels = {
            "losses": [n for n in names if n in ("loss", "loc", "class") or n.startswith("distil_")],
            "AP at IoU 0.5": aps if len(aps) > 2 else aps[:1],  # of one class the mean says no more
            "precision and recall at score 0.5": [n for n in names if kind(n) in ("precision", "recall")],
        }
        colours = {name: hex_colour(CLASS_COLOURS[label]) for label, name in CLASS_NAMES.items()}
        figure = Figure(figsize=(16, 4.5), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for axis, (title, columns) in zip(axes, panels.items(), strict=True):
            for name in columns:
                rows = [row for row in self._rows if name in row]
                points = [int(row["epoch"]) for row in rows], [float(row[name]) for row in rows]
                colour = colours.get(name.rpartition("_")[2], "grey" if name == "ap" else None)
                axis.plot(*points, SCORES.get(kind(name), "-"), marker=".", color=colour, label=name)
            axis.set(xlabel="epoch", title=title)
            axis.grid(alpha=0.3)
            axis.xaxis.get_major_locator().set_params(integer=True)
            if columns:
                axis.legend()
            else:
                axis.text(0.5, 0.5, "not validated", ha="center", transform=axis.transAxes)
        write_figure(self.folder / "results.png", figure, 110)


def kind(column: str) -> str | None:
    """One of `SCORES` that a column is, or None."""
    start = column.partition("_")[0]
    return start if start in SCORES else None


def misfits(dataset: WiderFaceDetection, cfg: ModelConfig, image_size: int) -> list[str]:
    """What a training at ``image_size`` pixels cannot learn from a data set, a line each."""
    found = []
    for label, name in CLASS_NAMES.items():
        if dataset.labelled[:, label - 1].any() and not (dataset.table.labels == label).any():
            found.append(
                f"no {name} in lists that are labelled for {name}: their photos teach that there are none; "
                f"if nobody looked for {name}s, leave it out of labelled_classes in {DATASET_INFO}"
            )
    boxes = dataset.table.boxes[dataset.table.labels > 0]
    # Without a prior at this overlap a box is dropped, see `match`.
    least = min(min(cfg.min_sizes)) * BEST_PRIOR_IOU**0.5
    small = np.sqrt(areas(boxes)) * image_size < least
    if small.sum() > MANY * len(small):
        found.append(
            f"{small.mean():.0%} of the boxes are below {least:.0f} pixels where a photo is seen whole at "
            f"{image_size} pixels, and match no prior there; a larger --image_size shows more of them"
        )
    return found


def describe_run(argv: list[str], arguments: dict) -> dict:
    """What run.json holds: command line, arguments, commit, versions."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40")
    git = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "opencv": cv2.__version__}
    return {
        "argv": argv,
        "arguments": arguments,
        "commit": git.stdout.strip() or None,
        "processes": world_size(),
        "versions": {"python": sys.version.split()[0], **versions},
    }
