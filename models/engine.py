"""Training: a step, an epoch, validation; optimizers, learning rates and the running average of weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from data.config import PIXEL_MEAN_BGR, ModelConfig
from data.predictions import BoxTable
from data.wider_face import Targets, WiderFaceDetection
from layers.functions.matching import choose_targets
from layers.functions.prior_box import prior_boxes
from layers.modules.distillation import DistillationLoss
from layers.modules.multibox_loss import MultiBoxLoss
from models.detector import Detector, detect_images
from models.retinaface import BATCH_NORMS, RetinaFace
from models.teachers import Teachers
from utils.cli import DataError
from utils.processes import gather_from_processes, rank, sum_over_processes, world_size

#: Steps after which losses are fetched from a GPU: who asks for them waits until all steps are done.
FETCH_EVERY = 10

#: What a step finds besides the parts of its loss.
OTHERS = ("gradient", "images", "stops")


@dataclass
class Recipe:
    """What a training step needs.

    Attributes:
        network: the network, wrapped or not.
        optimizer: its groups hold ``initial_lr``.
        learning_rate: share of ``initial_lr`` at a step of the whole run.
        criterion: loss of labels.
        teacher_first: bool Tensor[classes], classes for which teachers go before labels.
        teachers, distillation: loss of teachers, both or none.
        average: running average of the weights, or None.
        freeze_bn: batch norm keeps its statistics.
        amp: bfloat16 in the network.
        clip: largest norm of the gradient.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    criterion: MultiBoxLoss
    teacher_first: Tensor
    teachers: Teachers | None = None
    distillation: DistillationLoss | None = None
    average: RunningAverage | None = None
    freeze_bn: bool = False
    amp: bool = False
    clip: float = math.inf


def train_one_epoch(
    recipe: Recipe,
    batches: Iterable[tuple[Tensor, Targets]],
    epoch: int,
    steps: int,
    totals: dict[str, float] | None = None,
    stop: Callable[[], bool] = lambda: False,
    after_step: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> tuple[dict[str, float], bool]:
    """Trains for an epoch of so many ``steps``, or for the rest of one.

    Losses are looked at after every step on the CPU, on other devices after `FETCH_EVERY` steps.

    Args:
        batches: this process's images and targets, as `detection_collate` makes them.
        epoch, steps: number of the epoch, and steps of a whole one.
        totals: sums of the steps that an interrupted epoch had done, with their number ``steps``.
        stop: asked before every step, which is still done; one process's yes then ends the epoch for all,
            once the losses are looked at.
        after_step: called with the number of the step in the whole run and its losses.

    Returns:
        ``totals`` brought up to date (sums of the loss and its parts, ``steps``, ``images``, ``seconds`` and
        ``seconds_waiting`` for data), and whether a process wanted to stop.

    Raises:
        DataError: the loss is not finite; with its parts and the names of the images.
    """
    recipe.network.train()
    if recipe.freeze_bn:
        freeze_batch_norm(recipe.network)
    device = next(recipe.network.parameters()).device
    totals = {"steps": 0, "images": 0, "seconds": 0.0, "seconds_waiting": 0.0, **(totals or {})}
    shown = {"unit": "step", "disable": None if rank() == 0 else True, "dynamic_ncols": True}
    bar = tqdm(desc=f"epoch {epoch + 1}", total=steps, initial=totals["steps"], **shown)
    timed, at_once, stopped = _timed(batches), 1 if device.type == "cpu" else FETCH_EVERY, False
    with bar:
        while not stopped:
            began, outcomes = time.perf_counter(), []
            for images, targets, waited in islice(timed, at_once):
                step = epoch * steps + totals["steps"] + len(outcomes)
                images = images.to(device, non_blocking=True)
                outcome = training_step(recipe, images, targets, step, stop())
                outcomes.append((step, targets.names, outcome))
                totals["seconds_waiting"] += waited
                bar.update()
            if not outcomes:
                break
            for step, outcome in fetch(outcomes):
                stopped |= outcome.pop("stops") > 0
                totals["images"] += int(outcome.pop("images"))
                after_step(step, outcome)
                totals |= {name: totals.get(name, 0) + v for name, v in {**outcome, "steps": 1}.items()}
            totals["seconds"] += time.perf_counter() - began
            _show(bar, outcome, totals, recipe.optimizer.param_groups[0]["lr"])
    return totals, stopped


def _show(bar: tqdm, losses: dict[str, float], totals: dict[str, float], rate: float) -> None:
    """Shows the losses of the last step, learning rate and speed beside the bar."""
    shown = {
        "lr": f"{rate:.2g}",
        "images/s": f"{totals['images'] / totals['seconds']:.1f}",
        "waiting": f"{totals['seconds_waiting'] / totals['seconds']:.0%}",
    }
    bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()} | shown, refresh=False)


