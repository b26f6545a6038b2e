"""Networks that teach others: their answers about a batch of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data.config import ModelConfig
from layers.functions.prior_box import PriorBox
from layers.modules.distillation import Lesson
from models.retinaface import RetinaFace, fold_batch_norm
from utils.box_utils import decode, encode


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
