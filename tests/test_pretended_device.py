"""Training and detection on a pretended GPU: nothing mixes devices, and little waits for them."""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from data.config import cfg_mnet
from data.wider_face import Targets
from models import engine
from models.checkpoint import DEFAULT_WEIGHTS, load_network, read_checkpoint
from models.detector import PRECISIONS, Detector
from models.engine import FETCH_EVERY, train_one_epoch, training_step
from models.retinaface import RetinaFace
from models.training_run import RunLog
from tests.pretended_device import CPU, CUDA, MixedDevices, PretendedDevice, pretended_device
from tests.test_training import arguments, assert_same, losses
from tests.training_data import make_list, one_thread  # noqa: F401
from train_changeclass import main, make_recipe, parse_args
from utils.cli import DataError

SIZE = 64
TEACHER = str(DEFAULT_WEIGHTS)
#: Arguments of a training, and how often a step may wait and launch.
VARIANTS = {
    "published": ((), 5, 680),
    "frozen": (("--freeze_bn", "--clip_grad", "5", "--mine_batch", "--balance"), 5, 680),
    "mixed precision": (
        ("--amp", "--ema", "0.9", "--optimizer", "adamw", "--loc_loss", "giou", "--clip_grad", "9"),
        5,
        920,
    ),
    "teacher": (("--teacher", TEACHER, "--distil", "1", "2", "--freeze_bn", "--ema", "0.9"), 6, 850),
    "boxes alone": (("--train_only", "BboxHead", "--loc_by_score", "--loc_loss", "giou"), 5, 680),
    "all": (("--preset", "finetune", "--amp", "--mine_batch", "--trust_teacher", "face", "person"), 5, 1210),
}


def batch_of(images: int, regions: int = 1, boxes: int = 5) -> tuple[Tensor, Targets]:
    """Noise with boxes anywhere, and ignore regions."""
    draw = torch.Generator().manual_seed(images)
    size = torch.rand(images * boxes, 2, generator=draw) * 0.4 + 0.1
    corner = torch.rand(images * boxes, 2, generator=draw) * (1 - size)
    boxes_norm = torch.cat([corner, corner + size], 1)
    return torch.randint(0, 256, (images, SIZE, SIZE, 3), generator=draw, dtype=torch.uint8), Targets(
        boxes_norm,
        torch.randint(1, 3, (images * boxes,), generator=draw),
        torch.full((images,), boxes),
        torch.ones(images, 2, dtype=torch.bool),
        [f"{i}.jpg" for i in range(images)],
        boxes_norm[: images * regions],
        torch.stack([torch.arange(images), torch.arange(images) % 2], 1)[: images * regions],
    )


def pinned(device: PretendedDevice, batch: tuple[Tensor, Targets]) -> tuple[Tensor, Targets]:
    """A batch as a loader with ``pin_memory`` gives it."""
    images, targets = batch
    return device.pin(images), Targets(*(device.pin(v) if isinstance(v, Tensor) else v for v in targets))


def recipe_of(device: torch.device, *more: str) -> engine.Recipe:
    torch.manual_seed(0)
    network = RetinaFace(cfg_mnet)
    network.load_state_dict(load_network(DEFAULT_WEIGHTS).state_dict())
    network.to(device, memory_format=torch.channels_last).train()
    args = parse_args(["--weights", TEACHER, "--image_size", str(SIZE), *more])
    recipe = make_recipe(args, network, 100, device)
    if recipe.freeze_bn:
        engine.freeze_batch_norm(network)
    return recipe


def count_step(device: PretendedDevice, recipe: engine.Recipe, images: int) -> tuple[int, int]:
    """Waits and launches of a step, its copies included."""
    photos, targets = pinned(device, batch_of(images))
    device.reset()
    training_step(recipe, photos.to(CUDA, non_blocking=True), targets, 1)
    return device.waits.total(), device.launches.total()


