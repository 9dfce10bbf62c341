"""RMSNorm, alone or with the residual add before it: one program per row, one pass over memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require

MAX_HIDDEN = 8192


def _num_warps(block: int) -> int:
    """For 16 elements per thread, two 128-bit loads of bfloat16: enough in flight, few registers."""
    return min(16, max(1, block // 512))


@triton.jit
def rms_norm_kernel(
    out_ptr,  # [rows, H]
    x_ptr,  # [rows, H]
    weight_ptr,  # [H]
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = round(x / sqrt(mean(x²) + eps)) * weight. Grid: (rows,). A program owns one row."""
    offsets = tl.program_id(0).to(tl.int64) * H + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    column_mask = column < H
    x = tl.load(x_ptr + offsets, mask=column_mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 0) / H + eps)
    rounded = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + offsets, (rounded * weight).to(out_ptr.dtype.element_ty), mask=column_mask)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight, in one pass. Takes contiguous tensors, H up to 8,192."""
    _check(x, weight)
    out = torch.empty_like(x)
    hidden = x.shape[-1]
    if x.numel():
        block = triton.next_power_of_2(hidden)
        rms_norm_kernel[(x.numel() // hidden,)](out, x, weight, eps, hidden, block, num_warps=_num_warps(block))
    return out


@triton.jit
def add_rms_norm_kernel(
    out_ptr,  # [rows, H]
    x_ptr,  # [rows, H]
    residual_ptr,  # [rows, H], read and written
    weight_ptr,  # [H]
    eps,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """residual += x; out = round(residual / sqrt(mean(residual²) + eps)) * weight.

    Grid: (rows,). A program owns one row.
    """
    offsets = tl.program_id(0).to(tl.int64) * H + tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    column_mask = column < H
    x = tl.load(x_ptr + offsets, mask=column_mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + offsets, mask=column_mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column_mask, other=0.0).to(tl.float32)
    total = (residual + x).to(residual_ptr.dtype.element_ty)
    tl.store(residual_ptr + offsets, total, mask=column_mask)
    # The norm is of the rounded sum, which the next layer reads.
    total = total.to(tl.float32)
    normed = total * tl.rsqrt(tl.sum(total * total, 0) / H + eps)
    rounded = normed.to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + offsets, (rounded * weight).to(out_ptr.dtype.element_ty), mask=column_mask)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of residual + x and this sum, in one pass. The residual is updated in place and returned."""
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
