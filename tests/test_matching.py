"""Which prior learns which truth: cases worked out by hand, and the plain version."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import cfg_mnet, cfg_re50
from layers.functions import matching
from layers.functions.matching import PriorGrids, match, much_covered, prior_grids
from tests.plain.training import match_one
from tests.training_data import one_thread  # noqa: F401


def grids_of(cfg, image_size: tuple[int, int]) -> PriorGrids:
    return prior_grids(cfg, image_size, torch.device("cpu"))


#: One level of 2 x 2 cells and one square prior a cell: centres at 0.25 and 0.75, sides of 0.5.
FOUR = grids_of(
    replace(cfg_mnet, strides=(32,), min_sizes=((32,),), backbone_channels=(1,), heights_over_widths=(1.0,)),
    (64, 64),
)


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Boxes of all sizes and shapes, some tiny, cut to the image."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator)
    size = torch.exp(torch.rand(count, 1, generator=generator) * 6 - 6)
    size = size * torch.exp(torch.randn(count, 2, generator=generator) * 0.4)
    boxes = torch.cat([centre - size / 2, centre + size / 2], 1).clamp(0, 1)
    return boxes[(boxes[:, 2:] - boxes[:, :2] > 1e-4).all(1)]


def joined(boxes: list[torch.Tensor], labels: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What `match` takes of the boxes and labels of each image."""
    return torch.cat(boxes), torch.cat(labels), torch.tensor([len(one) for one in labels])


def test_no_images_and_no_boxes():
    for batch in (0, 1, 3):
        none = torch.zeros(0, dtype=torch.int64)
        matches = match(torch.zeros(0, 4), none, none.new_zeros(batch), FOUR)
        assert matches.batch_size == batch and not len(matches.prior)
        assert matches.boxes_norm.shape == (0, 4)


def test_priors_are_taken_apart():
    assert FOUR.corners.tolist()[2] == [0.0, 0.5, 0.5, 1.0]
    assert FOUR.centres[0].tolist() == [[0.25, 0.75]] and FOUR.columns.tolist() == [2]


def boxes_and_labels(*rows: tuple[int, float, float, float, float]) -> tuple[torch.Tensor, ...]:
    """One image's."""
    table = torch.tensor(rows)
    return joined([table[:, 1:].clone()], [table[:, 0].long()])


def test_a_prior_takes_the_truth_that_it_overlaps_most():
    # With prior 0, x and y 0 to 0.5: IoU 0.8 of the first, 1 of the second.
    matches = match(*boxes_and_labels((1, 0.0, 0.0, 0.5, 0.4), (2, 0.0, 0.0, 0.5, 0.5)), FOUR)
    # It is the best prior of both, and the last truth that wants a prior has it.
    assert matches.prior.tolist() == [0] and matches.labels.tolist() == [2]
    matches = match(*boxes_and_labels((2, 0.0, 0.0, 0.5, 0.5), (1, 0.0, 0.0, 0.5, 0.4)), FOUR)
    assert matches.labels.tolist() == [1]


def test_a_truth_without_a_good_prior_still_gets_its_best():
    # Prior 0 is 0.25, the truth 0.06 of the area: IoU 0.24, below 0.45 and above 0.2.
    matches = match(*boxes_and_labels((1, 0.1, 0.1, 0.4, 0.3)), FOUR)
    assert matches.prior.tolist() == [0]


def test_a_truth_below_the_least_overlap_is_dropped():
    # IoU 0.04 / 0.25 = 0.16.
    assert not len(match(*boxes_and_labels((1, 0.1, 0.1, 0.3, 0.3)), FOUR).prior)


def test_a_dropped_truth_takes_the_place_of_another_as_published():
    boxes, *more = boxes_and_labels((2, 0.0, 0.0, 0.5, 0.5), (1, 0.1, 0.1, 0.3, 0.3))
    matches = match(boxes, *more, FOUR)
    assert matches.labels.tolist() == [1] and matches.boxes_norm.tolist() == boxes[1:].tolist()


def as_dense(matches: matching.Matches, priors: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.zeros(matches.batch_size, priors, dtype=torch.int64)
    boxes = torch.zeros(matches.batch_size, priors, 4)
    labels[matches.image, matches.prior] = matches.labels
    boxes[matches.image, matches.prior] = matches.boxes_norm
    return labels, boxes


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([(64, 64), (100, 75), (33, 200), (320, 320)]),
    st.lists(st.sampled_from([0, 1, 2, 30, 300]), min_size=1, max_size=3),
    st.integers(0, 2**31),
    st.sampled_from([cfg_mnet, cfg_re50]),
    st.sampled_from([0.35, 0.45, 0.6]),
)
def test_agrees_with_the_plain_version(image_size, counts, seed, cfg, match_iou):
    grids = grids_of(cfg, image_size)
    boxes = [random_boxes(count, seed + i) for i, count in enumerate(counts)]
    labels = [torch.randint(1, 3, (len(b),), generator=torch.Generator().manual_seed(seed)) for b in boxes]
    found = as_dense(match(*joined(boxes, labels), grids, match_iou), len(grids.priors))
    for i in range(len(counts)):
        expected = match_one(boxes[i], labels[i], grids.priors, match_iou)
        assert torch.equal(found[0][i], expected[0]) and torch.equal(found[1][i], expected[1])


def test_work_in_small_bundles_changes_nothing(monkeypatch):
    grids, boxes = grids_of(cfg_mnet, (96, 96)), [random_boxes(80, 1), random_boxes(5, 2)]
    labels = [torch.ones(len(b), dtype=torch.int64) for b in boxes]
    whole = match(*joined(boxes, labels), grids)
    monkeypatch.setattr(matching, "MAX_PAIRS", 7)
    parts = match(*joined(boxes, labels), grids)
    assert torch.equal(whole.prior, parts.prior) and torch.equal(whole.boxes_norm, parts.boxes_norm)


def test_boxes_that_regions_cover():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 8, 1], [3, 3, 7, 7], [8, 8, 9, 9.0]])
    assert much_covered(boxes, torch.zeros(0, 4)).shape == (0, 4)
    regions = torch.tensor([[1, 0, 3, 4], [4, 4, 6, 6], [4, 4, 6.5, 6]])
    # Of the first box a half lies in the first region; of the second a quarter, at an IoU of 1 / 14. The
    # third has 4 of 16 in the second region, at an IoU of 4 / 16, and 5 of 16 in the last: above 0.3.
    covered = much_covered(boxes, regions).tolist()
    assert covered == [[True, False, False, False], [False] * 4, [False, False, True, False]]
