"""Run by test_aot.py in a process without the interpreter: prints what the recorder and the compiler find, as JSON."""

import importlib
import json
import pkgutil
from dataclasses import asdict
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from qwen3_kernels import triton_ops
from qwen3_kernels.aot import record, shapes, table
from qwen3_kernels.aot.compile import compile_launch

try:
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.compiler import BaseBackend
except ImportError:  # another version of Triton
    native_specialize_impl = None

specialized = record.specialized


@triton.jit
def scale_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """One program holds all of x in registers until its sum is known."""
    index = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + index).to(tl.float32)
    tl.store(out_ptr + index, (x / tl.sum(x, 0)).to(tl.bfloat16))


@triton.jit
def matmul_kernel(out_ptr, x_ptr, weight_ptr, stride):
    """64 x 64 times 64 x 64."""
    row = tl.arange(0, 64)
    square = row[:, None] * 64 + row[None, :]
    x = tl.load(x_ptr + square)
    weight = tl.load(weight_ptr + row[:, None] * stride + row[None, :])
    tl.store(out_ptr + square, tl.dot(x, weight).to(tl.bfloat16))


@triton.jit
def exact_kernel(out_ptr, x_ptr, weight_ptr, stride):
    """The same, float32 as it is."""
    row = tl.arange(0, 64)
    square = row[:, None] * 64 + row[None, :]
    x = tl.load(x_ptr + square)
    weight = tl.load(weight_ptr + row[:, None] * stride + row[None, :])
    tl.store(out_ptr + square, tl.dot(x, weight, input_precision="ieee").to(tl.bfloat16))


@triton.jit(do_not_specialize=["c", "d"], do_not_specialize_on_alignment=["e", "f"])
def any_kernel(a, b, c, d, e, f, CONSTANT: tl.constexpr, DEFAULT: tl.constexpr = 7):
    """Takes anything and does nothing."""


def planted() -> dict[str, tuple[list[str], dict]]:
    """Violations and report of kernels that are sound and of kernels that are not."""
    x, square, square32 = shapes.empty(8192), shapes.empty(64, 64), shapes.floats(64, 64)
    cases = {
        "small": ("sm_90", scale_kernel, (x, x, 4096), {}),
        "one warp": ("sm_90", scale_kernel, (x, x, 1024), {"num_warps": 1}),
        "float32 in the tensor cores": ("sm_90", matmul_kernel, (square, square32, square32, 64), {}),
        "float32": ("sm_90", exact_kernel, (square, square32, square32, 64), {}),
        "spills": ("sm_90", scale_kernel, (x, x, 8192), {"maxnreg": 24}),
        "good": ("sm_90", matmul_kernel, (square, square, square, 64), {}),
        "stride of any size": ("sm_90", matmul_kernel, (square, square, square, 65), {}),
        "no bfloat16 in the tensor cores": ("sm_75", matmul_kernel, (square, square, square, 64), {}),
    }
    found = {}
    for name, (arch, kernel, arguments, options) in cases.items():
        with record.recorded() as launches:
            kernel[(1,)](*arguments, **options)
        report = compile_launch(launches[0], arch)
        found[name] = table.absolute_violations(report), asdict(report)
    return found


def compared() -> int | list[str] | None:
    """How many arguments are described as by Triton, or how the others differ; None where it cannot be asked."""
    if native_specialize_impl is None:
        return None
    same, different = 0, []

    def both(parameter, value):
        nonlocal same
        ours = specialized(parameter, value)
        if not parameter.is_constexpr:
            choices = not parameter.do_not_specialize, not parameter.do_not_specialize_on_alignment
            theirs = native_specialize_impl(BaseBackend, value, parameter.is_const, *choices)
            if ours != theirs:
                different.append(f"{parameter.name}={value}: {ours}, Triton {theirs}")
            same += ours == theirs
        return ours

    record.specialized = both
    tensors = [torch.empty(40, dtype=dtype) for dtype in record.TYPES]
    tensors += [tensor.to("meta") for tensor in tensors]
    tensors += [tensor[n:] for tensor in tensors for n in (1, 8, 16, 40)]
    numbers = [0, 1, 2, 16, 17, -1, -16, 2**31 - 1, 2**31, 2**33 + 16, -(2**31), -(2**31) - 1]
    for value in (*tensors, *numbers, 0.0, 1.0, 2.5, True, False, None):
        record.launches_of(lambda value=value: any_kernel[(1,)](*[value] * 6, CONSTANT=value))
    for model in shapes.MODELS:
        shapes.launches(model)
    record.specialized = specialized
    return different or same


def launched() -> dict[str, dict]:
    """The launches of both models by "model/module/name": kernel, arguments, options and grid."""
    return {
        f"{model}/{key}": {
            "kernel": launch.kernel.__name__,
            "arguments": launch.arguments,
            "options": launch.options,
            "grid": launch.grid,
        }
        for model in shapes.MODELS
        for key, launch in shapes.launches(model).items()
    }


def kernels() -> list[str]:
    """Every kernel of the package by name, launched or not."""
    names = set()
    for module in pkgutil.walk_packages([str(Path(triton_ops.__file__).parent)], "qwen3_kernels."):
        if not module.name.endswith(("__main__", "interpreter")):
            members = vars(importlib.import_module(module.name)).values()
            names |= {member.__name__ for member in members if isinstance(member, JITFunction)}
    return sorted(name for name in names if name.endswith("_kernel"))


def recorded_once() -> dict:
    """One launch with every kind of argument, as the recorder has it."""
    x = torch.empty(40, dtype=torch.bfloat16, device="meta")
    with record.recorded() as launches:
        any_kernel[lambda bound: (bound["c"], 2)](x, x[1:], 1, d=3, e=16, f=x, CONSTANT="text", num_warps=2)
    triton_ops.rms_norm(torch.ones(0, 8), torch.ones(8), 1e-6)  # no rows, no launch: nothing is patched any more
    (launch,) = launches
    return {"arguments": launch.arguments, "options": launch.options, "grid": launch.grid}


if __name__ == "__main__":
    functions = (planted, compared, recorded_once, launched, kernels)
    print(json.dumps({function.__name__: function() for function in functions}))
