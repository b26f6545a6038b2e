"""Keeping what other networks know: their scores and boxes as soft targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.functions.matching import Matches

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
