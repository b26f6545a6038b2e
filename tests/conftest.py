"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from data.config import cfg_mnet
from data.predictions import BoxTable
from models.checkpoint import save_checkpoint
from models.retinaface import RetinaFace
from tests.two_processes import TwoProcesses
from utils.box_utils import xywh_to_xyxy

REPOSITORY = Path(__file__).resolve().parent.parent

torch.set_num_threads(2)
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def json_of(main: Callable[[list[str]], int], *arguments: object) -> dict:
    """What an evaluator's ``--json`` holds after a run with ``-p`` and other arguments."""
    arguments = [str(argument) for argument in arguments]
    path = Path(arguments[arguments.index("-p") + 1]).with_suffix(".numbers.json")
    assert main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for the reference folder gets the mark ``reference``, so that ``-m reference`` finds it."""
    for item in items:
        if "reference" in item.fixturenames:
            item.add_marker("reference")


def table_of(images: Iterable[tuple]) -> BoxTable:
    """Detections of images "0", "1" and so on, each given as (boxes_xywh [n, 4], scores [n], labels [n])."""
    images = list(images)
    boxes, scores, labels = ([image[column] for image in images] for column in range(3))
    return BoxTable.from_images(
        [str(i) for i in range(len(images))], map(xywh_to_xyxy, boxes), labels, scores
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    """The project's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of published weights, ground truth and reference outputs; tests without it are skipped."""
    folder = Path(os.environ.get("RETINAFACE_REFERENCE", REPOSITORY.parent / "shared"))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"no reference data at {folder}; set RETINAFACE_REFERENCE to its folder")
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A network of random weights that finds a lot, for tests that need no real faces."""
    torch.manual_seed(3)
    network = RetinaFace(cfg_mnet)
    with torch.no_grad():
        for head in network.ClassHead:
            head.conv1x1.weight.mul_(40)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    save_checkpoint(path, network)
    return str(path)


@pytest.fixture(scope="session")
def two_processes(repository) -> Iterator[TwoProcesses]:
    """Runs scripts in two processes that work as one."""
    processes = TwoProcesses(repository)
    yield processes
    processes.close()
