"""Weights that a new run starts with: an ImageNet backbone, or a detector of faces alone."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.config import ModelConfig, one_class
from layers.functions.prior_box import priors_per_cell
from models.checkpoint import LANDMARK_HEAD, build_network, load_strictly, read_checkpoint
from models.retinaface import RetinaFace
from utils.cli import DataError

#: Probability at which new classes and new priors start after `init_from_face`: far below any threshold.
START_PROBABILITY = 0.005


@dataclass
class LoadReport:
    """What was taken from a file and what was not; ``str()`` is what a person reads."""

    path: Path
    loaded: list[str]
    notes: list[str]
    unused: list[str]

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.loaded)} tensors loaded ({_by_part(self.loaded)})", *self.notes]
        if self.unused:
            lines.append(f"not used: {_by_part(self.unused)}")
        return "\n  ".join(lines)


def _by_part(names: list[str]) -> str:
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{part} {count}" for part, count in counts.items())


def load_backbone(model: RetinaFace, path: str | os.PathLike | None = None) -> LoadReport:
    """Loads ImageNet weights of MobileNetV1 x0.25 or ResNet50 into the backbone.

    Args:
        model: the network.
        path: their file; None: torchvision's of ResNet50, downloaded at first use.

    Raises:
        DataError: see `read_checkpoint`; a backbone of another kind, or no download.
    """
    if path is None:
        path, found = _download_resnet50()
    else:
        found = read_checkpoint(path).state_dict
    wanted = {name: tensor for name, tensor in found.items() if not name.startswith("fc.")}
    load_strictly(model.body, wanted, Path(path))
    unused = [name for name in found if name not in wanted]
    loaded = [f"body.{name}" for name in wanted]
    return LoadReport(Path(path), loaded, ["started anew: fpn, ssh, heads"], unused)


def _download_resnet50() -> tuple[str, dict[str, Tensor]]:
    from torchvision.models import ResNet50_Weights

    weights = ResNet50_Weights.IMAGENET1K_V2
    try:
        return weights.url, weights.get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise DataError(
            f"torchvision's {weights} cannot be downloaded ({error}); use --no-pretrain"
        ) from None


def init_from_face(model: RetinaFace, path: str | os.PathLike) -> LoadReport:
    """Starts a two-class network as the face detector that a one-class checkpoint is.

    Backbone, pyramid and context modules are copied. The parent's priors are square, so its class and box
    rows go to the ratio-1 priors of the same size. On these priors the logit of person is the background's
    less a constant; the other priors start at fixed probabilities: in both cases nothing fires but faces.

    Raises:
        DataError: see `read_checkpoint`; not a one-class RetinaFace of the same backbone.
    """
    checkpoint = read_checkpoint(path)
    cfg, parent_cfg = model.cfg, one_class(model.cfg)
    if checkpoint.cfg is None or checkpoint.cfg != parent_cfg:
        found = "no RetinaFace" if checkpoint.cfg is None else _kind(checkpoint.cfg)
        raise DataError(f"{checkpoint.path}: {found}; expected {_kind(parent_cfg)}")
    parent = build_network(checkpoint)

    shared = {k: v for k, v in parent.state_dict().items() if not k.startswith(("ClassHead.", "BboxHead."))}
    model.load_state_dict(shared, strict=False)
    ratios = len(cfg.heights_over_widths)
    square = [
        size * ratios + cfg.heights_over_widths.index(1.0) for size in range(priors_per_cell(cfg) // ratios)
    ]
    face = cfg.class_names.index("face") + 1
    margin = math.log(1 / START_PROBABILITY)
    with torch.no_grad():
        for own, old in zip(model.ClassHead, parent.ClassHead, strict=True):
            weight = own.conv1x1.weight.view(-1, cfg.num_classes, cfg.fpn_channels).zero_()
            bias = own.conv1x1.bias.view(-1, cfg.num_classes)
            bias.fill_(-margin)[:, 0] = 0
            old_weight = old.conv1x1.weight.view(-1, 2, cfg.fpn_channels)
            old_bias = old.conv1x1.bias.view(-1, 2)
            weight[square], bias[square] = old_weight[:, :1], old_bias[:, :1] - margin
            for label, old_label in ((0, 0), (face, 1)):
                weight[square, label], bias[square, label] = old_weight[:, old_label], old_bias[:, old_label]
        for own, old in zip(model.BboxHead, parent.BboxHead, strict=True):
            own.conv1x1.weight.view(-1, 4, cfg.fpn_channels).zero_()[square] = old.conv1x1.weight.view(
                -1, 4, cfg.fpn_channels
            )
            own.conv1x1.bias.view(-1, 4).zero_()[square] = old.conv1x1.bias.view(-1, 4)
    notes = [
        f"face rows of both heads copied to priors {', '.join(str(i + 1) for i in square)} "
        f"of {priors_per_cell(cfg)} (ratio 1)",
        "started so that nothing fires: the other priors, and person on every prior",
    ]
    heads = [name for name in parent.state_dict() if name not in shared]
    unused = [name for name in checkpoint.state_dict if name.startswith(LANDMARK_HEAD)]
    return LoadReport(checkpoint.path, [*shared, *heads], notes, unused)


def _kind(cfg: ModelConfig) -> str:
    classes = " and ".join(cfg.class_names)
    return f"{cfg.name} with {priors_per_cell(cfg)} priors a cell, class {classes}"
