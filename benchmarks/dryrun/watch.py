"""A look at every operation of PyTorch: launches, copies, waits, operands on two devices, writes to pinned memory."""

import re
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .world import Launch, World, storage

MATMULS = {"linear", "mm", "addmm", "bmm", "matmul", "addmv", "mv"}
# Operations whose result the host must know before it goes on: a number, or the shape of a tensor.
NUMBERS = {"_local_scalar_dense", "item", "is_nonzero"}
WAITING = {"nonzero", "_unique2", "unique_dim", "masked_select", "equal", "bincount"}


class Watch(TorchDispatchMode):
    """Sees every operation of PyTorch: launches, copies, waits, operands on two devices, writes to pinned memory."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        world, kwargs = self.world, kwargs or {}
        name = func.overloadpacket.__name__
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_cuda = [t for t in operands if t.device.type == "cuda"]
        if name in NUMBERS and on_cuda:
            world.wait("item")
            return False if name == "is_nonzero" else nested((), on_cuda[0].dtype)
        if name in WAITING and on_cuda:
            world.wait(f"{name} of {[list(t.shape) for t in on_cuda]}")
        if name in MATMULS and on_cuda:
            world.workspace(on_cuda[0].device.index or 0)
            if _may_round(on_cuda[0].dtype):
                world.breach(f"{name} may round sums to {on_cuda[0].dtype}: PyTorch allows reduced precision")
        if name == "equal" and on_cuda:
            return True
        written = [value for argument, value in zip(func._schema.arguments, args) if _is_written(argument, value)]
        if any(world.in_flight(tensor) for tensor in written):
            world.breach("writes to pinned memory while a copy of it may be under way")
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        cuda = {str(t.device) for t in (*operands, *results) if t.device.type == "cuda"}
        for tensor in results:
            if tensor.device.type == "cuda":
                world.own(tensor)
        if len(cuda) > 1:
            world.breach(f"{name} has tensors on {' and '.join(sorted(cuda))}")
        before = {storage(tensor) for tensor in operands}
        computes = bool(written) or any(storage(tensor) not in before for tensor in results)
        if cuda and computes and not re.fullmatch(r"(new_)?empty\w*", name):
            if name in ("to", "_to_copy", "copy_"):
                name = self._copy(name, operands[-1], results[0], _non_blocking(func, args, kwargs))
            for tensor in (*operands, *results):
                world.touch(tensor)
            world.launches.append(Launch(name, world.phase, world.layer, world.capturing is not None))
        return out

    def _copy(self, name: str, source: torch.Tensor, destination: torch.Tensor, non_blocking: bool) -> str:
        """Notes a copy between host and device; returns what to call it."""
        world = self.world
        kinds = source.device.type, destination.device.type
        if kinds == ("cuda", "cuda"):
            return name
        to_host = kinds[1] == "cpu"
        if to_host and non_blocking and name != "copy_":
            world.pin(destination)  # as PyTorch does
        waits = not non_blocking or not world.is_pinned(destination if to_host else source)
        where = "to the host" if to_host else "to the device"
        if world.step is not None and not to_host:
            world.step.copies += 1
        if waits:
            world.wait(f"copy of {list(source.shape)} {where}")
        else:
            world.start_copy(destination if to_host else source)
        return f"copy {where}"


def nested(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """Zeros as numbers or nested lists of them."""
    zero = False if dtype == torch.bool else 0.0 if dtype.is_floating_point else 0
    return zero if not shape else [nested(shape[1:], dtype) for _ in range(shape[0])]


def _may_round(dtype: torch.dtype) -> bool:
    """Whether cuBLAS may add the parts of a split sum in this dtype."""
    flags = torch.backends.cuda.matmul
    if dtype == torch.bfloat16:
        return bool(flags.allow_bf16_reduced_precision_reduction)
    return dtype == torch.float16 and bool(flags.allow_fp16_reduced_precision_reduction)


def _is_written(argument: Any, value: Any) -> bool:
    return isinstance(value, torch.Tensor) and argument.alias_info is not None and argument.alias_info.is_write


def _non_blocking(func: Any, args: tuple, kwargs: dict) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    return bool((dict(zip(names, args)) | kwargs).get("non_blocking", False))
