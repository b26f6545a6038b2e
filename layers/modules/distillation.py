"""Keeping what other networks know: their scores and boxes as soft targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.config import ModelConfig
from layers.functions.prior_box import PriorBox
from models.fuse import fold_batch_norm
from models.retinaface import RetinaFace
from utils.box_utils import Matches, decode, encode

#: A teacher's box counts from this score on.
MIN_BOX_SCORE = 0.05


@dataclass(frozen=True)
class Lesson:
    """What the teachers say about a batch.

    Attributes:
        scores: Tensor[N, P, classes], probability of each class, 0 where no teacher speaks; at most 1 in all.
        loc: Tensor[N, P, classes, 4], offsets of the box from the student's prior, 0 where no teacher speaks.
    """

    scores: Tensor
    loc: Tensor

    def __getitem__(self, part: slice) -> Lesson:
        """That of the images ``part``."""
        return Lesson(self.scores[part], self.loc[part])


class Teachers(nn.Module):
    """Several networks as one: for a class and a prior shape the first network that has both speaks.

    A one-class parent knows faces on square priors; a two-class network knows both classes on all priors.
    They stay in evaluation mode, with batch norm folded.

    Args:
        networks: teachers, the more trusted first.
        cfg: the student's network.

    Raises:
        ValueError: a teacher's cells, prior sizes, ratios or classes are none of the student's.
    """

    def __init__(self, networks: list[RetinaFace], cfg: ModelConfig) -> None:
        super().__init__()
        for teacher in networks:
            if (teacher.cfg.strides, teacher.cfg.min_sizes) != (cfg.strides, cfg.min_sizes) or not (
                set(teacher.cfg.heights_over_widths) <= set(cfg.heights_over_widths)
                and set(teacher.cfg.class_names) <= set(cfg.class_names)
            ):
                raise ValueError(
                    f"a teacher ({teacher.cfg.name}) has other priors or classes than the student"
                )
        self.cfg = cfg
        self.networks = nn.ModuleList(fold_batch_norm(teacher) for teacher in networks)
        self.requires_grad_(False)
        self._prior_boxes = [PriorBox(teacher.cfg) for teacher in networks]
        self._own_priors = PriorBox(cfg)
        # Number of the teacher that speaks, by ratio and class; -1: none.
        self._speaker = [
            [
                next(
                    (
                        i
                        for i, teacher in enumerate(networks)
                        if ratio in teacher.cfg.heights_over_widths and name in teacher.cfg.class_names
                    ),
                    -1,
                )
                for name in cfg.class_names
            ]
            for ratio in cfg.heights_over_widths
        ]

    def train(self, mode: bool = True) -> Teachers:
        """Teachers are never trained."""
        return super().train(False)

    def taught(self, count: int, device: torch.device) -> Tensor:
        """bool Tensor[count, classes]: whether a teacher speaks about a class on a prior."""
        cell = torch.tensor(self._speaker, device=device) >= 0
        return cell.repeat(count // len(cell), 1)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Lesson:
        """What the teachers say about ``images`` Tensor[N, 3, height, width]."""
        answers = [self._ask(i, images) for i in range(len(self.networks))]
        ratios, classes = len(self.cfg.heights_over_widths), len(self.cfg.class_names)
        shape = (*answers[0][0].shape[:2], ratios)
        scores = images.new_zeros(*shape, classes)
        loc = images.new_zeros(*shape, classes, 4)
        for r, ratio in enumerate(self.cfg.heights_over_widths):
            for c, name in enumerate(self.cfg.class_names):
                speaker = self._speaker[r][c]
                if speaker < 0:
                    continue
                cfg = self.networks[speaker].cfg
                theirs = cfg.heights_over_widths.index(ratio)
                label = cfg.class_names.index(name) + 1
                scores[:, :, r, c] = answers[speaker][0][:, :, theirs, label]
                loc[:, :, r, c] = answers[speaker][1][:, :, theirs]
        # Two teachers may both be sure of a prior; a class takes what those before it leave.
        for c in range(1, classes):
            scores[..., c] = scores[..., c].minimum(1 - scores[..., :c].sum(-1))
        return Lesson(scores.flatten(1, 2), loc.flatten(1, 2))

    def _ask(self, i: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and offsets from the student's priors: Tensors[N, cells * sizes, ratios, ...]."""
        teacher = self.networks[i]
        loc, logits = (output.float() for output in teacher(images))
        size = images.shape[2], images.shape[3]
        ratios = teacher.cfg.heights_over_widths
        own = self._own_priors(size, images.device).view(-1, len(self.cfg.heights_over_widths), 4)
        own = own[:, [self.cfg.heights_over_widths.index(ratio) for ratio in ratios]].reshape(-1, 4)
        theirs = self._prior_boxes[i](size, images.device)
        if not torch.equal(own, theirs):  # one of the two networks clips its priors
            loc = encode(decode(loc, theirs, teacher.cfg.variances), own, self.cfg.variances)
        return tuple(t.unflatten(1, (-1, len(ratios))) for t in (logits.softmax(2), loc))


