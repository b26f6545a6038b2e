"""Training loops: one epoch, and validation. Both return dictionaries of numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from data.config import PIXEL_MEAN_BGR
from data.predictions import BoxTable
from data.wider_face import WiderFaceDetection
from layers.modules.distillation import DistillationLoss, who_decides
from layers.modules.multibox_loss import MultiBoxLoss
from models.detector import Detector, detect_images
from models.retinaface import RetinaFace
from models.teachers import Teachers
from utils.cli import DataError
from utils.processes import gather_from_processes, rank, sum_over_processes, world_size


@dataclass
class Recipe:
    """What a training step needs.

    Attributes:
        network: the network, wrapped or not.
        optimizer: its groups hold ``initial_lr``.
        learning_rate: share of ``initial_lr`` at a step of the whole run.
        criterion: loss of labels.
        teachers, distillation: loss of teachers, both or none.
        trusted: bool Tensor[classes], classes for which teachers go before labels.
        average: running average of the weights, or None.
        freeze_bn: batch norm keeps its statistics.
        amp: bfloat16 in the network.
        accumulate: the images of a step go through the network in so many parts.
        clip: largest norm of the gradient.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    criterion: MultiBoxLoss
    trusted: Tensor
    teachers: Teachers | None = None
    distillation: DistillationLoss | None = None
    average: AveragedModel | None = None
    freeze_bn: bool = False
    amp: bool = False
    accumulate: int = 1
    clip: float = math.inf


def train_one_epoch(
    recipe: Recipe,
    batches: Iterable[tuple[Tensor, list[dict]]],
    epoch: int,
    steps: int,
    totals: dict[str, float] | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> dict[str, float]:
    """Trains for an epoch, or for the rest of one.

    Args:
        recipe: network, optimizer, losses.
        batches: this process's images and targets, as `detection_collate` makes them.
        epoch: number of the epoch, for the learning rate.
        steps: steps of a whole epoch.
        totals: sums of the steps that an interrupted epoch had done, with their number ``steps``.
        stop: asked before every step, which is still done; one process's yes then ends the epoch for all.
        after_step: called with the number of the step in the whole run and its losses.

    Returns:
        ``totals`` brought up to date: sums of the loss and its parts, ``steps``, ``images``, ``seconds`` and
        ``seconds_waiting`` for data.

    Raises:
        DataError: the loss is not finite; with its parts and the names of the images.
    """
    recipe.network.train()
    if recipe.freeze_bn:
        for module in recipe.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    device = next(recipe.network.parameters()).device
    totals = {"steps": 0, "images": 0, "seconds": 0.0, "seconds_waiting": 0.0, **(totals or {})}
    progress = tqdm(
        total=steps,
        initial=totals["steps"],
        desc=f"epoch {epoch + 1}",
        unit="step",
        disable=None if rank() == 0 else True,
        dynamic_ncols=True,
    )
    with progress:
        began = time.perf_counter()
        for images, targets, waited in _timed(batches):
            step = epoch * steps + totals["steps"]
            losses, everyone, stopped = training_step(
                recipe, images.to(device, non_blocking=True), targets, step, stop()
            )
            after_step(step, losses)
            now = time.perf_counter()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value
            totals["steps"] += 1
            totals["images"] += everyone
            totals["seconds"] += now - began
            totals["seconds_waiting"] += waited
            began = now
            shown = {
                "loss": f"{losses['loss']:.3g}",
                "lr": f"{recipe.optimizer.param_groups[0]['lr']:.2g}",
                "images/s": f"{totals['images'] / totals['seconds']:.1f}",
                "waiting": f"{totals['seconds_waiting'] / totals['seconds']:.0%}",
            }
            parts = {
                name: f"{value:.3g}" for name, value in losses.items() if name not in ("loss", "gradient")
            }
            progress.set_postfix(shown | parts, refresh=False)
            progress.update()
            if stopped:
                break
    return totals


def training_step(
    recipe: Recipe, images: Tensor, targets: list[dict], step: int, stop: bool = False
) -> tuple[dict[str, float], int, bool]:
    """One update of the weights from this process's share of a batch.

    Positives are counted over all processes and parts before anything is divided by them, so the loss does
    not depend on how a batch is shared out.

    Args:
        recipe: network, optimizer, losses.
        images: uint8 Tensor[N, height, width, 3], BGR.
        targets: as `detection_collate` makes them.
        step: number of the step in the whole run.
        stop: whether this process wants to stop after the step.

    Returns:
        The loss, its parts and the gradient's norm; images over all processes; whether any wants to stop.
    """
    device = images.device
    for group in recipe.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * recipe.learning_rate(step)
    inputs = network_input(images)
    image_size = inputs.shape[2], inputs.shape[3]
    precision = torch.autocast(device.type, torch.bfloat16) if recipe.amp else nullcontext()
    matches = recipe.criterion.match(targets, image_size, device)
    priors = recipe.criterion.grids(image_size, device).priors
    labelled = torch.stack([target["labelled"] for target in targets]).to(device)
    lesson, taught, taught_positives = None, None, 0
    if recipe.teachers is not None:
        with precision:
            lesson = recipe.teachers(inputs)
        taught = recipe.teachers.taught(len(priors), device)
    unknown, decides = who_decides(labelled, matches, taught, recipe.trusted)
    if lesson is not None:
        taught_positives = DistillationLoss.positives(lesson, decides)
    counts = torch.tensor([len(matches.prior), taught_positives, len(images), stop], device=device)
    positives, taught_positives, everyone, stops = sum_over_processes(counts)
    positives, taught_positives = positives.clamp(min=1), taught_positives.clamp(min=1)

    recipe.optimizer.zero_grad(set_to_none=True)
    size = math.ceil(len(images) / recipe.accumulate)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(images), size):
        part = slice(start, start + size)
        last = start + size >= len(images)
        quiet = (
            nullcontext()
            if last or not isinstance(recipe.network, DistributedDataParallel)
            else recipe.network.no_sync()
        )
        with quiet:
            with precision:
                loc, logits = recipe.network(inputs[part])
            losses = recipe.criterion(loc, logits, matches[part], priors, unknown[part], positives)
            if lesson is not None:
                losses |= recipe.distillation(loc, logits, lesson[part], decides[part], taught_positives)
            # Gradients are averaged over processes, losses are shares of one sum.
            (sum(losses.values()) * world_size()).backward()
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach()
    norm = nn.utils.clip_grad_norm_(recipe.network.parameters(), recipe.clip)
    parts = sum_over_processes(torch.stack(list(sums.values())))
    *values, norm = torch.cat([parts, norm[None]]).tolist()
    losses = {"loss": sum(values), **dict(zip(sums, values, strict=True)), "gradient": norm}
    if not math.isfinite(losses["loss"]) or not math.isfinite(norm):
        found = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
        names = ", ".join(target["name"] for target in targets)
        raise DataError(
            f"step {step}: the loss is not finite ({found}) on {names}; try a lower --lr, or --clip_grad"
        )
    recipe.optimizer.step()
    if recipe.average is not None:
        recipe.average.update_parameters(bare(recipe.network))
    return losses, int(everyone), bool(stops)


