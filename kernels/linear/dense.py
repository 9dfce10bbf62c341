"""Projections by dense weights: the kernel for a number of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import require
from ..weights import Dense
from . import matrix, vector
from .norm import Norm


def check(x: Tensor, weight: Dense) -> None:
    """Raises ValueError unless these are weights for x [T, K]."""
    require("weight", weight.data, x.dtype, ("N", x.shape[1]), like=x)
    if 0 in weight.shape:
        raise ValueError(f"weight must have rows and columns, got {list(weight.shape)}")


def project(x: Tensor, weight: Dense, bias: Tensor | None, norm: Norm | None = None) -> Tensor:
    """x Wᵀ + b, or the same of a norm, which needs one to MAX_TOKENS tokens."""
    tokens, columns = x.shape
    if not 0 < tokens <= matrix.MAX_TOKENS:
        return F.linear(x, weight.data, bias)
    out = torch.empty((tokens, weight.shape[0]), dtype=x.dtype, device=x.device)
    kernel = vector if vector.takes(tokens, columns, x.dtype) else matrix
    kernel.launch(out, x, weight.data, bias, norm or Norm())
    return out