class DistillationLoss(nn.Module):
    """Divergence of the student's scores from the teachers', and distance of its boxes from theirs.

    For each class by itself: Kullback-Leibler divergence of "class or not" (so a teacher that knows one
    class says nothing about the split of the rest), and smooth-L1 of the offsets weighted with its score.
    Summed over all priors where the teachers decide; near zero, with its gradient, where the student agrees.

    Args:
        class_weights: weight of each class by name, in label order.
        loc_weight: weight of the boxes beside the scores.
    """

    def __init__(self, class_weights: dict[str, float], loc_weight: float = 2.0) -> None:
        super().__init__()
        self.names = tuple(class_weights)
        self.register_buffer("class_weights", torch.tensor(list(class_weights.values())), persistent=False)
        self.loc_weight = loc_weight

    @staticmethod
    def positives(lesson: Lesson, decides: Tensor) -> Tensor:
        """Scalar: scores of one half or more where the teachers decide."""
        return ((lesson.scores >= 0.5) & decides).sum()

    def forward(
        self, loc: Tensor, logits: Tensor, lesson: Lesson, decides: Tensor, positives: Tensor | float
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch.

        Args:
            loc: Tensor[N, P, 4], the student's offsets.
            logits: Tensor[N, P, 1 + classes], the student's, background first.
            lesson: the teachers'.
            decides: bool Tensor[N, P, classes]: where the teachers, not the labels, set the target.
            positives: what the sums are divided by, see `positives`.

        Returns:
            ``distil_loc`` and, by class, ``distil_face`` and ``distil_person``, scalars.
        """
        logits, weights = logits.float(), decides * self.class_weights
        losses = {}
        for c, name in enumerate(self.names):
            rest = torch.cat([logits[..., : c + 1], logits[..., c + 2 :]], 2).logsumexp(2)
            score = lesson.scores[..., c]
            entropy = F.binary_cross_entropy(score, score, reduction="none")
            cross = F.binary_cross_entropy_with_logits(logits[..., c + 1] - rest, score, reduction="none")
            losses[f"distil_{name}"] = ((cross - entropy) * weights[..., c]).sum() / positives

        # A prior has one box: that of the class with the greatest weighted score.
        weight, chosen = (lesson.scores * weights).max(2)
        score = lesson.scores.gather(2, chosen[..., None])[..., 0]
        image, prior = ((score >= MIN_BOX_SCORE) & (weight > 0)).nonzero(as_tuple=True)
        theirs = lesson.loc[image, prior, chosen[image, prior]]
        distance = F.smooth_l1_loss(loc[image, prior].float(), theirs, reduction="none").sum(1)
        losses["distil_loc"] = self.loc_weight * (distance * weight[image, prior]).sum() / positives
        return losses


def who_decides(
    labelled: Tensor, matches: Matches, taught: Tensor | None, trusted: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Where labels, teachers or nobody set the target of a class.

    A matched prior learns its label. Of the others, labels decide about the classes that an image is
    labelled for, but not about trusted classes where a teacher speaks; of what labels leave open teachers
    decide if they speak; the rest is unknown.

    Args:
        labelled: bool Tensor[N, classes].
        matches: matched priors.
        taught: bool Tensor[P, classes] from `Teachers.taught`; None without teachers.
        trusted: bool Tensor[classes], classes for which teachers go before labels.

    Returns:
        ``unknown`` for `MultiBoxLoss`, bool Tensor[N, 1 or P, classes]: where labels do not decide, and
        ``decides`` for `DistillationLoss`, bool Tensor[N, P, classes], None without teachers.
    """
    unknown = ~labelled[:, None]
    if taught is None:
        return unknown, None
    unknown = unknown | (taught & trusted)
    decides = unknown & taught
    decides[matches.image, matches.prior] = False
    return unknown, decides