def train_two_steps(recipe: engine.Recipe) -> list[tuple[int, dict[str, float]]]:
    """The outcomes of two steps."""
    found = []
    train_one_epoch(recipe, [batch_of(2)] * 2, 0, 2, after_step=lambda *outcome: found.append(outcome))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_find_the_same_and_wait_a_few_times_however_many_images(variant):
    more, waits, launches = VARIANTS[variant]
    more = (*more, "--lr", "1e-6")
    expected = train_two_steps(recipe_of(CPU, *more))
    with pretended_device() as device:
        recipe = recipe_of(CUDA, *more)
        found = train_two_steps(recipe)
        few, many = (count_step(device, recipe, images) for images in (4, 16))
    for (step, one), (_, other) in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4), step
    assert few == many
    assert few[0] <= waits and few[1] <= launches


def test_losses_are_fetched_every_so_many_steps(monkeypatch):
    steps = 2 * FETCH_EVERY + 1
    monkeypatch.setattr(engine, "training_step", pretend_to_train)
    seen, stops = [], iter([False] * 3 + [True] * steps)
    with pretended_device() as device:
        recipe = recipe_of(CUDA)
        batches = [pinned(device, batch_of(1, 0)) for _ in range(steps)]
        device.reset()
        totals, stopped = train_one_epoch(
            recipe, batches, 0, steps, after_step=lambda step, losses: seen.append((step, losses["loss"]))
        )
        assert device.waits == {"tolist": 3} and not stopped and totals["steps"] == steps
        assert seen == [(step, 2 * step) for step in range(steps)] and totals["loss"] == steps * (steps - 1)
        totals, stopped = train_one_epoch(recipe, batches, 0, steps, stop=lambda: next(stops))
        assert stopped and totals["steps"] == FETCH_EVERY
        with pytest.raises(DataError, match=r"step 33: the loss is not finite .* on 0\.jpg; try"):
            train_one_epoch(recipe, batches, 1, 30)


def pretend_to_train(recipe, images: Tensor, targets: Targets, step: int, stop: bool) -> dict[str, Tensor]:
    """The outcome of a step, whose loss is twice its number; the 33rd has none."""
    values = {"loc": step, "class": step if step != 33 else torch.nan, "gradient": 1.0}
    values |= {"images": len(images), "stops": float(stop)}
    return {name: torch.full((), float(value), device=images.device) for name, value in values.items()}


def test_a_run_stops_and_goes_on_also_on_another_device(tmp_path, monkeypatch):
    data = [str(make_list(tmp_path / name, 3, (name,), 64)) for name in ("face", "person")]
    monkeypatch.setattr(engine, "FETCH_EVERY", 2)
    monkeypatch.setattr(RunLog, "draw", lambda self: None)
    original, steps = engine.training_step, []

    def step_and_signal(*args: object) -> dict[str, Tensor]:
        steps.append(1)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    def train(device: torch.device, name: str, epochs: str, *resume: str) -> int:
        argv = arguments(data, TEACHER, tmp_path / name, *VARIANTS["mixed precision"][0], *resume)
        with nullcontext() if device == CPU else pretended_device():
            monkeypatch.setattr("train_changeclass.processes", lambda _: nullcontext(device))
            code = main([*argv, "--val_dataset", data[0], "--batch_size", "2", "--epochs", epochs])
        return code

    assert train(CUDA, "whole", "1") == 0
    with monkeypatch.context() as patch:
        patch.setattr(engine, "training_step", step_and_signal)
        assert train(CUDA, "parts", "1") == 128 + signal.SIGTERM and len(steps) == 2
    assert train(CUDA, "parts", "1", "--resume") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    one, other = (read_checkpoint(tmp_path / name / "last.pth") for name in ("whole", "parts"))
    assert_same(dict(one.state_dict), dict(other.state_dict))
    for part in ("optimizer", "progress", "average"):
        assert_same(one.extra[part], other.extra[part])
    assert {group["fused"] for group in one.extra["optimizer"]["param_groups"]} == {True}
    for epochs, device in (("2", CPU), ("3", CUDA)):
        assert train(device, "whole", epochs, "--resume") == 0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_detection(precision):
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (height, 128, 3), np.uint8) for height in (64, 64, 96)]
    network = load_network(DEFAULT_WEIGHTS)
    expected = Detector(network, precision=precision, scales=[2, 1])(images)
    with pretended_device() as device:
        found = Detector(network, device=CUDA, precision=precision, scales=[2, 1])(images)
        assert device.launches["convolution"]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.labels, other.labels)
        assert np.allclose(one.boxes, other.boxes, atol=1e-3)
        assert np.allclose(one.scores, other.scores, atol=1e-5)


