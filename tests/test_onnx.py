"""ONNX: files of convert_to_onnx.py and of others, as networks and in programs without this project."""

import copy
import dataclasses
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import convert_to_onnx
import detect
from data.config import cfg_mnet, cfg_re50, one_class
from layers.functions.prior_box import feature_sizes, prior_boxes
from models.arguments import DEFAULT_WEIGHTS
from models.checkpoint import load_network, save_checkpoint
from models.detector import Detector, InputSize, Thresholds
from models.onnx_export import (
    ExportedNetwork,
    append_nms,
    describe,
    export,
    priors_in_pixels,
)
from models.onnx_network import OnnxNetwork, open_session
from models.retinaface import RetinaFace
from utils.box_utils import decode
from utils.cli import DataError, UsageError
from utils.image_names import sample_photos
from utils.images import read_image, write_image

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

FIXED = (64, 96)
LIMITS = Thresholds()


@pytest.fixture(scope="module")
def network() -> RetinaFace:
    """The shipped network: one of random weights gives equal scores, whose order is not defined."""
    return load_network(DEFAULT_WEIGHTS)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Noise of odd sizes, two photos, and small copies of them side by side: 75 boxes."""
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(75, 110), (33, 31), (1, 1), (64, 64)]]
    photos = [read_image(path) for path in sample_photos()]
    crowd = np.hstack([cv2.resize(photo, (width, 150)) for width in (60, 90, 120) for photo in photos])
    return [*noise, *photos, crowd]


@pytest.fixture(scope="module")
def files(network, tmp_path_factory, dynamic_onnx) -> dict[str, str]:
    """Files of every kind; the one with NMS is made of the decoded one, as `export` does it."""
    folder = tmp_path_factory.mktemp("onnx")
    models = {
        "dynamic": onnx.load(dynamic_onnx),
        "decoded": export(network, "boxes", batch_size=None, image_size=None),
        "fixed": export(network, image_size=FIXED),
        "scores": export(network, "scores", image_size=FIXED),
        "fixed nms": export(network, "detections", image_size=FIXED, thresholds=LIMITS),
    }
    models["nms"] = append_nms(copy.deepcopy(models["decoded"]), LIMITS)
    describe(models["nms"], network.cfg, "detections", "fp32", LIMITS)
    for name in ("fixed", "scores"):
        models[f"foreign {name}"] = copy.deepcopy(models[name])
        del models[f"foreign {name}"].metadata_props[:]
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    return {name: str(folder / f"{name}.onnx") for name in models}


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save_checkpoint(path, network)
    return str(path)


def assert_same(found, expected) -> None:
    """Within the tolerance that the format promises: a hundredth of a pixel, a ten-thousandth of score."""
    assert found.labels.tolist() == expected.labels.tolist()
    assert np.abs(found.boxes - expected.boxes).max(initial=0) < 1e-2
    assert np.abs(found.scores - expected.scores).max(initial=0) < 1e-4


def test_a_dynamic_file_finds_the_same(network, files, pictures):
    ours, torchs = Detector.from_checkpoint(files["dynamic"]), Detector(network)
    assert ours.cfg == network.cfg
    assert ours([]) == []
    for picture in pictures:
        assert_same(ours(picture), torchs(picture))
    for found, expected in zip(ours([pictures[0]] * 3), torchs([pictures[0]] * 3), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("kind", ["fixed", "scores", "foreign fixed", "foreign scores"])
def test_a_fixed_file_letterboxes_and_finds_the_same(network, files, pictures, kind):
    """Metadata or graph tell scores from logits; images of one or several sizes go through one by one."""
    ours = Detector.from_checkpoint(files[kind], scales=1)
    assert ours.network.outputs == ("scores" if "scores" in kind else "logits")
    assert ours.cfg == network.cfg
    expected = Detector(network, input_size=InputSize(fixed=FIXED), scales=1)(pictures)
    assert all(map(len, expected[4:]))
    for one, other in zip(ours(pictures), expected, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("kind", ["decoded", "nms"])
def test_boxes_and_detections_of_the_graph_are_ours(network, files, pictures, kind):
    session = open_session(files[kind])
    detector = Detector(network, scales=1, thresholds=Thresholds(top_k=10**9))
    for picture in pictures:
        batch = detector.preprocess([picture] * 2)
        found = session.run(None, {"images": batch.contiguous().numpy()})
        raw = detector.forward(batch)
        if kind == "nms":
            sizes = [picture.shape[:2]] * 2
            expected = detector.postprocess(*raw, sizes[0], sizes)
            tensors = [torch.from_numpy(array) for array in found]
            box, score = convert_to_onnx.compare_detections(tensors, expected, exact=True)
            assert box < 1e-2
            assert score < 1e-4
            continue
        likely = raw[1].softmax(-1)[..., 1:].amax(-1) > 0.02
        height, width = picture.shape[:2]
        priors = prior_boxes(detector.cfg, (height, width)) * torch.tensor([width, height, width, height])
        boxes = decode(raw[0], priors, network.cfg.variances)
        assert np.abs(found[0] - boxes.numpy())[likely.numpy()].max(initial=0) < 1e-2
        assert np.abs(found[1] - raw[1].softmax(-1).numpy()).max() < 1e-4


@pytest.mark.parametrize("cfg", [cfg_mnet, cfg_re50, one_class(cfg_mnet)], ids=["mnet", "re50", "one class"])
def test_priors_of_the_graph_are_the_priors(cfg):
    """Those of the graph are in pixels and rounded once more: an ulp of a coordinate up to 100."""
    size = (75, 110)
    found = priors_in_pixels(cfg, feature_sizes(cfg, size), size)
    expected = prior_boxes(cfg, size) * torch.tensor([size[1], size[0]] * 2)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("upright", [False, True])
def test_a_padded_image_gets_its_boxes_back(network, upright):
    """1280x640 in 576x320 is 576x288: 0.45. Offsets of 0 give the priors, the first 16 wide around (4, 4)."""
    fixed, size = ((576, 320), (1280, 640)) if upright else ((320, 576), (640, 1280))
    detector = Detector(network, input_size=InputSize(fixed=fixed))
    batch = detector.preprocess([np.full((*size, 3), 200, np.uint8)])
    assert batch.shape == (1, 3, *fixed)
    padded = batch.mT if upright else batch
    assert not padded[:, :, 288:].any()
    assert padded[:, :, :288].all()
    loc, logits = torch.zeros(1, 22680, 4), torch.zeros(1, 22680, 3)
    logits[0, 0, 1] = 20
    found = detector.postprocess(loc, logits, fixed, [size])[0].above(0.9)
    assert np.allclose(found.boxes, [[-4 / 0.45, -4 / 0.45, 12 / 0.45, 12 / 0.45]], atol=1e-3)


def test_the_published_file(reference):
    path = reference / "weights" / "personfacedet_mobilenet0.25_2cls6anchors_130324_epoch_150_576x320.onnx"
    detector = Detector.from_checkpoint(path, "mobile0.25")
    assert detector.network.outputs == "logits"
    assert detector.network.image_size == (320, 576)
    photos = [read_image(reference / "fixtures" / "images" / n) for n in ("astronaut.png", "curve_test.jpg")]
    torchs = load_network(reference / "weights" / "mobilenet0.25_2cls6anchors_130324_epoch_150.pth")
    expected = Detector(torchs, input_size=InputSize(fixed=(320, 576)))(photos)
    for one, other in zip(detector(photos), expected, strict=True):
        assert_same(one, other)
    assert expected[0].above(0.5).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"hello", "damaged"),
        (0.5, "damaged"),
        (0.999, "damaged"),
        ("float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) { y = Relu (x)", "not a RetinaFace"),
        ("float[1, 8] x) => (float[1, 8] y) { y = Relu (x)", "expected one input tensor"),
        ("float[2, 3, 8, 8] x) => (float[2, 3, 8, 8] y) { y = Relu (x)", "expected one image or any number"),
    ],
    ids=["empty", "text", "half", "nearly all", "another network", "no images", "two images"],
)
def test_bad_files_are_named(tmp_path, files, content, message):
    path = tmp_path / "bad.onnx"
    if isinstance(content, float):
        with open(files["fixed"], "rb") as file:  # noqa: PTH123
            whole = file.read()
        content = whole[: int(len(whole) * content)]
    elif isinstance(content, str):
        text = f'<ir_version: 8, opset_import: ["": 17]> g ({content} }}'
        content = onnx.parser.parse_model(text).SerializeToString()
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        OnnxNetwork(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_wants_all_memory_is_named(tmp_path, network):
    """Its output would have 4e13 values, which depend on the image, so that nothing is known beforehand."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[1, 3, 64, 64] x) => (float[a, b, c] loc, float[d, e, f] logits) {
        shape = Constant <value_ints = [1, 10000000000000, 4]> ()
        one = ReduceSum <keepdims = 0> (x)
        loc = Expand (one, shape)
        logits = Identity (loc)
    }"""
    model = onnx.parser.parse_model(text)
    describe(model, network.cfg, "logits", "fp32", LIMITS)
    onnx.save(model, tmp_path / "huge.onnx")
    with pytest.raises(DataError, match=r"huge\.onnx: .*memory"):
        OnnxNetwork(tmp_path / "huge.onnx")


def test_priors_that_do_not_fit_are_noticed(tmp_path, files, network):
    model = onnx.load(files["fixed"])
    cfg = dataclasses.replace(network.cfg, heights_over_widths=(1.0,))
    describe(model, cfg, "logits", "fp32", LIMITS)
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(DataError, match="2 priors a cell"):
        OnnxNetwork(tmp_path / "odd.onnx")


def test_files_and_options_that_do_not_fit(tmp_path, files):
    for path, message in [
        (tmp_path, "a folder"),
        (tmp_path / "none.onnx", "no such file; expected an ONNX file"),
    ]:
        with pytest.raises(DataError, match=message):
            OnnxNetwork(path)
    for kind in ("decoded", "nms"):
        with pytest.raises(DataError, match="Convert again with --outputs logits"):
            OnnxNetwork(files[kind])
    with pytest.raises(DataError, match="give --network mobile0.25"):
        OnnxNetwork(files["fixed"], "resnet50")
    with pytest.raises(DataError, match="onnxruntime cannot run it"):
        OnnxNetwork(files["fixed"])(torch.zeros(1, 3, 32, 32))
    for options, message in [
        ({"device": "meta"}, "give --device cpu"),
        ({"precision": "fp16"}, "its precision is that of the file"),
        ({"input_size": InputSize(long_side=640)}, "takes 96x64 pixels and no other size"),
    ]:
        with pytest.raises(UsageError, match=message):
            Detector.from_checkpoint(files["fixed"], **options)
    with pytest.raises(UsageError, match="has its own precision"):
        Detector(OnnxNetwork(files["fixed"]), precision="bf16")


@pytest.mark.parametrize(("package", "kind"), [("onnxruntime", "fixed"), ("onnx", "foreign fixed")])
def test_a_missing_package_is_named(files, monkeypatch, package, kind):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        OnnxNetwork(files[kind])


def test_int8_at_the_command_line(tmp_path, checkpoint, network, pictures, capsys):
    """Small, its noted precision, and the same certain detections as float within a tenth of the image."""
    folder = tmp_path / "images"
    for number, picture in enumerate(pictures):
        write_image(folder / f"{number}.png", picture)
    out = tmp_path / "int8.onnx"
    arguments = [
        "-m",
        checkpoint,
        "--image_size",
        "320",
        "576",
        "--precision",
        "int8",
        "--calibrate",
        str(folder),
    ]
    assert convert_to_onnx.main([*arguments, "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "noise: onnxruntime and torch differ" in printed
    assert "int8, gives logits" in printed
    assert out.stat().st_size < 700_000
    ours, torchs = Detector.from_checkpoint(out), Detector(network, input_size=InputSize(fixed=(320, 576)))
    scores = [d.forward(d.preprocess(pictures[-1:]))[1].softmax(-1) for d in (ours, torchs)]
    assert 1e-4 < (scores[0] - scores[1]).abs().max() < 0.4

    video = tmp_path / "found.json"
    assert (
        detect.main([str(folder / "0.png"), "-m", str(out), "--no-save_image", "--save_json", str(video)])
        == 0
    )


def test_fp16_keeps_float_outside(network):
    exported = ExportedNetwork(network, "boxes", torch.float16)
    assert {output.dtype for output in exported(torch.zeros(1, 3, 64, 64))} == {torch.float32}


def test_a_file_that_differs_is_not_kept(tmp_path, checkpoint, files, monkeypatch):
    monkeypatch.setattr(convert_to_onnx, "export", lambda *_, **__: onnx.load(files["fixed"]))
    monkeypatch.setitem(convert_to_onnx.LIMITS, "fp32", (0.0, 0.0))
    out = tmp_path / "detector.onnx"
    with pytest.raises(DataError, match="not written, onnxruntime gives something else than torch"):
        convert_to_onnx.main(["-m", checkpoint, "--image_size", "64", "96", "--output", str(out)])
    assert list(tmp_path.iterdir()) == []


def test_detections_that_lack_or_are_too_many_differ(network, pictures):
    expected = Detector(network)(pictures[0])
    nothing = [torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=int), torch.zeros(0, dtype=int)]
    empty = type(expected).empty()
    assert convert_to_onnx.compare_detections(nothing, [empty], exact=True) == (0, 0)
    one = [torch.zeros(1, 4), torch.ones(1), torch.ones(1, dtype=int), torch.zeros(1, dtype=int)]
    assert convert_to_onnx.compare_detections(one, [empty], exact=True)[0] == float("inf")
    wanted = type(expected)(np.float32([[1, 0, 2, 0]]), np.float32([0.75]), np.array([1]))
    assert convert_to_onnx.compare_detections(nothing, [wanted], exact=False)[0] == float("inf")
    assert convert_to_onnx.compare_detections(one, [wanted], exact=False) == (2, 0.25)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--dynamic", "--image_size", "64", "64"],
        ["--image_size", "0", "64"],
        ["--dynamic", "--precision", "int8"],
        ["--dynamic", "--calibrate", "images"],
        ["--dynamic", "--output", "detector.pth"],
    ],
)
def test_arguments_that_do_not_fit(arguments):
    with pytest.raises(SystemExit) as error:
        convert_to_onnx.parse_args(arguments)
    assert error.value.code == 2


def test_nothing_to_calibrate_with(tmp_path, checkpoint):
    with pytest.raises(DataError, match="no images there"):
        convert_to_onnx.main(
            ["-m", checkpoint, "--dynamic", "--precision", "int8", "--calibrate", str(tmp_path)]
        )


@pytest.mark.parametrize("kind", ["nms", "fixed nms"])
def test_the_documented_program_runs_as_written(repository, tmp_path, network, files, pictures, kind):
    """Without this project in reach; its lines are the detector's, to the digits printed."""
    blocks = re.findall(r"```python\n(.*?)```", (repository / "docs" / "edge.md").read_text(), re.DOTALL)
    assert len(blocks) == 1
    (tmp_path / "find.py").write_text(blocks[0])
    picture = pictures[5]
    cv2.imwrite(str(tmp_path / "photo.png"), picture)
    done = subprocess.run(
        [sys.executable, "-I", "find.py", files[kind], "photo.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    size = InputSize(fixed=FIXED if kind == "fixed nms" else None)
    expected = Detector(network, input_size=size, scales=1)(picture).above(0.5)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [network.cfg.class_names[label - 1] for label in expected.labels]
    values = np.array([[float(value) for value in line[1:]] for line in lines]).reshape(-1, 5)
    assert np.abs(values[:, 0] - expected.scores).max(initial=0) < 1e-3
    assert np.abs(values[:, 1:] - expected.boxes).max(initial=0) < 0.05
