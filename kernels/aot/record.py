"""Records kernel launches instead of running them.

The real launchers run on tensors without data (`device="meta"`), so the grid, the tile and the constants of a launch
are those that it has on a GPU. Each argument is described as Triton's own launcher specializes it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction, KernelParam

TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "u1",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch. Two are equal when they run the same compiled code, whatever their grids.

    arguments: by parameter name, what `specialized` returns. options: num_warps, num_stages and other options.
    """

    kernel: JITFunction
    arguments: dict[str, tuple[str, Any]]
    options: dict[str, Any]
    grid: tuple[int, ...] = field(compare=False)


def specialized(parameter: KernelParam, value: Any) -> tuple[str, Any]:
    """Describes an argument as Triton does: its type, and "D" where a multiple of 16 is known.

    A constant has the type "constexpr" and comes with its value. Raises TypeError or KeyError for what no
    kernel here takes.
    """
    if parameter.is_constexpr or value is None:
        return "constexpr", value
    if parameter.annotation_type or not isinstance(value, Tensor | bool | int | float):
        raise TypeError(f"{parameter.name}: cannot describe {type(value).__name__}")
    if isinstance(value, bool):
        return "u1", None
    if isinstance(value, float):
        return "fp32", None
    if isinstance(value, Tensor):
        kind = f"{'*k' if parameter.is_const else '*'}{TYPES[value.dtype]}"
        divisible = value.data_ptr() % 16 == 0
    elif value == 1 and not parameter.do_not_specialize:
        return "constexpr", 1
    else:
        kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        divisible = value % 16 == 0
    if parameter.do_not_specialize:
        return kind, None
    return kind, "D" if divisible and not parameter.do_not_specialize_on_alignment else ""


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Within, kernels are not run: the list holds their launches, in order.

    Raises RuntimeError when the kernels were defined for the interpreter.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels were imported with TRITON_INTERPRET set, unset it to compile them")
    launches: list[Launch] = []

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in set(kwargs) - set(kernel.arg_names)}
        bound = kernel.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {p.name: specialized(p, bound.arguments[p.name]) for p in kernel.params}
        launches.append(Launch(kernel, arguments, options, tuple(grid(bound.arguments) if callable(grid) else grid)))

    with patch.object(JITFunction, "run", run):
        yield launches


def launches_of(op: Callable, *arguments: Any) -> list[Launch]:
    """Records what one call of an op launches."""
    with recorded() as launches:
        op(*arguments)
    return launches
