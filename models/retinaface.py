"""The network: backbone, feature pyramid, context modules and two heads."""

from __future__ import annotations

import copy
import platform
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from data.config import ModelConfig
from layers.functions.prior_box import priors_per_cell
from models.net import FPN, SSH, MobileNetV1, ResNet50

#: torch's ``SyncBatchNorm`` is no ``BatchNorm2d``.
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)

#: Parts of the network, in the order of the data.
PARTS = ("body", "fpn", "ssh1", "ssh2", "ssh3", "ClassHead", "BboxHead")


class Head(nn.Module):
    """One value a prior and output: 1x1 convolution, cells and priors flattened in prior order."""

    def __init__(self, channels: int, priors: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(channels, priors * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.values)


class RetinaFace(nn.Module):
    """RetinaFace (Deng et al. 2019) without landmarks, for the classes of ``cfg``.

    Reads no file: weights come from `models.checkpoint`.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        channels, priors = cfg.fpn_channels, priors_per_cell(cfg)
        self.body = ResNet50() if cfg.backbone == "resnet50" else MobileNetV1()
        self.fpn = FPN(cfg.backbone_channels, channels)
        self.ssh1, self.ssh2, self.ssh3 = (SSH(channels) for _ in cfg.strides)
        self.ClassHead = nn.ModuleList(Head(channels, priors, cfg.num_classes) for _ in cfg.strides)
        self.BboxHead = nn.ModuleList(Head(channels, priors, 4) for _ in cfg.strides)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Raw outputs for every prior.

        Args:
            images: Tensor[N, 3, height, width], float, BGR minus `PIXEL_MEAN_BGR`, any size.

        Returns:
            ``loc`` Tensor[N, P, 4], offsets from the priors, and ``logits`` Tensor[N, P, classes], before
            softmax, background first. P and its order are those of `prior_boxes`.
        """
        return self.heads(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """What the heads see: Tensor[N, channels, rows, columns] of every level, finest first."""
        pyramid = self.fpn(self.body(images))
        return [ssh(level) for ssh, level in zip((self.ssh1, self.ssh2, self.ssh3), pyramid, strict=True)]

    def heads(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`forward`'s outputs of `features`."""
        loc = torch.cat([head(x) for head, x in zip(self.BboxHead, features, strict=True)], 1)
        logits = torch.cat([head(x) for head, x in zip(self.ClassHead, features, strict=True)], 1)
        return loc, logits


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in which every convolution does the work of the batch norm registered after it.

    Outputs agree within rounding (about 1e-5 for this network). The copy is in evaluation mode and cannot
    be trained further.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BATCH_NORMS):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


class PackedConv(nn.Module):
    """A convolution as oneDNN takes it on a CPU: its weights laid out once, leaky ReLU in the same pass.

    torch has these operators for what ``torch.compile`` makes, and no public name for them.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.shape = conv.padding, conv.stride, conv.dilation, conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.shape)
        self.bias = conv.bias.detach()
        self.activation: tuple[str, list[float]] = ("none", [])

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self.shape, *self.activation, ""
        )


def pack_for_cpu(folded: nn.Module) -> nn.Module:
    """``folded`` itself, its convolutions packed with the leaky ReLU registered after them, if torch can."""
    if not can_pack(next(folded.parameters()).dtype):
        return folded
    for module in list(folded.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                packed = PackedConv(child)
                setattr(module, name, packed)
            elif isinstance(child, nn.LeakyReLU):
                packed.activation = ("leaky_relu", [child.negative_slope])
                setattr(module, name, nn.Identity())
    return folded


def can_pack(kind: torch.dtype) -> bool:
    """Whether this processor and this torch have `PackedConv` for numbers of a ``kind``."""
    known = hasattr(torch.ops.mkldnn, "_convolution_pointwise") and torch.backends.mkldnn.is_available()
    if not known or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return kind == torch.float32 or (kind == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
