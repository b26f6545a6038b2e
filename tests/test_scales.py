"""Images looked at in several sizes: which, what each counts, and the plain version of all of it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from data.config import PYRAMID
from layers.functions.prior_box import prior_boxes
from models.checkpoint import DEFAULT_WEIGHTS, load_network
from models.detector import Detector, InputSize, Thresholds, View
from models.scales import check_scales, trust
from tests.plain.detector import plain_detect_at_scales
from utils.cli import UsageError
from utils.image_names import sample_photos
from utils.images import read_image, shrink

LIMITS = Thresholds(score=0.05, top_k=500, nms_iou=0.3, keep_top_k=80)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return cv2.resize(small, (width, height))


@pytest.mark.parametrize(
    ("long_side", "expected"),
    [
        (1, [16, 8, 4, 2, 1]),
        (256, [4, 2, 1]),
        (257, [2, 1]),
        (512, [2, 1]),
        (513, [1]),
        (588, [1]),
        (589, [1, 416 / 589]),
        (832, [1, 0.5]),
        (1168, [1, 416 / 1168]),
        (1169, [1, 640 / 1169, 416 / 1169]),
        (2336, [1, 640 / 2336, 416 / 2336]),
        (2337, [1, 1280 / 2337, 640 / 2337, 416 / 2337]),
        (10000, [1, 0.512, 0.256, 0.128, 0.064, 0.0416]),
    ],
)
def test_doubles_to_1024_pixels_or_comes_down_to_640_and_416(long_side, expected):
    assert list(PYRAMID.scales(long_side)) == pytest.approx(expected)


def passes(detector: Detector, images: list[np.ndarray]) -> list[tuple[int, ...]]:
    """(images, height, width) of every pass."""
    seen, forward = [], detector.forward

    def watch(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((batch.shape[0], *batch.shape[2:]))
        return forward(batch)

    detector.forward = watch
    detector(images)
    return seen


def test_images_and_copies_of_one_size_go_through_together(network):
    """Of one size once padded to whole cells of 32 pixels, which the published protocol does not do."""
    large, small = np.zeros((40, 832, 3), np.uint8), np.zeros((20, 416, 3), np.uint8)
    assert passes(Detector(network), [np.zeros((588, 8, 3), np.uint8)]) == [(1, 608, 32)]
    assert passes(Detector(network), [small, large, large[:39, :820]]) == [(3, 64, 832), (3, 32, 416)]
    assert passes(Detector(network, scales=[0.5, 2, 1]), [small]) == [
        (1, 64, 832),
        (1, 32, 416),
        (1, 32, 224),
    ]
    assert passes(Detector(network, scales=0.5), [small]) == [(1, 32, 224)]
    assert passes(Detector(network, scales=1), [small, large]) == [(1, 40, 832), (1, 20, 416)]
    assert passes(Detector(network, input_size=InputSize(416)), [large]) == [(1, 32, 416)]
    assert passes(Detector(network, input_size=InputSize(832)), [small]) == [(1, 64, 832), (1, 32, 416)]
    assert passes(Detector(network, input_size=InputSize(fixed=(64, 900))), [large]) == [(1, 64, 900)]


def test_what_a_box_of_a_scale_counts():
    """By hand: (640 - side) / (640 - 128) of a face, (640 - side) / 640 of a person; 24 is the least. With
    several coarser scales 320 takes the place of 640."""
    sides = np.float32([0, 23.9, 24, 128, 160, 384, 640, 900])
    face, person = np.arange(2).repeat(8).reshape(2, 8)
    none, one, several = np.arange(3).repeat(8).reshape(3, 8)
    assert trust(sides, face, none, one).tolist() == [1, 1, 1, 1, 0.9375, 0.5, 0, 0]
    assert trust(sides, person, none, one).tolist() == pytest.approx(
        [1, 616.1 / 640, 616 / 640, 0.8, 0.75, 0.4, 0, 0]
    )
    assert trust(sides, face, one, one).tolist() == [0, 0, 1, 1, 0.9375, 0.5, 0, 0]
    assert trust(sides, person, several, none).tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert trust(sides, person, none, none).tolist() == [1] * 8
    assert trust(sides, face, none, several).tolist() == pytest.approx([1, 1, 1, 1, 5 / 6, 0, 0, 0])
    assert trust(sides, person, one, several + 3).tolist() == pytest.approx(
        [0, 0, 296 / 320, 0.6, 0.5, 0, 0, 0]
    )


@pytest.mark.parametrize(("scales", "score"), [((1, 0.5), 0.01), ((2, 1, 0.5), 0.01), ((0.5, 0.25), 0.005)])
def test_equal_to_each_scale_by_itself(scales, score, kernel_or_not):
    """The shipped network and a real photo: random weights give scores that are all but equal."""
    network = load_network(DEFAULT_WEIGHTS)
    photo = cv2.resize(read_image(sample_photos()[0]), (251, 303), interpolation=cv2.INTER_AREA)
    copies, source = [], photo
    for scale in scales:
        size = round(251 * scale), round(303 * scale)
        if scale < 1:
            source = shrink(source, size[::-1])
            copies.append(source)
        else:
            copies.append(photo if scale == 1 else cv2.resize(photo, size))
    thresholds = Thresholds(score=score)
    expected = plain_detect_at_scales(network, copies, (303, 251), thresholds)
    found = Detector(network, scales=scales, thresholds=thresholds)(photo)
    assert len(expected) > 5 and set(found.labels.tolist()) == {1, 2}
    assert np.array_equal(found.labels, expected[:, 5])
    assert np.allclose(found.boxes, expected[:, :4], atol=2e-3)
    assert np.allclose(found.scores, expected[:, 4], atol=1e-5)


def test_auto_halves_a_large_image(network):
    photo = noise(96, 832)
    auto, listed = (Detector(network, scales=s, thresholds=LIMITS)(photo) for s in ("auto", [1, 0.5]))
    assert np.array_equal(auto.boxes, listed.boxes) and np.array_equal(auto.scores, listed.scores)


def test_one_look_of_auto_votes_and_clips_too():
    network, thresholds = load_network(DEFAULT_WEIGHTS), Thresholds(score=0.02)
    photo = cv2.resize(read_image(sample_photos()[0]), (450, 540), interpolation=cv2.INTER_AREA)
    once = Detector(network, scales=1, thresholds=thresholds)(photo)
    auto = Detector(network, thresholds=thresholds)(photo)
    expected = plain_detect_at_scales(network, [photo], photo.shape[:2], thresholds)
    assert len(expected) > 5 and np.allclose(auto.boxes, expected[:, :4], atol=2e-3)
    assert np.allclose(auto.scores, expected[:, 4], atol=1e-5)
    assert (once.boxes < 0).any() and not (auto.boxes < 0).any()


@pytest.mark.parametrize("score", [0.1, 0.5])
def test_a_higher_threshold_leaves_out_and_changes_nothing(score):
    photo, network = read_image(sample_photos()[0]), load_network(DEFAULT_WEIGHTS)
    found = Detector(network, thresholds=Thresholds(score=0.02))(photo).above(score)
    alone = Detector(network, thresholds=Thresholds(score=score))(photo)
    assert len(alone) and np.array_equal(alone.labels, found.labels)
    assert np.allclose(alone.boxes, found.boxes, atol=1e-4) and np.allclose(alone.scores, found.scores)


def test_auto_enlarges_a_small_image_unless_its_size_is_settled(network):
    photo = noise(96, 300)
    auto, listed = (Detector(network, scales=s, thresholds=LIMITS)(photo) for s in ("auto", [2, 1]))
    assert np.array_equal(auto.boxes, listed.boxes) and np.array_equal(auto.scores, listed.scores)
    settled = Detector(network, input_size=InputSize(300))
    assert [size for _, *size in passes(settled, [photo])] == [[96, 320]]


def test_a_box_found_at_two_scales_is_one(network):
    """A face of 40 pixels of the photo is one of 20 at half its size, which is below the least side; one of
    200 is found twice, and NMS keeps the coarsest scale's, whose score counts fully; the other votes."""
    detector = Detector(network, scales=[1, 0.5], classes=["face"])
    size, half = (512, 512), (256, 256)

    def outputs(side: float, input_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        priors = prior_boxes(detector.cfg, input_size)
        loc, logits = torch.zeros(1, len(priors), 4), torch.zeros(1, len(priors), 3)
        logits[..., 0] = 20
        middle = (priors[:, :2] - 0.5).norm(dim=1).argmin()
        centre, sides = torch.tensor([0.5, 0.5]), torch.full((2,), side / input_size[0])
        loc[0, middle, :2] = (centre - priors[middle, :2]) / (0.1 * priors[middle, 2:])
        loc[0, middle, 2:] = (sides / priors[middle, 2:]).log() / 0.2
        logits[0, middle] = torch.tensor([0.0, 2, -20])
        return loc, logits

    for side, others in ((40, 0), (200, (640 - 200) / (640 - 128)), (900, 0)):
        fine = detector._candidates(*outputs(side, size), size, [View(size, size, 0, 1)])[0]
        coarse = detector._candidates(*outputs(side / 2, half), half, [View(size, half, 1, 0)])[0]
        assert len(fine[0][1]) == (side < 640) and len(coarse[0][1]) == (side >= 48)
        found = detector._join([fine, coarse], size)
        assert found.scores.tolist() == pytest.approx([0.8808 * (1 - 0.2 * np.exp(-others / 8))], abs=1e-4)
        low, high = 256 - side / 2, 256 + side / 2
        assert np.allclose(found.boxes, [[low, low, high, high]], atol=1e-3)


@pytest.mark.parametrize("scales", ["car", [], 0, -1, [1, 0], ["auto", 1], [1, 17], float("nan")])
def test_scales_that_are_none(scales):
    with pytest.raises(UsageError, match="expected scales: auto, or numbers above 0"):
        check_scales(scales)


def test_scales_are_sorted_and_a_fixed_input_has_one(network):
    assert check_scales([0.5, 2, 1, 2]) == (2, 1, 0.5)
    fixed = InputSize(fixed=(64, 64))
    for scales in ("auto", 1):
        assert Detector(network, input_size=fixed, scales=scales).scales == (1,)
    with pytest.raises(UsageError, match="one scale; leave out --scales"):
        Detector(network, input_size=fixed, scales=[1, 0.5])
