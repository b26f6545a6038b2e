"""Published detections, batches, precisions, thresholds, the plain version of the steps, many images."""

import subprocess
import sys
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import nms

import models.detector
import models.scales
from data.config import cfg_mnet, cfg_re50, one_class
from data.predictions import Detections
from layers.functions.prior_box import prior_boxes
from models.checkpoint import DEFAULT_WEIGHTS, load_network
from models.detector import Detector, InputSize, Thresholds, detect_images
from models.retinaface import RetinaFace
from models.scales import above, suppress, vote
from tests.plain.detector import plain_detect, plain_nms, plain_vote
from utils.cli import DataError, UsageError
from utils.image_names import sample_photos
from utils.images import read_image, write_image

PHOTOS = ["astronaut.png", "grace_hopper.jpg", "curve_test.jpg"]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (75, 110, 3), np.uint8)


def published(reference, epoch: int) -> str:
    return reference / "weights" / f"mobilenet0.25_2cls6anchors_130324_epoch_{epoch}.pth"


def test_an_array_that_cannot_be_written_to_gives_no_warning(network, image, recwarn):
    locked = image.copy()
    locked.flags.writeable = False
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch would say it once a process
    try:
        found = Detector(network, scales=1)(locked)
    finally:
        torch.set_warn_always(before)
    assert not [w for w in recwarn if "writ" in str(w.message)]
    assert np.array_equal(found.boxes, Detector(network, scales=1)(image).boxes)


@pytest.mark.parametrize("epoch", [150, 295])
@pytest.mark.parametrize("photo", PHOTOS)
def test_published_detections(reference, epoch, photo):
    """Boxes within 1e-3 pixels and scores within 1e-5: float32 sums in another order."""
    expected = np.load(reference / "fixtures" / f"{photo.split('.')[0]}_epoch{epoch}.npz")["dets"]
    image = read_image(reference / "fixtures" / "images" / photo)
    found = Detector.from_checkpoint(published(reference, epoch), scales=1)(image)
    assert found.labels.tolist() == expected[:, 5].tolist()
    assert np.abs(found.boxes - expected[:, :4]).max() < 1e-3
    assert np.abs(found.scores - expected[:, 4]).max() < 1e-5
    faces_and_persons = np.bincount(found.above(0.5).labels, minlength=3)[1:].tolist()
    assert faces_and_persons == ([23, 4] if photo == "curve_test.jpg" else [1, 1])


@pytest.mark.parametrize("photo", PHOTOS[:2])
def test_published_raw_outputs(reference, photo):
    expected = np.load(reference / "fixtures" / f"{photo.split('.')[0]}_epoch150.npz")
    detector = Detector.from_checkpoint(published(reference, 150), scales=1)
    loc, logits = detector.forward(
        detector.preprocess([read_image(reference / "fixtures" / "images" / photo)])
    )
    assert np.abs(loc[0].numpy() - expected["loc"]).max() < 2e-5
    assert np.abs(logits[0].numpy() - expected["logits"]).max() < 2e-5


@pytest.mark.parametrize("scene", ["black", "noise", "gradient"])
def test_a_image_without_people_gives_none(reference, scene):
    image = {
        "black": np.zeros((480, 640, 3)),
        "noise": np.random.default_rng(0).normal(128, 30, (480, 640, 3)).clip(0, 255),
        "gradient": np.tile(np.linspace(0, 255, 640)[None, :, None], (480, 1, 3)),
    }[scene].astype(np.uint8)
    for epoch in (150, 295):
        assert not len(Detector.from_checkpoint(published(reference, epoch))(image).above(0.5))


def test_the_parent_finds_faces(reference):
    detector = Detector.from_checkpoint(reference / "weights" / "mobilenet0.25_Final.pth")
    found = detector(read_image(reference / "fixtures" / "images" / "astronaut.png")).above(0.5)
    assert found.labels.tolist() == [1]


