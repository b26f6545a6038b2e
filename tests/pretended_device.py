"""A CUDA device that is pretended on the CPU: what would fail or wait on a real one shows without one.

Tensors are computed on the CPU and their storages tagged; who asks for their device is told ``cuda:0``.
Where an operation meets tensors of both devices it raises, as CUDA would. What makes the host wait for the
device is counted, and so is what the host has to launch. The rules are those of PyTorch's CUDA kernels, read
in their source; nothing here knows the time that anything takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from layers.functions.matching import prior_grids
from layers.functions.prior_box import prior_boxes

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

#: Operations that read their result's size or value back, with how often they do.
WAITING = Counter(
    {
        "aten::_local_scalar_dense": 1,
        "aten::nonzero": 1,
        "aten::masked_select": 1,
        "aten::equal": 1,
        "aten::_unique2": 1,
        "aten::unique_consecutive": 1,
        "aten::bincount": 2,
        "torchvision::nms": 1,
    }
)

#: Operations that launch nothing, besides views.
FREE = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::lift_fresh"}
FREE |= {"aten::_local_scalar_dense", "aten::_reshape_alias", "aten::_unsafe_view", "aten::detach_"}

#: Functions whose backward pass reads values back, where no mode sees it.
WAITING_BACKWARD = (torch.prod, Tensor.prod, torch.cumprod, Tensor.cumprod)

NEW = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


class MixedDevices(RuntimeError):
    """An operation on tensors of the CPU and of the device."""


class PretendedDevice:
    """Which tensors are on the device, and what was done there.

    Attributes:
        waits: times that the host waits for the device, by what makes it wait.
        launches: times that the host starts work on the device, by operation.
        within: whether a call on tensors of the device is under way; what it makes for itself is there too.
    """

    def __init__(self) -> None:
        self.waits, self.launches = Counter(), Counter()
        self.within = False
        self._device: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}

    def reset(self) -> None:
        """Counts from zero."""
        self.waits.clear()
        self.launches.clear()

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return _storage(tensor)._cdata in self._device

    def is_pinned(self, tensor: Tensor) -> bool:
        return _storage(tensor)._cdata in self._pinned

    def pin(self, tensor: Tensor) -> Tensor:
        """The tensor in memory that the device can read by itself, as a loader with ``pin_memory`` has it."""
        self._keep(self._pinned, tensor)
        return tensor

    def place(self, results: object, on_device: bool) -> object:
        """Puts all tensors of a result on the device or on the CPU."""
        for tensor in _tensors(results):
            if on_device:
                self._keep(self._device, tensor)
            else:
                self._device.pop(_storage(tensor)._cdata, None)
        return results

    def move(self, source: Tensor, to_device: bool, non_blocking: bool) -> None:
        """Counts a copy between the devices."""
        self.launches["copy"] += 1
        if not to_device:
            self.waits["copy to the CPU"] += 1
        elif not (non_blocking and self.is_pinned(source)):
            self.waits["copy to the device"] += 1

    @staticmethod
    def _keep(storages: dict[int, StorageWeakRef], tensor: Tensor) -> None:
        storage = _storage(tensor)
        storages[storage._cdata] = StorageWeakRef(storage)  # holds the address, so that no other has it


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()


def _tensors(nested: object) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    parts = nested.values() if isinstance(nested, dict) else nested
    return [t for part in parts for t in _tensors(part)] if isinstance(nested, tuple | list | dict) else []


class _Calls(TorchFunctionMode):
    """Python's side: what names a device, asks for one, or reads values without an operation."""

    def __init__(self, pretended: PretendedDevice) -> None:
        super().__init__()
        self.pretended = pretended
        self.own = {
            Tensor.device.__get__: lambda tensor: CUDA if pretended.has(tensor) else CPU,
            Tensor.is_cuda.__get__: pretended.has,
            Tensor.is_cpu.__get__: lambda tensor: not pretended.has(tensor),
            Tensor.is_pinned: pretended.is_pinned,
            Tensor.pin_memory: lambda tensor: pretended.pin(tensor.clone()),
            Tensor.to: self._to,
            Tensor.cpu: lambda tensor: self._to(tensor, CPU),
            Tensor.cuda: lambda tensor: self._to(tensor, CUDA),
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._numpy,
            Tensor.tolist: self._tolist,
            Tensor.__deepcopy__: lambda tensor, memo: pretended.place(
                Tensor.__deepcopy__(tensor, memo), pretended.has(tensor)
            ),
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in self.own:
            return self.own[func](*args, **kwargs)
        if func.__name__ == "__get__":  # another attribute
            return func(*args)
        pretended, device = self.pretended, kwargs.get("device")
        if func in WAITING_BACKWARD and torch.is_grad_enabled() and args[0].requires_grad:
            pretended.waits[f"backward of {func.__name__}"] += pretended.has(args[0])
        if func in NEW:
            for tensor in filter(pretended.has, _tensors(args[-1])):
                pretended.waits["a tensor in a list"] += tensor.numel()
        if device is None and func is not Tensor.new_tensor:
            within, pretended.within = pretended.within, any(map(pretended.has, _tensors((args, kwargs))))
            try:
                return func(*args, **kwargs)
            finally:
                pretended.within = within
        on_device = torch.device(device).type == "cuda" if device is not None else pretended.has(args[0])
        if device is not None:
            kwargs["device"] = CPU
        result = pretended.place(func(*args, **kwargs), on_device)
        if on_device:
            kind = "copy" if func in NEW else func.__name__
            pretended.launches[kind] += 1
            if func in NEW:
                pretended.waits["copy to the device"] += 1
        return result

    def _to(self, tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        first = args[0] if args else None
        names = ["dtype", "non_blocking", "copy"]
        if isinstance(first, Tensor):
            names = ["other", *names[1:]]
        elif not isinstance(first, torch.dtype):
            names = ["device", *names]
        options = dict(zip(names, args, strict=False)) | kwargs
        there, target = self.pretended.has(tensor), options.pop("device", None)
        wanted = there if target is None else torch.device(target).type == "cuda"
        if (other := options.pop("other", None)) is not None:
            options["dtype"], wanted = other.dtype, self.pretended.has(other)
        if wanted == there:
            return tensor.to(**options)
        self.pretended.move(tensor, wanted, bool(options.get("non_blocking")))
        before = self.pretended.launches.copy()  # the copy itself is counted already
        moved = tensor.to(**options | {"copy": True})
        self.pretended.launches = before
        return self.pretended.place(moved, wanted)

    def _numpy(self, tensor: Tensor, *args: object, **kwargs: object) -> object:
        if self.pretended.has(tensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return tensor.numpy(**kwargs)

    def _tolist(self, tensor: Tensor) -> list:
        if self.pretended.has(tensor):
            self.pretended.waits["tolist"] += 1
        return tensor.tolist()


class _Operations(TorchDispatchMode):
    """PyTorch's side: every operation, those of the backward pass too."""

    def __init__(self, pretended: PretendedDevice) -> None:
        super().__init__()
        self.pretended = pretended

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, pretended = func._schema.name, self.pretended
        tensors = _tensors((args, kwargs))
        there = [pretended.has(tensor) for tensor in tensors]
        if not any(there):
            result = func(*args, **kwargs)
            return pretended.place(result, True) if pretended.within and not tensors else result
        with self:  # without autograd, operations that are made of others arrive whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if name == "aten::copy_":
            if not all(there):
                pretended.move(args[1], there[0], (*args, False)[2])
                return func(*args, **kwargs)
        else:
            self._check(name, tensors, there)
        if waits := WAITING[name] + self._hidden_waits(name, args, kwargs):
            pretended.waits[name.partition("::")[2]] += waits
        if not func.is_view and name not in FREE:
            several = name.startswith(("aten::_foreach_", "aten::_fused_"))
            dtypes = {tensor.dtype for tensor in tensors if tensor.dim()}
            pretended.launches[name.partition("::")[2]] += len(args[0]) if several and len(dtypes) > 1 else 1
        return pretended.place(func(*args, **kwargs), True)

    def _check(self, name: str, tensors: list[Tensor], there: list[bool]) -> None:
        """Raises if tensors of the CPU take part; single values may, and so may indices, which are copied."""
        for position, (tensor, on_device) in enumerate(zip(tensors, there, strict=True)):
            is_index = name in ("aten::index", "aten::index_put_", "aten::_index_put_impl_") and position
            if not on_device and (not position or (tensor.dim() and not is_index)):
                shapes = ", ".join(
                    f"{'cuda' if on else 'cpu'}{list(t.shape)}" for t, on in zip(tensors, there, strict=True)
                )
                raise MixedDevices(f"{name}: tensors of both devices ({shapes})")

    def _hidden_waits(self, name: str, args: tuple, kwargs: dict) -> int:
        """Times that an operation waits which depend on its arguments."""
        if name == "aten::repeat_interleave":
            return kwargs.get("output_size") is None
        if name not in ("aten::index", "aten::index_put_", "aten::_index_put_impl_"):
            return 0
        indices = _tensors(args[1])
        masks = sum(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name == "aten::index" or self.pretended.has(args[2]):
            return masks + sum(not self.pretended.has(index) for index in indices)
        return 0 if masks == len(indices) == 1 else masks + 1  # one mask is filled, else the value is copied


@contextmanager
def pretended_device() -> Iterator[PretendedDevice]:
    """Everything within sees a device ``cuda:0``."""
    pretended = PretendedDevice()
    autocast, group = torch.autocast, torch._C._group_tensors_by_device_and_dtype

    def by_device(*args: object) -> dict:
        groups = group(*args)
        there = {key: pretended.has(value[0][0][0]) for key, value in groups.items()}
        return {(CUDA if there[key] else key[0], key[1]): value for key, value in groups.items()}

    for cached in (prior_boxes, prior_grids):  # those of another pretended device are not on this one
        cached.cache_clear()
    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", lambda kind, *a, **k: autocast("cpu", *a, **k)))
        stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", by_device))
        stack.enter_context(_Calls(pretended))
        stack.enter_context(_Operations(pretended))
        yield pretended