def test_a_tensor_of_the_cpu_in_the_step_is_caught(monkeypatch):
    mean = torch.tensor([104.0, 117.0, 123.0])
    monkeypatch.setattr(engine, "network_input", lambda images: (images - mean).permute(0, 3, 1, 2))
    with pretended_device() as device:
        recipe = recipe_of(CUDA)
        with pytest.raises(MixedDevices, match=r"sub: .*cuda\[2, 64, 64, 3\], cpu\[3\]"):
            count_step(device, recipe, 2)


def test_a_wait_for_every_image_is_caught(monkeypatch):
    original = engine.choose_targets

    def slip(labelled: Tensor, *more: object) -> tuple:
        assert all(one.any().item() for one in labelled)
        return original(labelled, *more)

    monkeypatch.setattr(engine, "choose_targets", slip)
    with pretended_device() as device:
        recipe = recipe_of(CUDA)
        count_step(device, recipe, 2)  # makes the priors
        few, many = (count_step(device, recipe, images) for images in (4, 16))
    assert many[0] - few[0] == 12


@pytest.mark.parametrize(
    "waits, call",
    [
        (0, lambda x, on: x + 1),
        (0, lambda x, on: x * torch.tensor(2.0)),
        (1, lambda x, on: x[0].item()),
        (1, lambda x, on: bool(x[0] > 0)),
        (1, lambda x, on: float(x[0])),
        (1, lambda x, on: x.tolist()),
        (1, lambda x, on: x.cpu()),
        (1, lambda x, on: x.to("cpu")),
        (1, lambda x, on: x.nonzero()),
        (1, lambda x, on: x[x > 0]),
        (0, lambda x, on: x.masked_fill(x > 0, 1.0)),
        (0, lambda x, on: x.__setitem__(x > 0, 1.0)),
        (1, lambda x, on: x.__setitem__((x > 0).nonzero()[:, 0], x.new_zeros(()))),
        (2, lambda x, on: x.__setitem__((x > 0).nonzero()[:, 0], 1.0)),
        (1, lambda x, on: x[[0, 1]]),
        (1, lambda x, on: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64))),
        (0, lambda x, on: x.repeat_interleave(torch.ones_like(x, dtype=torch.int64), output_size=4)),
        (1, lambda x, on: torch.tensor([1.0], device=on)),
        (2, lambda x, on: torch.tensor([x[0], x[1]])),
        (1, lambda x, on: x.new_tensor([1.0])),
        (0, lambda x, on: torch.zeros(3, device=on)),
        (1, lambda x, on: torch.zeros(3).to(on)),
        (1, lambda x, on: torch.zeros(3).to(on, non_blocking=True)),
        (1, lambda x, on: torch.zeros(3).pin_memory().to(on)),
        (0, lambda x, on: torch.zeros(3).pin_memory().to(on, non_blocking=True)),
        (0, lambda x, on: x.to(torch.float64)),
        (1, lambda x, on: x.copy_(torch.zeros(4))),
        (2, lambda x, on: torch.bincount(x.long())),
        (0, lambda x, on: x.prod(0)),
        (1, lambda x, on: x.requires_grad_().prod(0)),
    ],
)
def test_what_makes_the_host_wait(waits, call):
    with pretended_device() as device:
        x = torch.arange(4.0).to(CUDA)
        device.reset()
        call(x, x.device)
        assert device.waits.total() == waits, device.waits


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + torch.zeros(4),
        lambda x: torch.zeros(4).add_(x),
        lambda x: torch.cat([x, torch.zeros(4)]),
        lambda x: x.where(torch.ones(4, dtype=torch.bool), x),
        lambda x: torch.zeros(4)[x.long()],
    ],
)
def test_what_mixes_devices(call):
    with pretended_device():
        x = torch.arange(4.0).to(CUDA)
        with pytest.raises(MixedDevices, match="tensors of both devices"):
            call(x)
        with pytest.raises(TypeError, match="can't convert cuda"):
            x.numpy()
        assert x.cpu().numpy().tolist() == [0, 1, 2, 3] and x.cpu().device == CPU
