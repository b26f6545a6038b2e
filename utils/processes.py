"""Several processes that work as one, started by ``torchrun``; without it, one process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from utils.cli import UsageError

#: For how long a process waits for another: one may read in minutes what another has to work out in hours.
PATIENCE = timedelta(days=1)


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started; yields this process's device.

    Raises:
        UsageError: more processes than GPUs.
    """
    together, on_gpu = "WORLD_SIZE" in os.environ, device.type == "cuda"
    if on_gpu:
        number, gpus = device.index or 0, torch.cuda.device_count()
        if together and (number := int(os.environ["LOCAL_RANK"])) >= gpus:
            raise UsageError(
                f"no GPU for process {number + 1} of this machine, which has {gpus}; start at most as many "
                f"processes as there are GPUs (torchrun --nproc_per_node={gpus})"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if not together:
        yield device
        return
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=PATIENCE, device_id=device if on_gpu else None
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def cores(most: int) -> int:
    """Cores for this process, 1 to ``most``; the processes that ``torchrun`` started share them."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(count // local_processes(), 1), most)


def local_processes() -> int:
    """How many processes ``torchrun`` started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


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


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the values that they have in process 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


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


def keep_freed_memory() -> None:
    """Lets the process keep freed memory for its next use instead of returning it to the system.

    A network's forward pass on the CPU frees and asks for the same large blocks again and again; glibc gives
    them back each time and the kernel clears them page by page anew, a quarter of the whole time at
    1024x768. Does nothing where the C library is not glibc.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
