"""Routing: the experts of each token and their weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import DTYPES, require


@triton.jit
def route_kernel(
    logits_ptr,  # [T, E], rows logits_stride apart
    weights_ptr,  # [T, k]
    expert_ids_ptr,  # [T, k] int64
    logits_stride,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """weight = softmax(logits)[expert] for the k largest logits, divided by their sum with RENORMALIZE.

    Grid: (T,). A program is one warp and owns one token.
    """
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    expert_mask = expert < NUM_EXPERTS
    x = tl.load(logits_ptr + token * logits_stride + expert, mask=expert_mask, other=float("-inf")).to(tl.float32)
    m = tl.max(x, 0)
    l = tl.sum(tl.exp(x - m), 0)

    # Integers in the order of the floats, which a warp reduces in one instruction. A taken expert sinks below -inf.
    TAKEN: tl.constexpr = -(2**31)
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(expert_mask, bits ^ ((bits >> 31) & 0x7FFFFFFF), TAKEN)
    place = tl.arange(0, BLOCK_K)
    keys = tl.full((BLOCK_K,), TAKEN, tl.int32)
    ids = tl.zeros((BLOCK_K,), tl.int32)
    for j in range(TOP_K):
        best = tl.max(key, 0)
        chosen = tl.min(tl.where(key == best, expert, BLOCK_E), 0)
        key = tl.where(expert == chosen, TAKEN, key)
        keys = tl.where(place == j, best, keys)
        ids = tl.where(place == j, chosen, ids)

    value = (keys ^ ((keys >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    place_mask = place < TOP_K
    weight = tl.where(place_mask, tl.exp(value - m) / l, 0.0)
    if RENORMALIZE:
        weight = weight / tl.sum(weight, 0)
    out = token * TOP_K + place
    tl.store(weights_ptr + out, weight.to(weights_ptr.dtype.element_ty), mask=place_mask)
    tl.store(expert_ids_ptr + out, ids.to(tl.int64), mask=place_mask)


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest of the softmax and their experts, in one launch; of equal logits the lowest id first.

    Rows of router_logits may lie apart. Up to 512 experts and 16 per token. A logit may be -inf.
    """
    require("router_logits", router_logits, DTYPES, ("T", "E"), rows=True)
    tokens, experts = router_logits.shape
    if not 1 <= top_k <= min(experts, 16) or experts > 512:
        raise ValueError(f"route needs 1 <= top_k <= min(experts, 16) and experts <= 512, got {top_k=}, {experts=}")
    weights = torch.empty((tokens, top_k), dtype=router_logits.dtype, device=router_logits.device)
    expert_ids = torch.empty((tokens, top_k), dtype=torch.int64, device=router_logits.device)
    if tokens:
        route_kernel[(tokens,)](
            router_logits,
            weights,
            expert_ids,
            router_logits.stride(0),
            NUM_EXPERTS=experts,
            TOP_K=top_k,
            RENORMALIZE=renormalize,
            BLOCK_E=triton.next_power_of_2(experts),
            BLOCK_K=triton.next_power_of_2(top_k),
            num_warps=1,
        )
    return weights, expert_ids