def fetch(
    outcomes: Sequence[tuple[int, list[str], dict[str, Tensor]]],
) -> Iterator[tuple[int, dict[str, float]]]:
    """Number and outcome of steps, with the ``loss`` that is the sum of its parts: one copy from the device.

    ``outcomes`` hold the number, the names of the images and what `training_step` found. A loss that is not
    finite is a DataError.
    """
    found = iter(torch.stack([value for *_, outcome in outcomes for value in outcome.values()]).tolist())
    for step, names, outcome in outcomes:
        values = dict(zip(outcome, found, strict=False))
        losses = {name: value for name, value in values.items() if name not in OTHERS}
        values = {"loss": sum(losses.values()), **values}
        if not math.isfinite(values["loss"]) or not math.isfinite(values["gradient"]):
            shown = {"loss": values["loss"], **losses, "gradient": values["gradient"]}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            raise DataError(
                f"step {step}: the loss is not finite ({shown}) on {', '.join(names)}; try a lower --lr, "
                f"or --clip_grad"
            )
        yield step, values


def training_step(
    recipe: Recipe, images: Tensor, targets: Targets, step: int, stop: bool = False
) -> dict[str, Tensor]:
    """One update of the weights from this process's share of a batch.

    Positives are counted over all processes before anything is divided by them, so the loss does not depend
    on how a batch is shared out.

    Args:
        images, targets: uint8 Tensor[N, height, width, 3], BGR, and as `detection_collate` makes them.
        step: number of the step in the whole run.
        stop: whether this process wants to stop after the step.

    Returns:
        Scalars on the device: the parts of the loss, the ``gradient``'s norm, ``images`` over all processes,
        and how many of these want to stop, ``stops``.
    """
    device, targets = images.device, targets.to(images.device)
    for group in recipe.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * recipe.learning_rate(step)
    inputs = network_input(images)
    image_size = inputs.shape[2], inputs.shape[3]
    precision = torch.autocast(device.type, torch.bfloat16) if recipe.amp else nullcontext()
    matches = recipe.criterion.match(targets, image_size)
    priors = prior_boxes(recipe.criterion.cfg, image_size, device)
    labelled = recipe.criterion.labelled(targets, image_size)
    soft_targets, soft_positives = None, 0
    if recipe.teachers is not None:
        with precision:
            soft_targets = recipe.teachers(inputs)
    teacher_knows = None if soft_targets is None else soft_targets.known
    unknown, soft = choose_targets(labelled, matches, teacher_knows, recipe.teacher_first)
    if soft_targets is not None:
        soft_positives = DistillationLoss.positives(soft_targets, soft)
    counts = scalars([len(matches.prior), soft_positives, len(images), int(stop)], device)
    seen, stops = sum_over_processes(counts)[2:]
    positives, soft_positives = counts[:2].clamp(min=1)

    recipe.optimizer.zero_grad(set_to_none=True)
    with precision:
        loc, logits = recipe.network(inputs)
    losses = recipe.criterion(loc, logits, matches, priors, unknown, positives)
    if soft_targets is not None:
        losses |= recipe.distillation(loc, logits, soft_targets, soft, soft_positives)
    # Gradients are averaged over processes, losses are shares of one sum.
    (sum(losses.values()) * world_size()).backward()
    norm = nn.utils.clip_grad_norm_(recipe.network.parameters(), recipe.clip)
    recipe.optimizer.step()
    if recipe.average is not None:
        recipe.average.update_parameters(bare(recipe.network))
    parts = sum_over_processes(torch.stack([value.detach() for value in losses.values()]))
    return dict(zip(losses, parts, strict=True)) | {"gradient": norm, "images": seen, "stops": stops}


