"""On a CUDA device: the CPU's numbers, no hidden waits, several processes. Skipped where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

import detect
import test_widerface_personface as dump
from data.predictions import read_predictions
from data.wider_face import WiderFaceDetection
from models.checkpoint import DEFAULT_WEIGHTS, load_network
from models.engine import network_input, training_step, validate
from tests.pretended_device import CPU, CUDA
from tests.test_pretended_device import VARIANTS, batch_of, recipe_of, train_two_steps
from tests.test_training import arguments, losses, rows
from tests.training_data import make_list
from train_changeclass import main
from wider_openimagespersonface_evaluate.evaluation import evaluate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """Convolutions in float32 as on the CPU, without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("variant", [name for name, (more, *_) in VARIANTS.items() if "--amp" not in more])
def test_steps_find_what_the_cpu_finds(variant):
    more = (*VARIANTS[variant][0], "--lr", "1e-6")
    cpu, cuda = (train_two_steps(recipe_of(device, *more)) for device in (CPU, CUDA))
    for (step, one), (_, other) in zip(cuda, cpu, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-3), step


def test_forward_and_backward_wait_for_nothing():
    recipe = recipe_of(CUDA)
    images, _ = batch_of(4)
    inputs = network_input(images.to(CUDA))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loc, logits = recipe.network(inputs)
        (loc.square().mean() + logits.square().mean()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_waits_no_more_often_than_on_the_pretended_device(variant, recwarn):
    more, waits, _ = VARIANTS[variant]
    recipe = recipe_of(CUDA, *more)
    images, targets = batch_of(4)
    images = images.to(CUDA)
    targets = targets._replace(
        **{k: v.pin_memory() for k, v in targets._asdict().items() if isinstance(v, torch.Tensor)}
    )
    training_step(recipe, images, targets, 0)
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    recwarn.clear()
    try:
        training_step(recipe, images, targets, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in recwarn if "synchronizing" in str(w.message)]) <= waits


def test_validation_finds_what_the_cpu_finds(tmp_path):
    dataset = WiderFaceDetection([make_list(tmp_path, 8)])
    network = load_network(DEFAULT_WEIGHTS)
    cuda, cpu = (validate(network.to(device), dataset, device, evaluate) for device in (CUDA, CPU))
    assert cuda == pytest.approx(cpu, abs=1e-3)


def test_a_run_stops_and_goes_on(tmp_path):
    data = [str(make_list(tmp_path / name, 8, (name,))) for name in ("face", "person")]
    argv = arguments(data, str(DEFAULT_WEIGHTS), tmp_path / "run", "--ema", "0.9", "--val_dataset", data[0])
    argv[argv.index("--cpu")] = "--amp"
    assert main([*argv, "--num_workers", "1"]) == 0
    assert main([*argv, "--epochs", "3", "--resume"]) == 0
    assert len(rows(tmp_path / "run")) == 4


def test_the_dump_and_detect_find_what_the_cpu_finds(tmp_path):
    make_list(tmp_path, 4)
    found = {}
    for device in ("cuda", "cpu"):
        folder = tmp_path / device
        argv = ["--dataset_folder", tmp_path / "images", "--save_folder", folder, "--device", device]
        assert dump.main([*map(str, argv)]) == 0
        argv = ["--save_json", folder / "found.json", "--no-save_image", "--device", device]
        assert detect.main([*map(str, argv)]) == 0
        table, _ = read_predictions(folder, [str(i) for i in range(4)])
        found[device] = table, json.loads((folder / "found.json").read_text())
    (one, one_json), (other, other_json) = found["cuda"], found["cpu"]
    assert one.boxes == pytest.approx(other.boxes, abs=0.05) and one.labels.tolist() == other.labels.tolist()
    assert one.scores == pytest.approx(other.scores, abs=1e-4)
    labels = ([box["category_id"] for box in found["annotations"]] for found in (one_json, other_json))
    assert Counter(next(labels)) == Counter(next(labels))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="less than two CUDA devices here")
def test_two_processes_over_nccl_find_what_one_finds(tmp_path, repository: Path):
    data = [str(make_list(tmp_path / name, 8, (name,))) for name in ("face", "person")]
    launcher = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"
    for name, start in (("one", ()), ("two", launcher)):
        argv = arguments(data, str(DEFAULT_WEIGHTS), tmp_path / name, "--freeze_bn", "--lr", "1e-5")
        argv.remove("--cpu")
        command = [sys.executable, *start, str(repository / "train_changeclass.py"), *argv]
        subprocess.run(command, env=os.environ, check=True, timeout=600)
    for one, two in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert [float(v) for v in one] == pytest.approx([float(v) for v in two], rel=0.01)
