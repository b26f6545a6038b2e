"""Teachers: which one counts, who sets the target of a prior, and the loss that follows it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from data.config import cfg_mnet, one_class
from layers.functions.matching import Matches, choose_targets
from layers.functions.prior_box import prior_boxes
from layers.modules.distillation import DistillationLoss, SoftTargets
from models.retinaface import RetinaFace
from models.teachers import Teachers
from tests.training_data import one_thread  # noqa: F401
from utils.box_utils import decode
from utils.cli import DataError

SIZE = (64, 96)


@pytest.fixture(scope="module")
def networks() -> tuple[RetinaFace, RetinaFace]:
    """A one-class parent and a two-class network with random weights."""
    torch.manual_seed(0)
    pair = RetinaFace(one_class(cfg_mnet)), RetinaFace(cfg_mnet)
    for network in pair:
        for head in [*network.ClassHead, *network.BboxHead]:
            torch.nn.init.normal_(head.conv1x1.weight, std=0.5)
    return tuple(network.eval() for network in pair)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, *SIZE) * 50


def test_a_one_class_parent_speaks_about_faces_on_square_priors(networks, images):
    parent, _ = networks
    teachers = Teachers([parent], cfg_mnet)
    targets = teachers(images)
    priors, known = targets.scores.shape[1], targets.known
    square = torch.arange(priors) % 3 == 0
    assert known[square].tolist() == [[True, False]] * int(square.sum()) and not known[~square].any()
    assert not targets.scores[:, ~square].any() and not targets.scores[..., 1].any()
    with torch.no_grad():
        loc, logits = parent(images)
    torch.testing.assert_close(targets.scores[:, square, 0], logits.softmax(2)[..., 1], atol=1e-4, rtol=1e-4)
    # The parent's priors are not clipped, so its offsets differ; the boxes are the same.
    own, theirs = prior_boxes(cfg_mnet, SIZE), prior_boxes(parent.cfg, SIZE)
    assert not torch.equal(own[square], theirs)
    boxes = decode(targets.loc[:, square, 0], own[square], cfg_mnet.variances)
    torch.testing.assert_close(boxes, decode(loc, theirs, cfg_mnet.variances), atol=1e-3, rtol=1e-3)


def test_the_first_teacher_that_knows_speaks(networks, images):
    parent, two = networks
    first, second = Teachers([parent], cfg_mnet)(images), Teachers([two], cfg_mnet)(images)
    targets = Teachers([parent, two], cfg_mnet)(images)
    square = torch.arange(targets.scores.shape[1]) % 3 == 0
    assert targets.known.all()
    assert torch.equal(targets.scores[:, square, 0], first.scores[:, square, 0])
    assert torch.equal(targets.scores[..., 1], second.scores[..., 1])
    torch.testing.assert_close(targets.scores[:, ~square], second.scores[:, ~square])
    assert torch.equal(targets.loc[:, square, 0], first.loc[:, square, 0])
    assert torch.equal(targets.loc[:, ~square], second.loc[:, ~square])
    assert torch.equal(targets.loc[..., 1, :], second.loc[..., 1, :])
    reverse = Teachers([two, parent], cfg_mnet)(images)
    torch.testing.assert_close(reverse.scores, second.scores)
    assert torch.equal(reverse.loc, second.loc)


def test_where_two_teachers_are_sure_the_first_class_keeps_its_score(networks, images):
    parent, two = (copy.deepcopy(network) for network in networks)
    with torch.no_grad():
        for network, label in ((parent, 1), (two, 2)):
            for head in network.ClassHead:
                head.conv1x1.bias.view(-1, network.cfg.num_classes)[:, label] = 2
    face = Teachers([parent], cfg_mnet)(images).scores[..., 0]
    person = Teachers([two], cfg_mnet)(images).scores[..., 1]
    scores = Teachers([parent, two], cfg_mnet)(images).scores
    square = torch.arange(scores.shape[1]) % 3 == 0
    assert (face + person)[:, square].min() > 1
    assert torch.equal(scores[:, square, 0], face[:, square])
    torch.testing.assert_close(scores[:, square, 1], 1 - face[:, square])
    torch.testing.assert_close(scores[:, ~square, 1], person[:, ~square])


def test_a_teacher_of_other_priors_is_refused():
    other = RetinaFace(replace(cfg_mnet, heights_over_widths=(1.0, 2.0)))
    with pytest.raises(DataError, match="other priors or classes"):
        Teachers([other], cfg_mnet)


def test_teachers_stay_in_evaluation_mode(networks):
    teachers = Teachers(list(networks), cfg_mnet).train()
    assert not any(module.training for module in teachers.modules())
    assert not any(parameter.requires_grad for parameter in teachers.parameters())


def matches_at(*pairs: tuple[int, int], batch: int = 2) -> Matches:
    image, prior = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    labels = torch.ones(len(pairs), dtype=torch.int64)
    return Matches(
        batch, image, prior, labels, torch.zeros(len(pairs), 4), torch.arange(len(pairs)), len(pairs)
    )


def test_labels_then_teachers_then_nobody_set_the_target():
    labelled = torch.tensor([[[True, False]], [[False, True]]])  # faces in image 0, persons in image 1
    known = torch.tensor([[True, True], [False, True], [True, False]])
    trust_no_one = torch.tensor([False, False])
    unknown, soft = choose_targets(labelled, matches_at(), known, trust_no_one)
    assert unknown.expand(-1, 3, -1).tolist() == [[[False, True]] * 3, [[True, False]] * 3]
    assert soft[0].tolist() == [[False, True], [False, True], [False, False]]
    assert soft[1].tolist() == [[True, False], [False, False], [True, False]]

    trust_faces = torch.tensor([True, False])
    unknown, soft = choose_targets(labelled, matches_at((0, 0)), known, trust_faces)
    # Where no teacher speaks about faces (prior 1), labels decide all the same.
    assert unknown[0, :, 0].tolist() == [True, False, True]
    # Prior 0 of image 0 is matched: it learns its label.
    assert soft[0].tolist() == [[False, False], [False, True], [True, False]]


def test_labels_may_tell_of_a_class_at_some_priors_alone():
    labelled = torch.ones(1, 3, 2, dtype=torch.bool)
    labelled[0, 1] = torch.tensor([False, True])
    known = torch.tensor([[True, True], [True, True], [False, True]])
    for teacher_knows in (None, known):
        unknown, soft = choose_targets(
            labelled, matches_at(batch=1), teacher_knows, torch.tensor([False] * 2)
        )
        assert torch.equal(unknown, ~labelled)
    assert torch.equal(soft, ~labelled)


def test_a_teacher_sets_the_target_in_an_ignore_region():
    labelled = ~torch.tensor([[[True, False], [False, True]]])
    known = torch.tensor([[True, False], [True, False]])
    unknown, soft = choose_targets(labelled, matches_at(batch=1), known, torch.tensor([False, False]))
    assert torch.equal(unknown, ~labelled)
    # The teacher knows faces alone, and counts only where labels leave them open.
    assert soft.tolist() == [[[True, False], [False, False]]]


def test_without_teachers_labels_set_the_target():
    labelled = torch.tensor([[[True, False]]])
    unknown, soft = choose_targets(labelled, matches_at(batch=1), None, torch.tensor([True, True]))
    assert unknown.tolist() == [[[False, True]]] and soft is None


def soft_targets(scores: torch.Tensor, loc: torch.Tensor) -> SoftTargets:
    """Both classes known everywhere."""
    return SoftTargets(scores, loc, torch.ones(scores.shape[1:], dtype=torch.bool))


def targets_of(logits: torch.Tensor, loc: torch.Tensor) -> SoftTargets:
    return soft_targets(logits.softmax(2)[..., 1:], loc[:, :, None].expand(-1, -1, 2, -1))


def test_an_equal_student_loses_nothing_and_is_left_alone():
    logits, loc = torch.randn(2, 9, 3, requires_grad=True), torch.randn(2, 9, 4, requires_grad=True)
    targets = targets_of(logits.detach(), loc.detach())
    everywhere = torch.ones(2, 9, 2, dtype=torch.bool)
    losses = DistillationLoss({"face": 1.0, "person": 2.0})(loc, logits, targets, everywhere, 1)
    total = sum(losses.values())
    assert abs(total.item()) < 1e-5
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(total, (logits, loc)))


def test_the_divergence_of_one_prior_by_hand():
    logits, loc = torch.tensor([[[0.5, 0.3, 0.2]]]).log(), torch.zeros(1, 1, 4)
    targets = soft_targets(torch.tensor([[[0.8, 0.0]]]), torch.tensor([[[[2.0, 0, 0, 0], [9.0, 9, 9, 9]]]]))
    face = torch.tensor([[[True, False]]])
    losses = DistillationLoss({"face": 3.0, "person": 5.0}, loc_weight=2.0)(loc, logits, targets, face, 4)
    # 0.8 log(0.8 / 0.3) + 0.2 log(0.2 / 0.7) = 0.78466 - 0.25055, times 3 / 4.
    assert losses["distil_face"].item() == pytest.approx(0.53411 * 3 / 4, abs=1e-4)
    assert losses["distil_person"] == 0
    # Smooth-L1 of a distance of 2 is 1.5; times loc weight, class weight, score, over 4.
    assert losses["distil_loc"].item() == pytest.approx(1.5 * 2 * 3 * 0.8 / 4, abs=1e-5)
    assert DistillationLoss.positives(targets, face) == 1


def test_the_box_is_that_of_a_class_that_the_teachers_decide():
    targets = soft_targets(torch.tensor([[[0.3, 0.9]]]), torch.tensor([[[[1.0] * 4, [5.0] * 4]]]))
    criterion, logits = DistillationLoss({"face": 1.0, "person": 1.0}, loc_weight=1.0), torch.zeros(1, 1, 3)
    for decides, box, score in (([True, False], 1.0, 0.3), ([True, True], 5.0, 0.9)):
        away = criterion(torch.zeros(1, 1, 4), logits, targets, torch.tensor([[decides]]), 1)["distil_loc"]
        there = criterion(torch.full((1, 1, 4), box), logits, targets, torch.tensor([[decides]]), 1)[
            "distil_loc"
        ]
        assert there == 0 and away.item() == pytest.approx(4 * (box - 0.5) * score)


def test_nothing_is_learned_where_teachers_do_not_set_the_target():
    logits, loc = torch.randn(1, 5, 3, requires_grad=True), torch.randn(1, 5, 4, requires_grad=True)
    targets = targets_of(torch.randn(1, 5, 3), torch.randn(1, 5, 4))
    soft = torch.zeros(1, 5, 2, dtype=torch.bool)
    soft[0, 1, 0] = True
    losses = DistillationLoss({"face": 1.0, "person": 1.0})(loc, logits, targets, soft, 1)
    gradients = torch.autograd.grad(sum(losses.values()), (logits, loc), materialize_grads=True)
    for gradient in gradients:
        assert gradient[0, 1].abs().sum() > 0
        gradient[0, 1] = 0
        assert not gradient.any()
