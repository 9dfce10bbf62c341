"""RMSNorm, alone and with the residual add before it: one program per row, one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require

MAX_HIDDEN = 8192


def _num_warps(block: int) -> int:
    """16 elements per thread, two 128-bit loads of bfloat16: enough in flight, few registers."""
    return min(16, max(1, block // 512))


@triton.jit
def rms_norm_kernel(out_ptr, x_ptr, weight_ptr, eps, H: tl.constexpr, BLOCK: tl.constexpr):
    """out = round(x / sqrt(mean(x²) + eps)) * weight, one row per program.

    out, x: [rows, H]; weight: [H]. Grid: (rows,).
    """
    offsets = tl.program_id(0).to(tl.int64) * H + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    mask = column < H
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / H + eps)
    rounded = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + offsets, (rounded * weight).to(out_ptr.dtype.element_ty), mask=mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich, 2019): normalised in float32, rounded, then times weight.

    x [..., H] contiguous, float32, float16 or bfloat16, H up to 8,192; weight [H] of the same dtype -> [..., H].
    Raises ValueError for other layouts or dtypes.
    """
    _check(x, weight)
    out = torch.empty_like(x)
    hidden = x.shape[-1]
    if x.numel():
        block = triton.next_power_of_2(hidden)
        rms_norm_kernel[(x.numel() // hidden,)](out, x, weight, eps, hidden, block, num_warps=_num_warps(block))
    return out


@triton.jit
def add_rms_norm_kernel(out_ptr, x_ptr, residual_ptr, weight_ptr, eps, H: tl.constexpr, BLOCK: tl.constexpr):
    """residual += x; out = round(residual / sqrt(mean(residual²) + eps)) * weight, one row per program.

    out, x, residual: [rows, H], residual is read and written; weight: [H]. Grid: (rows,).
    """
    offsets = tl.program_id(0).to(tl.int64) * H + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    mask = column < H
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    total = (residual + x).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + offsets, total, mask=mask)
    # The norm is of the sum as the next layer will read it, rounded.
    total = total.to(tl.float32)
    normed = total * tl.rsqrt(tl.sum(total * total, 0) / H + eps)
    rounded = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + offsets, (rounded * weight).to(out_ptr.dtype.element_ty), mask=mask)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual add and the norm that follows it, in one pass.

    x, residual [..., H] and weight [H] as in `rms_norm` -> (rms_norm(residual + x), residual), where the residual that
    is returned is the one passed in, updated in place. Raises ValueError for other layouts or dtypes.
    """
    _check(x, weight)
    require("residual", residual, x.dtype, x.shape, like=x)
    out = torch.empty_like(x)
    hidden = x.shape[-1]
    if x.numel():
        block = triton.next_power_of_2(hidden)
        add_rms_norm_kernel[(x.numel() // hidden,)](
            out, x, residual, weight, eps, hidden, block, num_warps=_num_warps(block)
        )
    return out, residual


def _check(x: Tensor, weight: Tensor) -> None:
    require("x", x, DTYPES, ("...", "H"))
    if not 1 <= x.shape[-1] <= MAX_HIDDEN:
        raise ValueError(f"x must have 1 to {MAX_HIDDEN} columns, got {list(x.shape)}")
    require("weight", weight, x.dtype, x.shape[-1:], like=x)