def validate(
    network: RetinaFace,
    dataset: WiderFaceDetection,
    device: torch.device,
    evaluate: Callable[[BoxTable, BoxTable], dict[str, dict]],
) -> dict[str, float]:
    """Average precision of a network, by `Detector` at the images' own size and the evaluators' rule.

    The images are shared out over the processes; every process gets the result.

    Args:
        network: the network, unwrapped; it stays as it is.
        dataset: images to find boxes in; a class counts on those that are labelled for it.
        device: where to run.
        evaluate: the evaluator, which gives ``ap`` and ``boxes`` by class name.

    Returns:
        ``ap_face`` and ``ap_person`` at IoU 0.5, those that have boxes, and their mean ``ap``.
    """
    detector = Detector(network, device=device)
    mine = range(rank(), len(dataset), world_size())
    found = {}
    for index, image, detections in detect_images(detector, mine, dataset.read):
        shape = np.tile(image.shape[1::-1], 2)
        found[index] = (detections.boxes / shape, detections.labels, detections.scores)
    found = gather_from_processes(found)
    everyone = range(len(dataset))
    boxes, labels = zip(*map(dataset.annotation, everyone), strict=True)
    verified = {label: known.numpy() for label, known in enumerate(dataset.labelled.T, 1)}
    truths = BoxTable.from_images(dataset.paths, boxes, labels, verified=verified)
    found = zip(*(found[index] for index in everyone), strict=True)
    results = evaluate(BoxTable.from_images(dataset.paths, *found), truths)
    scores = {f"ap_{name}": result["ap"] for name, result in results.items() if result["boxes"]}
    return scores | {"ap": sum(scores.values()) / max(len(scores), 1)}


def network_input(images: Tensor) -> Tensor:
    """What the network sees, channels last, of uint8 Tensor[N, height, width, 3]."""
    mean = torch.tensor(PIXEL_MEAN_BGR, device=images.device)
    return (images - mean).permute(0, 3, 1, 2)


def bare(network: nn.Module) -> nn.Module:
    """A network without what DDP and torch.compile put around it."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """Running average of weights; its memory grows with the steps until ``decay`` is reached."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, share)

    return AveragedModel(network, multi_avg_fn=update)


def _timed(batches: Iterable[tuple[Tensor, list[dict]]]) -> Iterator[tuple[Tensor, list[dict], float]]:
    """Batches with the seconds that each was waited for."""
    iterator = iter(batches)
    while True:
        began = time.perf_counter()
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except DataError as error:  # raised in a worker, it carries the worker's traceback
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None
        yield *batch, time.perf_counter() - began
