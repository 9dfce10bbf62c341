"""Every launch of a Triton kernel: bound, specialized and compiled by Triton itself, only not run."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from .world import Launch, World

MOST_GRID = (2**31 - 1, 65535, 65535)


@dataclass(eq=False)
class Variant:
    """One compiled kernel.

    arguments: of each parameter its type, and its constant or "D" for a multiple of 16, as in kernels/aot.
    seconds: processor time of compiling, the assembler included; next to none where Triton's cache has it.
    integers: the least and the greatest value that each integer had; elements: the size of the largest tensor.
    """

    function: JITFunction
    kernel: Any
    device: int
    phase: str
    seconds: float
    options: dict[str, Any]
    constants: set[str]
    arguments: dict[str, tuple[str, Any]] = field(default_factory=dict)
    grids: Counter[tuple[int, ...]] = field(default_factory=Counter)
    integers: dict[str, tuple[int, int]] = field(default_factory=dict)
    elements: int = 0

    @property
    def name(self) -> str:
        return self.function.__name__


class Pointer:
    """What Triton's binder wants of a tensor: a dtype and an address."""

    __slots__ = ("address", "dtype", "elements")

    def __init__(self, world: World, tensor: torch.Tensor) -> None:
        self.dtype = tensor.dtype
        self.address = world.address(tensor)
        steps = zip(tensor.shape, tensor.stride())
        self.elements = 1 + sum((size - 1) * stride for size, stride in steps) if tensor.numel() else 0

    def data_ptr(self) -> int:
        return self.address

    def ptr_range(self) -> int:
        return 2**31 - 1


class FakeDriver:
    """All that Triton asks a driver for when it compiles."""

    def __init__(self, world: World) -> None:
        self.world, self.utils = world, self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.world.card.arch, 32)

    def get_current_device(self) -> int:
        return self.world.device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", self.world.device)

    def get_device_properties(self, device: int) -> dict[str, int]:
        card = self.world.card
        return {"max_shared_mem": card.shared, "multiprocessor_count": card.multiprocessors, "warpSize": 32}


def intercept(world: World) -> list[Variant]:
    """From here on launches are compiled and noted in `world`; the list fills with what was compiled."""
    triton.runtime.driver.set_active(FakeDriver(world))
    stock_run, stock_compile = JITFunction.run, JITFunction._do_compile
    variants: list[Variant] = []
    of_kernel: dict[int, Variant] = {}

    def compile_(self, key, signature, device, constexprs, options, attrs, warmup):
        if world.capturing is not None:
            world.breach(f"compiles {self.__name__}")
        began = _processor_seconds()
        try:
            kernel = stock_compile(self, key, signature, device, constexprs, options, attrs, warmup)
        except Exception as error:
            text = " ".join(str(error).split())
            world.breach(f"{self.__name__} does not compile: {type(error).__name__} {text[:300]}")
            raise
        kept = {name: getattr(options, name) for name in ("num_warps", "num_stages")}
        constants = {name for name, kind in signature.items() if kind == "constexpr"}
        variant = Variant(self, kernel, world.device, world.phase, _processor_seconds() - began, kept, constants)
        variants.append(variant)
        of_kernel[id(kernel)] = variant
        return kernel

    def run(self, *args, grid, warmup, **kwargs):
        args = [_pointer(world, self.__name__, value) for value in args]
        kwargs = {name: _pointer(world, self.__name__, value) for name, value in kwargs.items()}
        kernel = stock_run(self, *args, grid=grid, warmup=True, **kwargs)
        binder = self.device_caches[world.device][-1]
        bound, specialization, _ = binder(*args, **kwargs)
        variant = of_kernel[id(kernel)]
        if not variant.arguments:
            variant.arguments = _arguments(variant, bound, specialization)
        _finish(world, variant, (*(grid(bound) if callable(grid) else grid), 1, 1)[:3], bound)
        return kernel

    def prepared(self, grid):
        """compiled[grid](*arguments): without Triton's own look at the arguments."""

        def launch(*args, stream=None):
            variant = of_kernel[id(self)]
            bound = {p.name: _pointer(world, variant.name, value) for p, value in zip(variant.function.params, args)}
            for text in _unfit(variant, bound):
                world.breach(text)
            _finish(world, variant, (*grid, 1, 1)[:3], bound)

        return launch

    JITFunction._do_compile, JITFunction.run, CompiledKernel.__getitem__ = compile_, run, prepared
    return variants


def _processor_seconds() -> float:
    """Of this process and of its children: the assembler is one."""
    return sum(os.times()[:4])


def _pointer(world: World, kernel: str, value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.device.type != "cuda":
        world.breach(f"{kernel} is launched with a tensor on {value.device}")
        raise ValueError(f"{kernel}: a tensor on {value.device} cannot be accessed from Triton")
    if (value.device.index or 0) != world.device:
        world.breach(f"{kernel} is launched on cuda:{world.device} with a tensor on {value.device}")
    world.touch(value)
    return Pointer(world, value)


def _arguments(variant: Variant, bound: dict, specialization: list) -> dict[str, tuple[str, Any]]:
    found = {}
    for parameter, (kind, extra) in zip(variant.function.params, specialization):
        value = bound[parameter.name]
        found[parameter.name] = (kind, value if kind == "constexpr" else "D" if extra and "D" in str(extra) else "")
    return found


def _unfit(variant: Variant, bound: dict) -> Iterator[str]:
    """Arguments that a compiled kernel was not compiled for."""
    for name, value in bound.items():
        kind, constant = variant.arguments[name]
        number = value.address if isinstance(value, Pointer) else value
        if kind == "constexpr" and number != constant:
            yield f"{variant.name} is launched with {name} = {number}, it was compiled for {constant}"
        elif constant == "D" and kind != "constexpr" and number % 16:
            yield f"{variant.name} is launched with {name} = {number}, it was compiled for multiples of 16"


def _finish(world: World, variant: Variant, grid: tuple[int, ...], bound: dict) -> None:
    """Notes a launch, and adds what it says of its variant."""
    if not all(isinstance(size, int) and 0 < size <= most for size, most in zip(grid, MOST_GRID)):
        world.breach(f"grid {grid} of {variant.name} is beyond the card's {MOST_GRID}")
    variant.grids[grid] += 1
    for name, value in bound.items():
        if isinstance(value, Pointer):
            variant.elements = max(variant.elements, value.elements)
        elif isinstance(value, int) and not isinstance(value, bool):
            low, high = variant.integers.get(name, (value, value))
            variant.integers[name] = min(low, value), max(high, value)
    world.launches.append(Launch(variant.name, world.phase, world.layer, world.capturing is not None, grid))
