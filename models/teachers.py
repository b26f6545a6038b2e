"""Networks that teach another: their scores and boxes of a batch of images on the student's priors, and
detectors of torchvision, whose persons become boxes of a list."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection, get_model, get_model_weights, list_models

from data.config import CLASS_LABELS, ModelConfig
from data.predictions import Detections
from layers.functions.prior_box import prior_boxes
from layers.modules.distillation import DistillationLoss, SoftTargets
from models.checkpoint import load_network
from models.retinaface import RetinaFace, fold_batch_norm
from utils.box_utils import decode, encode
from utils.cli import DataError, UsageError
from utils.threads import Stopwatch

#: What names a detector of torchvision in place of a file.
TORCHVISION = "torchvision:"


class Teachers(nn.Module):
    """Several networks as one: for a class and a ratio of priors, the first network that has both counts.

    A one-class parent knows faces on square priors; a two-class network knows both classes on all priors.
    They stay in evaluation mode, with batch norm folded. ``cfg`` is the student's.

    Raises:
        DataError: a teacher's cells, prior sizes, ratios or classes are not among the student's.
    """

    def __init__(self, networks: list[RetinaFace], cfg: ModelConfig) -> None:
        super().__init__()
        for teacher in networks:
            if (teacher.cfg.strides, teacher.cfg.min_sizes) != (cfg.strides, cfg.min_sizes) or not (
                set(teacher.cfg.heights_over_widths) <= set(cfg.heights_over_widths)
                and set(teacher.cfg.class_names) <= set(cfg.class_names)
            ):
                raise DataError(
                    f"a teacher ({teacher.cfg.name}) has other priors or classes than the student"
                )
        self.cfg = cfg
        self.networks = nn.ModuleList(fold_batch_norm(teacher) for teacher in networks)
        self.requires_grad_(False)
        # By ratio and class of the student: the teacher, the row of its ratios and its label.
        self._sources: dict[tuple[int, int], tuple[int, int, int]] = {}
        for i, teacher in reversed([*enumerate(networks)]):  # the more trusted take the place of the others
            for row, ratio in enumerate(teacher.cfg.heights_over_widths):
                for label, name in enumerate(teacher.cfg.class_names, 1):
                    place = cfg.heights_over_widths.index(ratio), cfg.class_names.index(name)
                    self._sources[place] = i, row, label
        known = torch.zeros(len(cfg.heights_over_widths), len(cfg.class_names), dtype=torch.bool)
        for place in self._sources:
            known[place] = True
        self.register_buffer("known", known, persistent=False)

    def train(self, mode: bool = True) -> Teachers:
        """Teachers are never trained."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> SoftTargets:
        """What the teachers find in ``images`` Tensor[N, 3, height, width]."""
        outputs = [self._on_own_priors(teacher, images) for teacher in self.networks]
        batch, cells = outputs[0][0].shape[:2]
        ratios, classes = len(self.cfg.heights_over_widths), len(self.cfg.class_names)
        scores = images.new_zeros(batch, cells, ratios, classes)
        loc = images.new_zeros(batch, cells, ratios, classes, 4)
        for (r, c), (i, row, label) in self._sources.items():
            their_scores, their_loc = outputs[i]
            scores[:, :, r, c] = their_scores[:, :, row, label]
            loc[:, :, r, c] = their_loc[:, :, row]
        # Two teachers may both be sure of a prior; a class takes what those before it leave.
        for c in range(1, classes):
            scores[..., c] = scores[..., c].minimum(1 - scores[..., :c].sum(-1))
        return SoftTargets(scores.flatten(1, 2), loc.flatten(1, 2), self.known.repeat(cells, 1))

    def _on_own_priors(self, teacher: RetinaFace, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and offsets from the student's priors: Tensors[N, cells * sizes, its ratios, ...]."""
        loc, logits = (output.float() for output in teacher(images))
        if teacher.cfg.clip_priors != self.cfg.clip_priors:  # else both have the same
            place = (images.shape[2], images.shape[3]), images.device
            own = prior_boxes(replace(teacher.cfg, clip_priors=self.cfg.clip_priors), *place)
            theirs = prior_boxes(teacher.cfg, *place)
            loc = encode(decode(loc, theirs, teacher.cfg.variances), own, self.cfg.variances)
        ratios = len(teacher.cfg.heights_over_widths)
        return tuple(t.unflatten(1, (-1, ratios)) for t in (logits.softmax(2), loc))


def load_teachers(
    paths: list[str], weights: list[float], cfg: ModelConfig, device: torch.device
) -> tuple[Teachers, DistillationLoss] | tuple[None, None]:
    """The teachers and the loss that follows them, with one weight for all classes or one each."""
    if not paths:
        return None, None
    teachers = Teachers([load_network(path) for path in paths], cfg)
    weights = weights * len(cfg.class_names) if len(weights) == 1 else weights
    distillation = DistillationLoss(dict(zip(cfg.class_names, weights, strict=True)))
    return teachers.to(device, memory_format=torch.channels_last), distillation.to(device)


class TorchvisionPersons:
    """The persons that a detector of torchvision, e.g. ``fasterrcnn_resnet50_fpn_v2``, finds, trained on
    COCO; called as a `Detector` is.

    Raises:
        UsageError: torchvision has no such detector.
        DataError: its weights are not in torchvision's cache and cannot be fetched, or are damaged.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        names = list_models(module=detection)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {TORCHVISION}{near[0]}? " if near else ""
            raise UsageError(f"{TORCHVISION}{name}: no such detector; {hint}There are {', '.join(names)}")
        weights = get_model_weights(name).DEFAULT
        try:  # loaded as plain weights, before torchvision loads the file as it is
            weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        except Exception as error:  # of urllib, torch and the disk
            reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
            raise DataError(
                f"{TORCHVISION}{name}: its weights cannot be fetched or read ({reason}); put "
                f"{weights.url} into {torch.hub.get_dir()}/checkpoints"
            ) from None
        self.device, self.stopwatch = torch.device(device), Stopwatch()
        self.person = weights.meta["categories"].index("person")
        self.network = get_model(name, weights=weights, weights_backbone=None).eval().to(self.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Persons in images uint8[height, width, 3] BGR of any sizes, by descending score."""
        tensors = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255 for image in images]
        found = []
        outputs = self.network([tensor.to(self.device) for tensor in tensors])
        for image, output in zip(images, outputs, strict=True):
            persons = output["labels"] == self.person
            boxes, scores = (output[key][persons].float().cpu().numpy() for key in ("boxes", "scores"))
            labels = np.full(len(boxes), CLASS_LABELS["person"])
            found.append(Detections(boxes, scores, labels, image.shape[:2]))
        return found
