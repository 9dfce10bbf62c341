"""SwiGLU of the dense MLP. The experts compute it in the epilogue of their own matmul."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require

BLOCK, NUM_WARPS = 1024, 4  # each thread: one 128-bit load of bfloat16 from either half


@triton.jit
def swiglu_kernel(
    out_ptr,  # [rows, I]
    gate_up_ptr,  # [rows, 2 I], the gate first
    I: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out = round(silu(gate)) * up, silu(x) = x / (1 + exp(-x)).

    Grid: (rows, ceil(I / BLOCK)). A program owns BLOCK columns of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_mask = column < I
    gate = tl.load(gate_up_ptr + row * (2 * I) + column, mask=column_mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * I) + I + column, mask=column_mask, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * I + column, (silu * up).to(out_ptr.dtype.element_ty), mask=column_mask)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, in one launch. Takes a contiguous tensor."""
    require("gate_up", gate_up, DTYPES, ("T", "2 I"))
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have an even number of columns, got {list(gate_up.shape)}")
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        swiglu_kernel[rows, triton.cdiv(size, BLOCK)](out, gate_up, size, BLOCK, num_warps=NUM_WARPS)
    return out
