"""MultiBox loss of RetinaFace without landmarks, for images in which not every class is labelled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.config import ModelConfig
from data.wider_face import Targets
from layers.functions.matching import MAX_PAIRS, Matches, match, much_covered, prior_grids
from utils.box_utils import decode, encode

#: Localisation losses, the values of ``--loc_loss``: of offsets, and of decoded boxes.
LOC_LOSSES = ("smooth_l1", "giou")

#: Weight of the localisation loss.
LOC_WEIGHT = 2.0

#: Hard negatives of an image for each of its positives.
NEGATIVES_PER_POSITIVE = 7


def giou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Tensor[K]: 1 - generalised IoU (Rezatofighi et al. 2019) of each box with the other of its row.

    Equal to torchvision's ``generalized_box_iou_loss``, whose masks make a GPU's host wait ten times a step.
    Both are Tensor[K, 4], x1 y1 x2 y2.
    """
    least, most = torch.minimum(found, wanted), torch.maximum(found, wanted)
    shared = _area((least[:, 2:] - most[:, :2]).clamp(min=0))
    union = sum(_area(boxes[:, 2:] - boxes[:, :2]) for boxes in (found, wanted)) - shared
    hull = _area(most[:, 2:] - least[:, :2])
    return 1 - shared / (union + 1e-7) + (hull - union) / (hull + 1e-7)


def _area(sides: Tensor) -> Tensor:
    """Width times height of each row; the backward pass of ``prod`` would wait to look for zeros."""
    return sides[:, 0] * sides[:, 1]


