"""The residual add and the RMSNorm that a projection computes before it multiplies."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Norm(NamedTuple):
    """Arguments of a fused norm in the order of the kernels' parameters; all None: no norm."""

    residual: Tensor | None = None  # [T, K]; None: x is the sum
    weight: Tensor | None = None  # [K]
    total: Tensor | None = None  # [T, K], written: residual + x; None without a residual
    normed: Tensor | None = None  # [T, K], written
    eps: float = 0.0


@triton.jit
def load_total(x_ptr, residual_ptr, offsets, mask):
    """x, or residual + x rounded to their dtype, in float32."""
    total = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)
    return total


@triton.jit
def normalize(total, scale, norm_weight, dtype: tl.constexpr):
    """round(round(total * scale) * norm_weight): normalized, rounded, then times weight."""
    return ((total * scale).to(dtype).to(tl.float32) * norm_weight.to(tl.float32)).to(dtype)
