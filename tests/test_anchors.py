"""Prior coverage against brute force, k-means on shapes worked out by hand, the proposal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.ops import box_convert, box_iou

from data import anchors
from data.anchors import BoxShapes, best_prior_iou, k_means, prior_recall, propose, read_shapes, shape_iou
from data.annotations import ImageAnnotation, write_annotations
from data.config import cfg_mnet, cfg_re50
from layers.functions.prior_box import prior_boxes
from tests.conftest import prep
from utils.cli import DataError, UsageError

SIDE = 160
coordinates = st.floats(0, SIDE - 1)
lengths = st.floats(1, SIDE)


def shapes_of(boxes, labels=None) -> BoxShapes:
    return BoxShapes(np.array(boxes, float).reshape(-1, 4), np.array(labels or [1] * len(boxes)), SIDE)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(coordinates, coordinates, lengths, lengths), min_size=1, max_size=5),
    cfg=st.sampled_from([cfg_mnet, cfg_re50]),
    side=st.sampled_from([SIDE, 150]),
)
@example(boxes=[(0, 143.5, 41, 50)], cfg=cfg_mnet, side=150)  # the last centre is clipped
def test_best_prior_is_that_of_all_priors(boxes, cfg, side):
    shapes = replace(shapes_of(boxes), side=side)
    priors = box_convert(prior_boxes(cfg, (side, side)).double() * side, "cxcywh", "xyxy")
    expected = box_iou(box_convert(torch.tensor(boxes, dtype=torch.float64), "cxcywh", "xyxy"), priors)
    # Priors are rounded to float32.
    np.testing.assert_allclose(best_prior_iou(shapes, cfg).max(1), expected.max(1).values, atol=2e-6)


def test_shape_iou_by_hand():
    found = shape_iou(np.array([[2.0, 2.0], [4.0, 1.0]]), np.array([[2.0, 2.0], [1.0, 4.0]]))
    np.testing.assert_allclose(found, [[1, 2 / 6], [2 / 6, 1 / 7]])


def test_k_means_finds_the_groups_and_never_gets_worse():
    generator = np.random.default_rng(1)
    groups = np.array([[10, 10], [10, 40], [100, 100]])
    sizes = np.repeat(groups, 50, 0) * generator.uniform(0.97, 1.03, (150, 2))
    centres, mean_iou = k_means(sizes, 3)
    np.testing.assert_allclose(centres, groups, rtol=0.02)
    assert mean_iou > 0.95
    means = [k_means(sizes, k)[1] for k in range(1, 6)]
    assert means == sorted(means)
    np.testing.assert_array_equal(k_means(np.array([[2.0, 3.0]] * 4), 3)[0], [[2, 3]])


def test_recall_counts_by_class_and_size():
    shapes = shapes_of([(84, 84, 16, 16), (84, 84, 2, 2), (88, 88, 32 / 2.5**0.5, 32 * 2.5**0.5)], [1, 1, 2])
    rows = {(r.name, r.bounds): (r.boxes, r.shares) for r in prior_recall(shapes, cfg_mnet)}
    assert rows["face", (16, 32)] == (1, (1, 1, 1))
    assert rows["face", (0, 8)] == (1, (0, 0, 0))
    assert rows["face", anchors.ALL_SIZES] == (2, (0.5, 0.5, 0.5))
    assert rows["person", (32, 64)][0] == 1
    assert ("person", (0, 8)) not in rows


def test_a_proposal_is_better_or_the_same():
    wide = shapes_of([(80, 80, 100, 60)] * 3 + [(80, 80, 30, 18)])
    proposal, before, after = propose(wide, cfg_mnet)
    assert after == anchors.mean_recall(wide, proposal) >= before
    square = shapes_of([(84, 84, 16, 16)])
    assert propose(square, cfg_mnet) == (cfg_mnet, 1.0, 1.0)


def test_boxes_at_training_scale(tmp_path):
    path = tmp_path / "list.txt"
    write_annotations(path, [ImageAnnotation("a.jpg", [1, 2], [[0.5, 0.5, 0.25, 0.5], [0, 0, 0, 1]])])
    shapes = read_shapes(path, 640, None, (500, 1000))
    np.testing.assert_allclose(shapes.boxes_cxcywh, [[400, 240, 160, 160]])
    write_annotations(path, [ImageAnnotation("a.jpg")])
    with pytest.raises(DataError, match="no box with an area"):
        read_shapes(path, 640, None, (500, 1000))
    with pytest.raises(DataError, match=r"list\.txt:1: .*a\.jpg: no such file; expected an image"):
        read_shapes(path, 640, tmp_path, None)


def test_command_writes_plot_and_numbers(tmp_path, capsys):
    path = tmp_path / "list.txt"
    boxes = np.random.default_rng(0).uniform(0.05, 0.5, (40, 4))
    write_annotations(path, [ImageAnnotation("a.jpg", [1, 2] * 20, boxes)])
    output = tmp_path / "anchors.png"
    arguments = ["anchors", str(path), "--output", str(output)]
    with pytest.raises(DataError, match="images: no such folder"):
        prep(*arguments)
    assert prep(*arguments, "--assume_size", "480", "640") == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "40 boxes in a square of 640 px" in printed and "\n 12  0." in printed
    with pytest.raises(SystemExit, match="2"):
        prep(*arguments, "--assume_size", "0", "640")
    arguments[arguments.index(str(output))] = str(tmp_path / "anchors.odd")
    with pytest.raises(UsageError, match="ends with .png"):
        prep(*arguments, "--assume_size", "480", "640")


def test_published_list(reference, tmp_path):
    """The numbers that the README quotes: why ratios 2.5 and 3.33 joined the square."""
    import gzip

    (listed,) = (reference / "openimages_val").glob("wider_val_gt*.gz")
    path = tmp_path / "list.txt"
    path.write_bytes(gzip.decompress(listed.read_bytes()))
    shapes = read_shapes(path, 640, None, (768, 1024))
    assert len(shapes) == 30055
    shares = [share for _, share in anchors.ratio_steps(shapes, cfg_mnet)]
    np.testing.assert_allclose(shares, [0.858, 0.952, 0.955], atol=1e-3)