@dataclass(frozen=True)
class MultiBoxLoss:
    """Localisation loss of matched priors and cross entropy with hard negatives (SSD, Liu et al. 2016).

    For a class that is *unknown* at a prior (not labelled or ignored in its image) background and class
    merge: the loss of a negative prior is -log(p_background + p_class) (Cermelli et al. 2020, "Modeling the
    Background", equation 5), so nothing pushes the class down where it may be. An image without positives
    gives `negatives_of_empty` negatives; the published code took none.

    Attributes:
        cfg: network, for priors and variances.
        negatives_of_empty: hard negatives of an image without positives.
        mine_batch: the hard negatives are those of the whole batch, so that an image with many positives does
            not take easy ones while another with few leaves hard ones out.
        balance: a matched prior weighs less the more priors its truth has, by the root of their number, so
            that a large box with sixty does not outweigh a small one with eight; the mean weight is 1 (in
            each process).
        by_score: in the localisation loss a truth's priors share its weight by the scores that the network
            has for them, so that those fit best which are going to win NMS; the mean weight is 1.
        loc_loss: one of `LOC_LOSSES`.
    """

    cfg: ModelConfig
    negatives_of_empty: int = 7
    mine_batch: bool = False
    balance: bool = False
    by_score: bool = False
    loc_loss: str = "smooth_l1"

    def match(self, targets: Targets, image_size: tuple[int, int]) -> Matches:
        """Gives the priors of a batch their truths, where these are."""
        grids = prior_grids(self.cfg, image_size, targets.labels.device)
        return match(targets.boxes_norm, targets.labels, targets.counts, grids)

    def labelled(self, targets: Targets, image_size: tuple[int, int]) -> Tensor:
        """bool Tensor[N, 1 or P, classes]: where labels tell whether there is an object of the class.

        One row an image where that holds for all of it; with ignore regions a row a prior.
        """
        labelled, regions = targets.labelled[:, None], targets.regions_norm
        if not len(regions):
            return labelled
        corners = prior_grids(self.cfg, image_size, labelled.device).corners
        classes = targets.labelled.shape[1]
        rows = targets.region_of[:, 0] * classes + targets.region_of[:, 1]
        ignored = labelled.new_zeros(labelled.numel(), len(corners), dtype=torch.float32)
        at_once = max(MAX_PAIRS // len(corners), 1)
        for row, region in zip(rows.split(at_once), regions.split(at_once), strict=True):
            ignored.index_add_(0, row, much_covered(corners, region).float())
        return labelled & (ignored.view(len(labelled), classes, -1) == 0).transpose(1, 2)

    def __call__(
        self,
        loc: Tensor,
        logits: Tensor,
        matches: Matches,
        priors: Tensor,
        unknown: Tensor,
        positives: Tensor | float | None = None,
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch.

        Args:
            loc, logits: Tensor[N, P, 4] and Tensor[N, P, 1 + classes], background first.
            matches: from `match`.
            priors: Tensor[P, 4], cx cy w h, normalised.
            unknown: bool Tensor[N, 1 or P, classes]: where a negative prior says nothing about a class.
            positives: what the sums are divided by; None: the matched priors of this batch, at least 1.

        Returns:
            ``loc`` and ``class``, scalars.
        """
        if positives is None:
            positives = max(len(matches.prior), 1)
        return {
            "loc": LOC_WEIGHT * self._loc_sum(loc, logits, matches, priors) / positives,
            "class": self._class_sum(logits, matches, unknown) / positives,
        }

    def _loc_sum(self, loc: Tensor, logits: Tensor, matches: Matches, priors: Tensor) -> Tensor:
        offsets, priors = loc[matches.image, matches.prior].float(), priors[matches.prior]
        if self.loc_loss == "giou":
            losses = giou_loss(decode(offsets, priors, self.cfg.variances), matches.boxes_norm)
        else:
            wanted = encode(matches.boxes_norm, priors, self.cfg.variances)
            losses = F.smooth_l1_loss(offsets, wanted, reduction="none").sum(1)
        if not self.by_score:
            return self._sum(losses, matches)
        scores = logits[matches.image, matches.prior].detach().float().softmax(1)
        scores = scores.gather(1, matches.labels[:, None])[:, 0]
        of_truth = scores.new_zeros(matches.truths).index_add_(0, matches.truth, scores)
        weights = scores / of_truth[matches.truth].clamp(min=1e-6)
        return (losses * weights).sum() * (len(weights) / weights.sum().clamp(min=1e-6))

    def _class_sum(self, logits: Tensor, matches: Matches, unknown: Tensor) -> Tensor:
        image, prior = self._hard_negatives(logits, matches, unknown)
        negative = logits[image, prior].float()
        unknown = unknown.expand(-1, logits.shape[1], -1)[image, prior]
        merged = torch.cat([negative[:, :1], negative[:, 1:].masked_fill(~unknown, -torch.inf)], 1)
        positive = logits[matches.image, matches.prior].float()
        found = self._sum(F.cross_entropy(positive, matches.labels, reduction="none"), matches)
        return found + (negative.logsumexp(1) - merged.logsumexp(1)).sum()

    def _sum(self, losses: Tensor, matches: Matches) -> Tensor:
        """The sum of Tensor[K] losses of matched priors, see ``balance``."""
        if self.balance:
            counts = losses.new_zeros(matches.truths)
            counts.index_add_(0, matches.truth, torch.ones_like(losses))
            weights = counts[matches.truth].rsqrt()
            losses = losses * weights * (len(weights) / weights.sum())
        return losses.sum()

    @torch.no_grad()
    def _hard_negatives(self, logits: Tensor, matches: Matches, unknown: Tensor) -> tuple[Tensor, Tensor]:
        """Image and prior of the negatives that are furthest from the background, of each image or all.

        They are ranked by the odds of the known classes against the rest, which orders as the loss does.
        """
        classes = logits.float().unbind(2)
        known, rest = torch.full_like(classes[0], -torch.inf), classes[0]
        for logit, hidden in zip(classes[1:], unknown.unbind(2), strict=True):
            known = torch.logaddexp(known, logit.masked_fill(hidden, -torch.inf))
            rest = torch.logaddexp(rest, logit.masked_fill(~hidden, -torch.inf))
        odds = known - rest
        odds.index_put_((matches.image, matches.prior), odds.new_full((), -torch.inf))

        positives = matches.image.new_zeros(matches.batch_size)
        positives.index_add_(0, matches.image, torch.ones_like(matches.image))
        wanted = NEGATIVES_PER_POSITIVE * positives
        wanted = wanted.masked_fill(positives == 0, self.negatives_of_empty)
        wanted = torch.minimum(wanted, logits.shape[1] - positives)
        if self.mine_batch:
            hardest = odds.flatten().topk(int(wanted.sum())).indices
            return hardest // odds.shape[1], hardest % odds.shape[1]
        hardest = odds.topk(int(wanted.max()), dim=1).indices
        chosen = torch.arange(hardest.shape[1], device=odds.device) < wanted[:, None]
        image, place = chosen.nonzero(as_tuple=True)
        return image, hardest[image, place]
