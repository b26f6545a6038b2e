"""How the weights move: optimizers, learning rates, and a running average."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from data.config import ModelConfig
from models.retinaface import RetinaFace


def make_optimizer(
    network: RetinaFace, name: str, lr: float, shared_lr_factor: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``sgd`` or ``adamw``; what stands before the heads learns at ``shared_lr_factor`` of the rate."""
    heads, shared = [], []
    for key, parameter in network.named_parameters():
        (heads if key.startswith(("ClassHead.", "BboxHead.")) else shared).append(parameter)
    groups = [
        {"params": heads, "lr": lr, "initial_lr": lr},
        {"params": shared, "lr": lr, "initial_lr": lr * shared_lr_factor},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=weight_decay)
    return torch.optim.SGD(groups, momentum=momentum, weight_decay=weight_decay)


def make_schedule(
    name: str, cfg: ModelConfig, steps: int, epochs: int, warmup: int, gamma: float
) -> Callable[[int], float]:
    """Share of the learning rate at a step of the whole run; it depends on nothing else.

    Args:
        name: ``step``, times ``gamma`` at the network's epochs, or ``cosine``, to zero at the end.
        cfg: the network.
        steps: of an epoch.
        epochs: of the run.
        warmup: steps in which the share rises to 1.
        gamma: factor of ``step``.
    """

    def share(step: int) -> float:
        warm = min(1.0, (step + 1) / (warmup + 1))
        if name == "cosine":
            return warm * (1 + math.cos(math.pi * step / (steps * epochs))) / 2
        return warm * gamma ** sum(step // steps >= epoch for epoch in cfg.lr_decay_epochs)

    return share


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """Running average of weights; its memory grows with the steps until ``decay`` is reached."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        steps = int(count)
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, share)

    return AveragedModel(network, multi_avg_fn=update)
