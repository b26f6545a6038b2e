"""Priors: counts, order and values by hand, against the plain loops and the published code's output."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import NETWORKS, cfg_mnet, cfg_re50, one_class
from layers.functions.prior_box import prior_boxes, priors_per_cell
from tests.plain.detector import plain_priors


@pytest.mark.parametrize(
    ("cfg", "count"), [(cfg_mnet, 50_400), (cfg_re50, 50_400), (one_class(cfg_mnet), 16_800)]
)
def test_number_of_priors_of_a_640_pixel_square(cfg, count):
    assert prior_boxes(cfg, (640, 640)).shape == (count, 4)


def test_first_cell_by_hand():
    """An image of 100 wide, 200 high; size 16 at ratios 1, 2.5 and 3.33, centre at 4 pixels."""
    priors = prior_boxes(cfg_re50, (200, 100))
    assert torch.allclose(priors[0], torch.tensor([4 / 100, 4 / 200, 16 / 100, 16 / 200]))
    root = 2.5**0.5
    assert torch.allclose(priors[1], torch.tensor([4 / 100, 4 / 200, 16 / root / 100, 16 * root / 200]))
    assert torch.allclose(priors[3, 2:], torch.tensor([32 / 100, 32 / 200]))
    assert torch.allclose(priors[priors_per_cell(cfg_re50), :2], torch.tensor([12 / 100, 4 / 200]))


def test_only_the_narrow_network_clips():
    assert prior_boxes(cfg_mnet, (32, 32)).max() == 1
    assert prior_boxes(cfg_re50, (32, 32)).max() > 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 140), st.integers(1, 140), st.sampled_from([*NETWORKS.values(), one_class(cfg_mnet)]))
def test_equal_to_the_plain_loops_bit_by_bit(height, width, cfg):
    assert torch.equal(prior_boxes(cfg, (height, width)), plain_priors(cfg, (height, width)))


@pytest.mark.parametrize("photo", ["astronaut", "grace_hopper"])
def test_equal_to_the_published_code_bit_by_bit(reference, photo):
    expected = np.load(reference / "fixtures" / f"{photo}_epoch150.npz")
    height, width = expected["shape"][:2].tolist()
    assert np.array_equal(prior_boxes(cfg_mnet, (height, width)).numpy(), expected["priors"])


def test_column_sums_of_the_published_code(reference):
    expected = np.load(reference / "fixtures" / "curve_test_epoch150.npz")
    height, width = expected["shape"][:2].tolist()
    assert np.array_equal(
        prior_boxes(cfg_mnet, (height, width)).double().sum(0).numpy(), expected["priors_sum"]
    )


def test_a_size_is_built_once():
    assert prior_boxes(cfg_mnet, (64, 96)) is prior_boxes(cfg_mnet, (64, 96))
    assert prior_boxes(cfg_mnet, (96, 64)) is not prior_boxes(cfg_mnet, (64, 96))


def test_priors_that_a_detector_has_used_serve_training_too():
    with torch.inference_mode():
        priors = prior_boxes(cfg_mnet, (40, 72))
    assert not priors.is_inference()


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (-1, 5)])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="at least 1x1"):
        prior_boxes(cfg_mnet, size)
