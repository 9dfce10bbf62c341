"""SwiGLU of the dense MLP; the experts have it in the epilogue of their own matmul."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require

BLOCK, NUM_WARPS = 1024, 4  # a 128-bit load of bfloat16 from either half for each thread


@triton.jit
def swiglu_kernel(out_ptr, gate_up_ptr, I: tl.constexpr, BLOCK: tl.constexpr):
    """out = silu(gate) * up, silu(x) = x / (1 + exp(-x)) rounded before the product, as PyTorch's is.

    out: [rows, I]; gate_up: [rows, 2 I], the gate first. Grid: (rows, ceil(I / BLOCK)); one program owns BLOCK columns
    of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < I
    gate = tl.load(gate_up_ptr + row * (2 * I) + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * I) + I + column, mask=mask, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + row * I + column, (silu * up).to(out_ptr.dtype.element_ty), mask=mask)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020). gate_up [T, 2 I], contiguous, float32, float16 or bfloat16 -> [T, I].

    Raises ValueError for other layouts or dtypes.
    """
    require("gate_up", gate_up, DTYPES, ("T", "2 I"))
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have an even number of columns, got {list(gate_up.shape)}")
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        swiglu_kernel[rows, triton.cdiv(size, BLOCK)](out, gate_up, size, BLOCK, num_warps=NUM_WARPS)
    return out
