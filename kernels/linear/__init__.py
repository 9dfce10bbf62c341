"""Linear layers, alone or with the residual add and the RMSNorm before them in the same launch.

Up to eight tokens take the time of reading the weight: 21 MB, 6.3 us on an H100, for q, k and v of Qwen3-30B-A3B. A
launch of its own for add and norm would cost 1.3 us and two trips to memory. Here every program computes the norm from
rows that lie in the L2 cache, 12 KB a token, and one program writes it out.

One token: linear/vector.py. Two to eight: linear/matrix.py. More: torch's matmul, and the norm in its own launch. The
norm is also a launch of its own for two tokens and more into a vocabulary, where thousands of programs would read the
rows again: 150 MB for eight tokens, against 3 us.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..checks import DTYPES, require
from ..rms_norm import MAX_HIDDEN, add_rms_norm, rms_norm
from ..weights import Dense, Weight
from . import dense
from .matrix import MAX_FUSED_OUTPUTS, MAX_TOKENS
from .norm import Norm


def _kernels(weight: Weight) -> ModuleType:
    """The module with `check` and `project` for a format of weights: another format needs one more case."""
    if isinstance(weight, Dense):
        return dense
    raise TypeError(f"linear has no kernels for weights of type {type(weight).__name__}")


def _check(x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    require("x", x, DTYPES, ("T", "H"))
    _kernels(weight).check(x, weight)
    if bias is not None:
        require("bias", bias, x.dtype, weight.shape[:1], like=x)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, in one launch.

    Takes contiguous tensors. Loads are wide if H is divisible by 8, otherwise narrow and slow.
    """
    _check(x, weight, bias)
    return _kernels(weight).project(x, weight, bias)


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The projection of the norm of residual + x, this sum, and the norm.

    Takes contiguous tensors, H up to 8,192. One launch for one token, and for up to MAX_TOKENS tokens if N is at most
    MAX_FUSED_OUTPUTS. Otherwise `rms_norm` or `add_rms_norm`, which writes the sum over the residual, then `linear`.
    """
    _check(x, weight, bias)
    if x.shape[1] > MAX_HIDDEN:
        raise ValueError(f"x must have at most {MAX_HIDDEN} columns, got {list(x.shape)}")
    require("norm_weight", norm_weight, x.dtype, x.shape[1:], like=x)
    if residual is not None:
        require("residual", residual, x.dtype, x.shape, like=x)
    tokens, outputs = x.shape[0], weight.shape[0]
    if tokens == 1 or (0 < tokens <= MAX_TOKENS and outputs <= MAX_FUSED_OUTPUTS):
        # A new tensor for the sum: other programs may still read the residual when the first one writes it.
        total, normed = None if residual is None else torch.empty_like(x), torch.empty_like(x)
        out = _kernels(weight).project(x, weight, bias, Norm(residual, norm_weight, total, normed, eps))
        return out, x if total is None else total, normed
    if residual is None:
        normed, total = rms_norm(x, norm_weight, eps), x
    else:
        normed, total = add_rms_norm(x, residual, norm_weight, eps)
    return _kernels(weight).project(normed, weight, bias), total, normed
