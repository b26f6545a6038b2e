"""MultiBox loss: the plain version, unlabelled classes, images without boxes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from data.config import cfg_mnet
from data.wider_face import Targets
from layers.functions.matching import prior_grids
from layers.functions.prior_box import prior_boxes
from layers.modules import multibox_loss as loss_module
from layers.modules.multibox_loss import LOC_LOSSES, MultiBoxLoss, giou_loss
from tests.plain.training import multibox_loss
from tests.test_matching import random_boxes
from tests.training_data import one_thread  # noqa: F401
from utils.box_utils import encode

SIZE = (96, 96)


def case(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Random outputs and targets of a batch: loc, logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    priors = len(prior_boxes(cfg_mnet, SIZE))
    loc = torch.randn(len(counts), priors, 4, generator=generator, requires_grad=True)
    logits = (torch.randn(len(counts), priors, 3, generator=generator) * 3).requires_grad_()
    boxes = [random_boxes(count, seed + i) for i, count in enumerate(counts)]
    labels = [torch.randint(1, 3, (len(one),), generator=generator) for one in boxes]
    lengths = torch.tensor([len(one) for one in boxes])
    labelled = torch.ones(len(counts), 2, dtype=torch.bool)
    return loc, logits, Targets(torch.cat(boxes), torch.cat(labels), lengths, labelled, [])


def known(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 1, 2, dtype=torch.bool)


def loss_of(criterion: MultiBoxLoss, loc, logits, targets, unknown) -> dict[str, torch.Tensor]:
    matches = criterion.match(targets, SIZE)
    return criterion(loc, logits, matches, prior_boxes(cfg_mnet, SIZE), unknown)


@pytest.mark.parametrize("counts", [[0], [0, 0, 0], [1], [0, 1, 5], [300], [300, 0, 2], [40, 40]])
@pytest.mark.parametrize("negatives_of_empty", [0, 7])
def test_agrees_with_the_plain_version(counts, negatives_of_empty):
    loc, logits, targets = case(counts, seed=len(counts))
    criterion = MultiBoxLoss(cfg_mnet, negatives_of_empty=negatives_of_empty)
    ours = loss_of(criterion, loc, logits, targets, known(len(counts)))
    plain = multibox_loss(
        loc,
        logits,
        prior_boxes(cfg_mnet, SIZE),
        targets.boxes_norm.split(targets.counts.tolist()),
        targets.labels.split(targets.counts.tolist()),
        negatives_of_empty=negatives_of_empty,
    )
    torch.testing.assert_close(ours["loc"], 2 * plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["class"], plain[1], rtol=1e-5, atol=1e-5)
    gradients = (
        torch.autograd.grad(total, (loc, logits), materialize_grads=True)
        for total in (ours["loc"] + ours["class"], 2 * plain[0] + plain[1])
    )
    for own, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 300])
def test_giou_agrees_with_torchvision(count):
    found, wanted = (random_boxes(count, seed) for seed in (1, 2))
    found[: count // 4] = wanted[: count // 4] * 0.9  # most of the others share nothing
    values, gradients = [], []
    for loss in (giou_loss, generalized_box_iou_loss):
        boxes = found.clone().requires_grad_()
        values.append(loss(boxes, wanted))
        gradients += torch.autograd.grad(values[-1].sum(), boxes)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_a_image_without_boxes_gives_negatives():
    loc, logits, targets = case([0])
    loss = loss_of(MultiBoxLoss(cfg_mnet), loc, logits, targets, known(1))
    assert loss["loc"] == 0 and loss["class"] > 0
    (gradient,) = torch.autograd.grad(loss["class"], logits)
    touched = gradient[0].abs().sum(1) > 0
    assert touched.sum() == 7
    # The hardest: those least sure of the background.
    background = logits[0].softmax(1)[:, 0]
    assert background[touched].max() <= background[~touched].min()


def test_nothing_pushes_an_unlabelled_class_down():
    loc, logits, targets = case([4, 0, 30])
    targets.labels.fill_(2)
    unknown = known(3)
    unknown[..., 0] = True  # faces
    criterion = MultiBoxLoss(cfg_mnet)
    matches = criterion.match(targets, SIZE)
    loss = loss_of(criterion, loc, logits, targets, unknown)["class"]
    (gradient,) = torch.autograd.grad(loss, logits)
    gradient[matches.image, matches.prior] = 0
    assert (gradient[..., 1] <= 0).all() and (gradient[..., 1] < 0).any()
    assert (gradient[..., 2] >= 0).all() and (gradient[..., 2] > 0).any()


def test_the_loss_of_a_negative_merges_background_and_the_unlabelled_class():
    criterion = MultiBoxLoss(cfg_mnet, negatives_of_empty=1)
    loc, logits, targets = case([0])
    logits = torch.full_like(logits, -20.0)
    logits[..., 0] = 0.0
    logits[0, 5] = torch.tensor([0.2, 0.5, 0.3]).log()
    unknown = known(1)
    assert loss_of(criterion, loc, logits, targets, unknown)["class"].item() == pytest.approx(
        -math.log(0.2), abs=1e-5
    )
    unknown[..., 0] = True
    assert loss_of(criterion, loc, logits, targets, unknown)["class"].item() == pytest.approx(
        -math.log(0.7), abs=1e-5
    )
    unknown[..., 1] = True
    assert loss_of(criterion, loc, logits, targets, unknown)["class"].item() == 0


def test_unknown_at_single_priors():
    criterion = MultiBoxLoss(cfg_mnet, negatives_of_empty=1)
    loc, logits, targets = case([0])
    logits = torch.full_like(logits, -20.0)
    logits[..., 0] = 0.0
    logits[0, 5] = torch.tensor([0.2, 0.8, 1e-6]).log()
    logits[0, 8] = torch.tensor([0.6, 0.4, 1e-6]).log()
    unknown = known(1).repeat(1, logits.shape[1], 1)
    unknown[0, 5, 0] = True
    loss = loss_of(criterion, loc, logits, targets, unknown)["class"].item()
    assert loss == pytest.approx(-math.log(0.6), abs=1e-5)


def test_ignore_regions_leave_their_class_unknown(monkeypatch):
    criterion = MultiBoxLoss(cfg_mnet)
    priors = prior_grids(cfg_mnet, SIZE, torch.device("cpu")).corners
    targets = Targets(
        priors[700:701],
        torch.tensor([1]),
        torch.tensor([0, 1]),
        torch.tensor([[True, True], [False, True]]),
        [],
        priors[[200, 200, 300, 0]],
        torch.tensor([[0, 1], [1, 0], [1, 1], [1, 1]]),
    )
    labelled = criterion.labelled(targets, SIZE)
    assert labelled.shape == (2, len(priors), 2)
    assert labelled[0, 200].tolist() == [True, False] and labelled[0, :, 0].all()
    assert 1 < (~labelled[0, :, 1]).sum() < len(priors) / 4
    # Unlabelled faces of the second image stay so; both its regions of persons count.
    assert not labelled[1, :, 0].any() and not labelled[1, [0, 300], 1].any() and labelled[1, -1, 1]
    monkeypatch.setattr(loss_module, "MAX_PAIRS", 1)
    assert torch.equal(criterion.labelled(targets, SIZE), labelled)
    without = targets._replace(regions_norm=priors[:0], region_of=torch.zeros(0, 2, dtype=torch.int64))
    assert torch.equal(criterion.labelled(without, SIZE), targets.labelled[:, None])


def test_the_hard_negatives_of_a_batch_lie_where_they_are_hard():
    loc, logits, targets = case([0, 0])
    logits = torch.full_like(logits, -20.0)
    logits[..., 0] = 0.0
    logits[1, [3, 4]] = torch.tensor([0.5, 0.4, 0.1]).log()
    by_image = MultiBoxLoss(cfg_mnet, negatives_of_empty=1)
    of_batch = MultiBoxLoss(cfg_mnet, negatives_of_empty=1, mine_batch=True)
    one, two = (loss_of(c, loc, logits, targets, known(2))["class"].item() for c in (by_image, of_batch))
    assert one == pytest.approx(-math.log(0.5), abs=1e-5) and two == pytest.approx(2 * one, abs=1e-5)


def loc_of_each_prior(criterion, loc, logits, matches, priors) -> list[float]:
    """The localisation loss of every matched prior, as if it were the only one of its truth."""
    names = ("image", "prior", "labels", "boxes_norm", "truth")
    alone = [
        replace(matches, **{name: getattr(matches, name)[i : i + 1] for name in names})
        for i in range(len(matches.prior))
    ]
    return [criterion(loc, logits, one, priors, known(2), 1.0)["loc"].item() for one in alone]


@pytest.mark.parametrize("weigh", ["balance", "by_score"])
@pytest.mark.parametrize("name", LOC_LOSSES)
def test_the_weights_of_the_priors_of_a_truth(name, weigh):
    """By the root of their number, or shares of one by their scores."""
    plain, weighed = (MultiBoxLoss(cfg_mnet, loc_loss=name, **kind) for kind in ({}, {weigh: True}))
    loc, logits, targets = case([6, 1])
    matches = plain.match(targets, SIZE)
    priors = prior_boxes(cfg_mnet, SIZE)
    truths = matches.truth.tolist()
    if weigh == "balance":
        weights = [truths.count(truth) ** -0.5 for truth in truths]
    else:
        scores = logits.softmax(2)[matches.image, matches.prior, matches.labels].tolist()
        of_truth = [sum(s for s, t in zip(scores, truths, strict=True) if t == truth) for truth in truths]
        weights = [score / whole for score, whole in zip(scores, of_truth, strict=True)]
    assert min(weights) < max(weights)
    single = loc_of_each_prior(plain, loc, logits, matches, priors)
    expected = sum(weight * loss for weight, loss in zip(weights, single, strict=True))
    found = weighed(loc, logits, matches, priors, known(2), 1.0)
    assert found["loc"].item() == pytest.approx(expected * len(weights) / sum(weights), rel=1e-4)
    (gradient,) = torch.autograd.grad(found["loc"], logits, allow_unused=True)
    assert gradient is None or not gradient.any()  # scores weigh, they do not learn from it
    classes = [c(loc, logits, matches, priors, known(2), 1.0)["class"].item() for c in (plain, weighed)]
    assert (classes[0] != pytest.approx(classes[1], rel=1e-5)) == (weigh == "balance")
    assert loss_of(weighed, *case([0]), known(1))["loc"].item() == 0


@pytest.mark.parametrize("name", LOC_LOSSES)
def test_boxes_that_fit_cost_nothing(name):
    criterion = MultiBoxLoss(cfg_mnet, loc_loss=name)
    loc, logits, targets = case([6])
    matches = criterion.match(targets, SIZE)
    priors = prior_boxes(cfg_mnet, SIZE)
    wrong = criterion(loc, logits, matches, priors, known(1))["loc"]
    with torch.no_grad():
        loc[matches.image, matches.prior] = encode(
            matches.boxes_norm, priors[matches.prior], cfg_mnet.variances
        )
    right = criterion(loc, logits, matches, priors, known(1))["loc"]
    assert wrong.item() > 0.1 and abs(right.item()) < 1e-4


def test_extreme_logits_stay_finite():
    loc, logits, targets = case([3, 0])
    loss = loss_of(MultiBoxLoss(cfg_mnet), loc, logits * 1e4, targets, known(2))
    (gradient,) = torch.autograd.grad(loss["class"], logits)
    assert torch.isfinite(loss["class"]) and torch.isfinite(gradient).all()
