"""Several training processes that work as one, started by ``torchrun``; without it, one process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started; yields this process's device."""
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Adds up a tensor over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_from_processes(found: dict) -> dict:
    """The union of a dictionary over all processes, on each of them."""
    if not dist.is_initialized():
        return found
    parts: list[dict | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def wait_for_all() -> None:
    """Returns once every process is here."""
    if dist.is_initialized():
        dist.barrier()


class _Sum(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return sum_over_processes(values.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return sum_over_processes(gradient.clone())


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes, on any device (torch's own needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        exact = x.float()
        count = _Sum.apply(exact.new_tensor(x.numel() / x.shape[1]))
        mean = _Sum.apply(exact.sum((0, 2, 3))) / count
        centred = exact - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Makes every batch norm use the statistics of all processes; names of weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = SyncBatchNorm(child.num_features, child.eps, child.momentum)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
    return network


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Lets the process keep freed memory for its next use instead of returning it to the system.

    A network's forward pass on the CPU frees and asks for the same large blocks again and again; glibc gives
    them back each time and the kernel clears them page by page anew, a quarter of the whole time at
    1024x768. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
