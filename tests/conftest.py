"""Fixtures of all tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import models.scales
from data.annotations import ImageAnnotation, read_annotations, write_list
from data.config import cfg_mnet
from data.predictions import BoxTable
from models.checkpoint import DEFAULT_WEIGHTS, load_network, save_checkpoint
from models.onnx_export import export
from models.retinaface import RetinaFace
from prep_data import main
from tests.two_processes import TwoProcesses
from utils.box_utils import xywh_to_xyxy
from utils.images import write_image

REPOSITORY = Path(__file__).resolve().parent.parent

torch.set_num_threads(2)
settings.register_profile("project", deadline=None)
settings.load_profile("project")


def prep(*words: object) -> int:
    """What a step of `prep_data.py` ends with."""
    return main([str(word) for word in words])


def json_of(main: Callable[[list[str]], int], *arguments: object) -> dict:
    """What an evaluator's ``--json`` holds after a run with ``-p`` and other arguments."""
    arguments = [str(argument) for argument in arguments]
    path = Path(arguments[arguments.index("-p") + 1]).with_suffix(".numbers.json")
    assert main([*arguments, "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def network() -> RetinaFace:
    """Random weights that fire often, for both classes, with boxes of all sizes."""
    torch.manual_seed(3)
    network = RetinaFace(cfg_mnet)
    with torch.no_grad():
        for head in network.ClassHead:
            head.conv1x1.weight.mul_(8)
        for head in network.BboxHead:
            head.conv1x1.weight.mul_(4)
    return network.eval()


@pytest.fixture(params=["kernel", "without"])
def kernel_or_not(request, monkeypatch) -> None:
    """What follows the network, once with the compiled kernel and once without."""
    if request.param == "without":
        monkeypatch.setattr(models.scales, "kernel", None)
    elif models.scales.kernel is None:
        pytest.skip("kernels are not built (make build)")


@pytest.fixture(scope="session")
def dynamic_onnx(tmp_path_factory) -> Path:
    """The shipped network as an ONNX file for batches and images of any size; it takes 8 seconds to write."""
    path = tmp_path_factory.mktemp("onnx") / "dynamic.onnx"
    model = export(load_network(DEFAULT_WEIGHTS), batch_size=None, image_size=None)
    path.write_bytes(model.SerializeToString())
    return path


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


def same(found: Path, expected: Path, atol: float = 2e-9) -> None:
    """Asserts that two lists have the same images, in any order, with the same boxes."""
    found_, expected_ = read_annotations(found), {a.path: a for a in read_annotations(expected)}
    assert sorted(a.path for a in found_) == sorted(expected_)
    for a in found_:
        np.testing.assert_array_equal(a.labels, expected_[a.path].labels)
        np.testing.assert_allclose(a.boxes_xywh_norm, expected_[a.path].boxes_xywh_norm, rtol=0, atol=atol)


@pytest.fixture
def listed(tmp_path) -> Path:
    """A list of twelve images, 80x60, of which the last two are equal; boxes of both classes."""
    path = tmp_path / "all" / "list.txt"
    draw = np.random.default_rng(0)
    annotations = []
    for i in range(12):
        image = np.full((60, 80, 3), 3 + 20 * min(i, 10), np.uint8)
        write_image(path.parent / "images" / f"{i % 3}" / f"{i}.png", image)
        boxes = draw.uniform(0.1, 0.45, (i % 4, 4)).round(6)
        annotations.append(ImageAnnotation(f"{i % 3}/{i}.png", [1, 2, 1][: i % 4], boxes))
    write_list(path, annotations, ["face", "person"])
    return path


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
