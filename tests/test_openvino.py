"""ONNX files in OpenVINO: what onnxruntime finds, from the command line and by several threads."""

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from models.arguments import (
    DEFAULT_WEIGHTS,
    add_detection_arguments,
    add_network_arguments,
    add_scales_argument,
    build_detector,
)
from models.checkpoint import load_network
from models.detector import Detector
from models.onnx_export import export
from models.onnx_network import OnnxNetwork
from utils.cli import UsageError, parser_of
from utils.image_names import sample_photos
from utils.images import read_image

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory, dynamic_onnx) -> dict[str, Path]:
    folder, network = tmp_path_factory.mktemp("onnx"), load_network(DEFAULT_WEIGHTS)
    files = {"dynamic": dynamic_onnx}
    for name, outputs, size in (("fixed", "logits", (320, 320)), ("scores", "scores", (160, 320))):
        files[name] = folder / f"{name}.onnx"
        files[name].write_bytes(export(network, outputs, image_size=size).SerializeToString())
    return files


def detector(*arguments: object) -> Detector:
    parser = parser_of("")
    add_network_arguments(parser)
    add_detection_arguments(parser)
    add_scales_argument(parser, "1")
    return build_detector(parser.parse_args([*map(str, arguments), "--cpu"]))


@needs_openvino
@pytest.mark.parametrize("name", ["fixed", "dynamic", "scores"])
def test_it_finds_what_onnxruntime_finds(files, name):
    photos = [read_image(path) for path in sample_photos()]
    photos.append(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8))
    expected = detector("-m", files[name], "--conf", 0.1)(photos)
    found = detector("-m", files[name], "--conf", 0.1, "--runtime", "openvino")(photos)
    assert sum(map(len, expected)) >= 4
    for one, other in zip(found, expected, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
        # Float32 on both sides; bfloat16 would move boxes by pixels.
        assert np.allclose(one.boxes, other.boxes, atol=0.02)
        assert np.allclose(one.scores, other.scores, atol=1e-4)


@needs_openvino
def test_threads_may_share_it(files):
    network = OnnxNetwork(files["dynamic"], runtime="openvino")
    images = [
        torch.randn(1, 3, 64, 32 * (i % 3 + 1), generator=torch.Generator().manual_seed(i)) * 60
        for i in range(12)
    ]
    expected = [[part.clone() for part in network(image)] for image in images]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(network, images))
    for one, other in zip(found, expected, strict=True):
        assert all(map(torch.equal, one, other))


def test_usage_errors(files, monkeypatch):
    for arguments, message in (
        (["-m", DEFAULT_WEIGHTS, "--runtime", "openvino"], "runs .onnx files"),
        (
            ["-m", files["fixed"], "--runtime", "openvino", "--precision", "fp16"],
            "--precision fp16: openvino",
        ),
        (["-m", files["fixed"], "--precision", "bf16"], "its precision is that of the file"),
    ):
        with pytest.raises(UsageError, match=message):
            detector(*arguments)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="pip install openvino"):
        detector("-m", files["fixed"], "--runtime", "openvino")