def test_equal_to_the_plain_steps(kernel_or_not):
    """The shipped network and a real photo: random weights give scores that are all but equal."""
    network = load_network(DEFAULT_WEIGHTS)
    image = cv2.resize(read_image(sample_photos()[0]), (251, 303), interpolation=cv2.INTER_AREA)
    thresholds = Thresholds(score=0.005, top_k=400, nms_iou=0.3, keep_top_k=60)
    found = Detector(network, thresholds=thresholds, scales=1)(image)
    expected = plain_detect(network, image, thresholds)
    assert len(expected) > 20
    assert set(found.labels.tolist()) == {1, 2}
    assert np.array_equal(found.labels, expected[:, 5])
    assert np.allclose(found.boxes, expected[:, :4], atol=1e-3)
    assert np.allclose(found.scores, expected[:, 4], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    count=st.integers(0, 20),
    classes=st.integers(2, 4),
    cut=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_torch_and_the_kernel_find_the_same_above_a_cut(seed, images, count, classes, cut):
    if models.scales.kernel is None:
        pytest.skip("kernels are not built (make build)")
    random = torch.Generator().manual_seed(seed)
    loc, priors = torch.randn(images, count, 4, generator=random), torch.rand(count, 4, generator=random)
    logits = 4 * torch.randn(images, count, classes, generator=random)
    with pytest.MonkeyPatch.context() as patch:
        found = above(cut, loc, logits, priors, (0.1, 0.2))
        patch.setattr(models.scales, "kernel", None)
        expected = above(cut, loc, logits, priors, (0.1, 0.2))
    assert len(found[0]) == (logits.softmax(2)[..., 1:] > cut).sum()
    for fast, slow in zip(found, expected, strict=True):
        assert fast.dtype == slow.dtype and fast.shape == slow.shape
        assert np.allclose(fast, slow, atol=1e-6)


@pytest.mark.parametrize("compiled", [True, False])
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 60),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    most=st.sampled_from([1, 7, 750]),
    label=st.sampled_from([1, 2]),
)
def test_suppression_and_voting_equal_to_the_plain_ones(compiled, seed, count, iou, most, label):
    """Boxes on a grid, so that equal overlaps occur; the +1 of the published NMS decides some of them."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 12, (count, 4)).astype(np.float32)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    scores = np.linspace(0.9, 0.1, count, dtype=np.float32)
    if compiled and models.scales.kernel is None:
        pytest.skip("kernels are not built (make build)")
    kept_plainly = plain_nms(boxes, scores, iou)[:most]
    with pytest.MonkeyPatch.context() as patch:
        if not compiled:
            patch.setattr(models.scales, "kernel", None)
        kept = suppress(boxes, scores, iou, most)
        # What is all but equal to a limit votes or not by how it is rounded: no grid here.
        boxes += rng.uniform(0, 1e-2, boxes.shape).astype(np.float32)
        scores = rng.random(count, np.float32)
        voted, rated = vote(boxes, scores, kept, label)
        expected = plain_vote(boxes, scores, kept.tolist(), label)
    assert kept.tolist() == kept_plainly
    assert np.allclose(voted, expected[0], atol=1e-4) and np.allclose(rated, expected[1], atol=1e-5)


def test_the_kernel_equals_torchvision_bit_by_bit(network):
    """A crowd; boxes without a size, whose 0 / 0 is no number, and endless ones overlap none."""
    if models.scales.kernel is None:
        pytest.skip("kernels are not built (make build)")
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 500, (4000, 2)).astype(np.float32)
    boxes = np.hstack([corners, corners + rng.uniform(0, 90, (4000, 2)).astype(np.float32)])
    boxes[[7, 8]] = 5
    boxes[9], boxes[10], boxes[11, 2], boxes[12] = np.inf, [-np.inf, 0, np.inf, 9], np.nan, -boxes[12]
    scores = torch.linspace(1, 0, 4000)
    kept = models.scales.kernel.suppress(boxes, np.float32(0.4), 4000)
    assert np.array_equal(kept, nms(torch.from_numpy(boxes), scores, float(np.float32(0.4))).numpy())
    assert {7, 8, 9, 10, 11} < set(kept.tolist()) and len(kept) < 3000


def test_no_image_and_no_detection(network):
    assert Detector(network)([]) == []
    found = Detector(network, thresholds=Thresholds(score=1.0))(np.zeros((40, 40, 3), np.uint8))
    assert found.boxes.shape == (0, 4)
    assert len(found) == 0
    assert len(Detections.empty().above(0.5)) == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (33, 31), (64, 64)])
def test_any_size(network, size):
    found = Detector(network)(np.full((*size, 3), 200, np.uint8))
    assert np.isfinite(found.boxes).all()


def test_a_batch_equals_single_images_in_order(network):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(40, 50), (64, 32), (40, 50), (1, 1)]]
    detector = Detector(network)
    for image, found in zip(images, detector(images), strict=True):
        alone = detector(image)
        assert np.array_equal(found.labels, alone.labels)
        assert np.allclose(found.boxes, alone.boxes, atol=1e-3)
        assert np.allclose(found.scores, alone.scores, atol=1e-5)


def test_a_threshold_of_zero_keeps_every_prior(network, image):
    limits = Thresholds(score=0.0, top_k=10**6, nms_iou=1.0, keep_top_k=10**6)
    detector = Detector(network, thresholds=limits, scales=1)
    assert len(detector(image)) == 2 * len(prior_boxes(detector.cfg, image.shape[:2]))


def test_classes_are_looked_for_alone(network, image):
    both, person = Detector(network)(image), Detector(network, classes=["person"])(image)
    assert np.array_equal(both[both.labels == 2].boxes, person.boxes)
    with pytest.raises(UsageError, match="the network finds face, asked for was person"):
        Detector(RetinaFace(one_class(cfg_mnet)), classes=["person"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_finds_the_same(reference, precision):
    image = read_image(reference / "fixtures" / "images" / "astronaut.png")
    network = load_network(published(reference, 150))
    full, low = (Detector(network, precision=p)(image).above(0.5) for p in ("fp32", precision))
    assert full.labels.tolist() == low.labels.tolist()
    assert np.allclose(full.boxes, low.boxes, atol=8)


def test_boxes_are_in_pixels_of_the_original(reference):
    image = read_image(reference / "fixtures" / "images" / "astronaut.png")
    network = load_network(published(reference, 150))
    full, small = Detector(network)(image), Detector(network, input_size=InputSize(long_side=400))(image)
    assert full.labels[0] == small.labels[0] == 1
    assert np.allclose(full.boxes[0], small.boxes[0], atol=8)


@pytest.mark.parametrize(
    ("policy", "size", "expected"),
    [
        (InputSize(), (600, 512), (600, 512)),
        (InputSize(long_side=640), (600, 1200), (320, 640)),
        (InputSize(long_side=640), (1, 3000), (1, 640)),
        (InputSize(target_size=1600, max_size=2150), (800, 1000), (1600, 2000)),
        (InputSize(target_size=1600, max_size=2150), (1000, 2000), (1075, 2150)),
    ],
)
def test_input_size(policy, size, expected):
    assert policy(size) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: InputSize(long_side=0),
        lambda: InputSize(target_size=1600),
        lambda: InputSize(640, 1600, 2150),
        lambda: Thresholds(score=1.5),
        lambda: Thresholds(nms_iou=-0.1),
        lambda: Thresholds(top_k=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(UsageError, match="expected"):
        make()


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(network, image):
    with pytest.raises(ValueError, match=r"expected uint8\[height, width, 3\], but got"):
        Detector(network)([image])


def test_resnet50_runs():
    found = Detector(RetinaFace(cfg_re50))(np.zeros((64, 64, 3), np.uint8))
    assert found.boxes.shape[1] == 4


@pytest.mark.parametrize(
    "words",
    ["can't allocate memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory"],
)
def test_too_little_memory_is_a_clear_error(network, image, monkeypatch, words):
    detector = Detector(network, scales=1)
    error = RuntimeError(f"CUDA error: {words}")
    monkeypatch.setattr(detector, "network", lambda _: (_ for _ in ()).throw(error))
    with pytest.raises(DataError, match="images of 110x75 pixels, 1 at once, need more memory"):
        detector(image)


def read(item: str | np.ndarray) -> np.ndarray:
    if isinstance(item, str):
        raise DataError(item)
    return item


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_images_are_reported_and_the_others_come_in_order(network, image, workers):
    faults = []
    detector = Detector(network)
    assert list(detect_images(detector, [], read, 2, faults.append, workers)) == []
    images = [np.roll(image, 9 * i, 1) for i in range(4)]
    items = ["empty", images[0], "cut off", images[1], images[2], "gone", "gone", images[3]]
    found = list(detect_images(detector, iter(items), read, 2, faults.append, workers))
    assert [str(fault) for fault in faults] == ["empty", "cut off", "gone", "gone"]
    assert len(found) == 4
    for picture, (item, same, detections) in zip(images, found, strict=True):
        assert item is same is picture
        assert np.allclose(detections.boxes, detector(picture).boxes, atol=1e-3)
    with pytest.raises(DataError, match="cut off"):
        list(detect_images(detector, items[1:], read, 2, workers=workers))


def test_a_batch_that_is_too_large_for_the_memory_goes_through_one_by_one(network, image, monkeypatch):
    detector, faults = Detector(network, scales=1), []
    forward, sizes, batches = detector.network, [], []

    def small_memory(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert all(earlier() is None for earlier in batches)  # nothing holds those that failed
        batches.append(weakref.ref(batch))
        sizes.append(len(batch))
        if batch.numel() > 3 * 75 * 110:
            raise RuntimeError("can't allocate memory")
        return forward(batch)

    monkeypatch.setattr(detector, "network", small_memory)
    images = [image, image, np.repeat(image, 2, 0), image]

    def note(fault: DataError) -> None:
        faults.append(str(fault))

    found = list(detect_images(detector, range(4), images.__getitem__, 4, note))
    assert [item for item, _, _ in found] == [0, 1, 3]
    assert len(faults) == 1 and "images of 110x150 pixels, 1 at once" in faults[0]
    assert sizes == [1, 1, 1, 1, 1]  # the largest first, then one by one
    sizes.clear()
    assert len(list(detect_images(detector, range(3), lambda _: image, 3))) == 3
    assert sizes == [3, 1, 1, 1]


def test_a_detector_leaves_the_process_as_it_is(network, monkeypatch):
    """Neither malloc nor OpenCV's messages are changed but by the scripts."""
    monkeypatch.setattr("utils.processes.keep_freed_memory", lambda: pytest.fail("malloc was changed"))
    code = "import cv2; level = cv2.utils.logging.getLogLevel(); import utils.images, models.detector; "
    code += "assert cv2.utils.logging.getLogLevel() == level > 0"
    Detector(network)
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_paths_pictures_of_pillow_and_arrays(network, image, tmp_path):
    path = tmp_path / "photo.png"
    write_image(path, image)
    pillow = Image.open(path)
    detector = Detector(network)
    expected = detector(image)
    assert expected.image_size == (75, 110) and len(expected) > 20
    for found in (
        *(detector(path), detector(str(path)), detector(pillow), detector(np.asarray(pillow), rgb=True)),
        *detector([path, pillow]),
    ):
        assert np.allclose(found.boxes, expected.boxes, atol=1e-3)
    with pytest.raises(DataError, match="no such file; expected an image"):
        detector(tmp_path / "none.png")


def test_the_default_weights(monkeypatch, weights, tmp_path):
    monkeypatch.setattr("models.checkpoint.DEFAULT_WEIGHTS", Path(weights))
    assert Detector().cfg == cfg_mnet
    monkeypatch.setattr("models.checkpoint.DEFAULT_WEIGHTS", tmp_path / "none.pth")
    with pytest.raises(UsageError, match="is not there"):
        Detector()
