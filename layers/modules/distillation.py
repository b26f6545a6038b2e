"""Keeping what other networks know: their scores and boxes as soft targets (Hinton et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: A teacher's box counts from this score on.
MIN_BOX_SCORE = 0.05


@dataclass(frozen=True)
class SoftTargets:
    """What the teachers find in a batch.

    Attributes:
        scores: Tensor[N, P, classes], probability of each class, at most 1 in all; 0 where none is known.
        loc: Tensor[N, P, classes, 4], offsets of the box from the student's prior; 0 where none is known.
        known: bool Tensor[P, classes]: whether a teacher knows the class on the prior.
    """

    scores: Tensor
    loc: Tensor
    known: Tensor


class DistillationLoss(nn.Module):
    """Divergence of the student's scores from the teachers', and distance of its boxes from theirs.

    For each class by itself: Kullback-Leibler divergence of "class or not" (so a teacher that knows one
    class says nothing about the split of the rest), and smooth-L1 of the offsets weighted with its score.
    Summed over all priors where the teachers set the target; near zero, with its gradient, where the student
    agrees. ``class_weights`` are by name, in label order; ``loc_weight`` is that of the boxes.
    """

    def __init__(self, class_weights: dict[str, float], loc_weight: float = 2.0) -> None:
        super().__init__()
        self.names = tuple(class_weights)
        self.register_buffer("class_weights", torch.tensor(list(class_weights.values())), persistent=False)
        self.loc_weight = loc_weight

    @staticmethod
    def positives(targets: SoftTargets, soft: Tensor) -> Tensor:
        """Scalar: scores of one half or more where the teachers set the target."""
        return ((targets.scores >= 0.5) & soft).sum()

    def forward(
        self, loc: Tensor, logits: Tensor, targets: SoftTargets, soft: Tensor, positives: Tensor | float
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch.

        Args:
            loc, logits: Tensor[N, P, 4] and Tensor[N, P, 1 + classes] of the student, background first.
            targets: the teachers' scores and boxes.
            soft: bool Tensor[N, P, classes]: where they are the target, see `choose_targets`.
            positives: what the sums are divided by, see `positives`.

        Returns:
            ``distil_loc`` and, by class, ``distil_face`` and ``distil_person``, scalars.
        """
        logits, weights = logits.float(), soft * self.class_weights
        losses = {}
        for c, name in enumerate(self.names):
            rest = torch.cat([logits[..., : c + 1], logits[..., c + 2 :]], 2).logsumexp(2)
            score = targets.scores[..., c]
            entropy = F.binary_cross_entropy(score, score, reduction="none")
            cross = F.binary_cross_entropy_with_logits(logits[..., c + 1] - rest, score, reduction="none")
            losses[f"distil_{name}"] = ((cross - entropy) * weights[..., c]).sum() / positives

        # A prior has one box: that of the class with the greatest weighted score.
        weight, chosen = (targets.scores * weights).max(2)
        score = targets.scores.gather(2, chosen[..., None])[..., 0]
        image, prior = ((score >= MIN_BOX_SCORE) & (weight > 0)).nonzero(as_tuple=True)
        theirs = targets.loc[image, prior, chosen[image, prior]]
        distance = F.smooth_l1_loss(loc[image, prior].float(), theirs, reduction="none").sum(1)
        losses["distil_loc"] = self.loc_weight * (distance * weight[image, prior]).sum() / positives
        return losses
