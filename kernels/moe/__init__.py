"""Mixture of experts: the experts' MLPs (`moe_experts`); the router is in moe/route.py."""

import torch
from torch import Tensor

from ..checks import DTYPES, require
from ..weights import Dense, Weight
from .grouped import moe_grouped
from .small import MAX_TOKENS, moe_small

MAX_EXPERTS, MAX_TOP_K = 512, 16


def moe_experts(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """Up to 16 tokens in two launches, more in four. The bits are the same every time.

    Up to 512 experts and 16 per token. Rows of x and of the weights may lie apart, by a multiple of 8 elements for full
    speed.
    """
    # Another format of weights needs one more case here.
    if isinstance(gate_up, Dense) and isinstance(down, Dense):
        return _dense(x, gate_up.data, down.data, weights, expert_ids)
    raise TypeError(f"moe_experts has no kernels for weights {type(gate_up).__name__} and {type(down).__name__}")


def _dense(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    require("x", x, DTYPES, ("T", "H"), rows=True)
    tokens, H = x.shape
    require("down", down, x.dtype, ("E", H, "I"), like=x, rows=True)
    experts, _, I = down.shape
    require("gate_up", gate_up, x.dtype, (experts, 2 * I, H), like=x, rows=True)
    require("expert_ids", expert_ids, torch.int64, (tokens, "k"), like=x)
    require("weights", weights, x.dtype, expert_ids.shape, like=x)
    top_k = expert_ids.shape[1]
    if not 1 <= top_k <= MAX_TOP_K or not 1 <= experts <= MAX_EXPERTS:
        raise ValueError(
            f"moe_experts needs 1 to {MAX_TOP_K} experts per token of 1 to {MAX_EXPERTS}, got {top_k} of {experts}"
        )
    if tokens == 0:
        return torch.empty_like(x)
    small = tokens <= MAX_TOKENS
    return (moe_small if small else moe_grouped)(x, gate_up, down, weights, expert_ids)