def validate(
    network: RetinaFace,
    dataset: WiderFaceDetection,
    device: torch.device,
    evaluate: Callable[[BoxTable, BoxTable], dict[str, dict]],
) -> dict[str, float]:
    """Average precision of a network, by `Detector` at the images' own size alone and the evaluators' rule.

    The images are shared out over the processes; every process gets the result.

    Args:
        network: unwrapped, the same in every process; it stays as it is.
        dataset: a class counts on the images that are labelled for it.
        evaluate: gives ``ap``, ``precision_at_half``, ``recall_at_half`` and ``boxes`` by class name.

    Returns:
        ``ap_face`` and ``ap_person`` at IoU 0.5, those that have boxes, their mean ``ap``, and likewise
        ``precision_*`` and ``recall_*`` of what scores at least 0.5, where anything does.
    """
    detector = Detector(network, device=device, scales=1)
    mine = range(rank(), len(dataset), world_size())
    found = {}
    for index, image, detections in detect_images(detector, mine, dataset.read):
        shape = np.tile(image.shape[1::-1], 2)
        found[index] = (detections.boxes / shape, detections.labels, detections.scores)
    found = gather_from_processes(found)
    images = range(len(dataset))
    boxes, labels = zip(*map(dataset.annotation, images), strict=True)
    verified = {label: known.numpy() for label, known in enumerate(dataset.labelled.T, 1)}
    truths = BoxTable.from_images(dataset.paths, boxes, labels, verified=verified)
    truths = truths.select(truths.labels > 0)  # no ignore regions
    found = zip(*(found[index] for index in images), strict=True)
    results = evaluate(BoxTable.from_images(dataset.paths, *found), truths)
    results = {name: result for name, result in results.items() if result["boxes"]}
    aps = {f"ap_{name}": result["ap"] for name, result in results.items()}
    points = {
        f"{kind}_{name}": result[f"{kind}_at_half"]
        for name, result in results.items()
        for kind in ("precision", "recall")
        if not math.isnan(result[f"{kind}_at_half"])
    }
    return aps | {"ap": sum(aps.values()) / max(len(aps), 1)} | points


def network_input(images: Tensor) -> Tensor:
    """What the network sees, channels last, of uint8 Tensor[N, height, width, 3]."""
    return (images - scalars(PIXEL_MEAN_BGR, images.device)).permute(0, 3, 1, 2)


def scalars(values: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """Numbers, and scalars of the device, as a tensor there; unlike a copy this keeps nobody waiting."""
    return torch.stack([v if isinstance(v, Tensor) else torch.full((), v, device=device) for v in values])


def bare(network: nn.Module) -> nn.Module:
    """A network without what DDP puts around it."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def freeze_batch_norm(network: nn.Module) -> None:
    """Lets every batch norm use and keep the statistics that it has, until ``network.train()``."""
    for module in network.modules():
        if isinstance(module, BATCH_NORMS):
            module.eval()


def _timed(batches: Iterable[tuple[Tensor, Targets]]) -> Iterator[tuple[Tensor, Targets, float]]:
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


def make_optimizer(
    network: RetinaFace, name: str, lr: float, shared_lr_factor: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``sgd`` or ``adamw``; what stands before the heads learns at ``shared_lr_factor`` of the rate.

    On CUDA all weights move in a few launches (``fused``).
    """
    fused = next(network.parameters()).device.type == "cuda"
    heads, shared = [], []
    for key, parameter in network.named_parameters():
        (heads if key.startswith(("ClassHead.", "BboxHead.")) else shared).append(parameter)
    groups = [
        {"params": heads, "lr": lr, "initial_lr": lr},
        {"params": shared, "lr": lr, "initial_lr": lr * shared_lr_factor},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=fused)
    return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay, fused=fused)


def make_schedule(
    name: str, cfg: ModelConfig, steps: int, epochs: int, warmup: int, gamma: float
) -> Callable[[int], float]:
    """Share of the learning rate at a step of a run of so many ``epochs`` of ``steps``.

    In ``warmup`` steps it rises to 1. ``step`` then takes it times ``gamma`` at the epochs of ``cfg``,
    ``cosine`` to zero at the end.
    """

    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup + 1))
        if name == "cosine":
            return warm * (1 + math.cos(math.pi * step / (steps * epochs))) / 2
        return warm * gamma ** sum(step // steps >= epoch for epoch in cfg.lr_decay_epochs)

    return share


class RunningAverage(AveragedModel):
    """Running average of weights, of which a step keeps a share that grows up to ``decay``."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Takes the weights after a step in, in a few launches; buffers are copied."""
        steps = int(self.n_averaged)  # stays on the CPU
        share = 1 - min(self.decay, (1 + steps) / (10 + steps)) if steps else 1.0
        torch._foreach_lerp_([*self.module.parameters()], [*model.parameters()], share)
        buffers = [*zip(self.module.buffers(), model.buffers(), strict=True)]
        for dtype in {own.dtype for own, _ in buffers}:  # mixed ones are copied one by one
            pairs = [pair for pair in buffers if pair[0].dtype == dtype]
            torch._foreach_copy_(*(list(column) for column in zip(*pairs, strict=True)))
        self.n_averaged += 1
