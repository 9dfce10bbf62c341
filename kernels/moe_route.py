"""Which experts a token goes to (`route`), and which tokens an expert gets (`sort_by_expert`), both on the device."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require

__all__ = ["ExpertSort", "route", "sort_by_expert"]


@triton.jit
def route_kernel(
    logits_ptr,
    weights_ptr,
    expert_ids_ptr,
    logits_stride,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """weight = softmax(logits)[expert] for the k largest logits, divided by their sum when RENORMALIZE.

    logits [T, E], weights [T, k], expert_ids [T, k] int64. Grid (T,): a program is one warp and owns one token.
    """
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    real = expert < NUM_EXPERTS
    x = tl.load(logits_ptr + token * logits_stride + expert, mask=real, other=float("-inf")).to(tl.float32)
    largest = tl.max(x, 0)
    total = tl.sum(tl.exp(x - largest), 0)

    # The same order as integers, which a warp reduces in one instruction; taken experts sink below even -inf.
    TAKEN: tl.constexpr = -(2**31)
    bits = x.to(tl.int32, bitcast=True)
    key = tl.where(real, bits ^ ((bits >> 31) & 0x7FFFFFFF), TAKEN)
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
    kept = place < TOP_K
    weight = tl.where(kept, tl.exp(value - largest) / total, 0.0)
    if RENORMALIZE:
        weight = weight / tl.sum(weight, 0)
    out = token * TOP_K + place
    tl.store(weights_ptr + out, weight.to(weights_ptr.dtype.element_ty), mask=kept)
    tl.store(expert_ids_ptr + out, ids.to(tl.int64), mask=kept)


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights, in one launch (Shazeer et al., 2017).

    router_logits [T, E] float32, float16 or bfloat16 -> (weights [T, k] in their dtype, expert_ids [T, k] int64), the
    likeliest expert first, of equal ones the lowest id. Softmax in float32 over all experts, top-k, weights divided
    by their sum when `renormalize`, rounded last. A logit may be -inf. Raises ValueError for another layout.
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


class ExpertSort(NamedTuple):
    """Rows of tokens in the order of their experts, and the tiles of block_m rows that cover them.

    A pair is one of the N = T k (token, expert) choices, numbered as expert_ids.flatten() is. Expert e owns the rows
    offsets[e] to offsets[e + 1], and row r is pair order[r]; within an expert pairs keep their order. No tile holds
    rows of two experts: those of expert e start at tile offsets[e] // block_m + e, which leaves room for every
    earlier expert whatever the counts are, and so is known without them.
    """

    offsets: Tensor  # [E + 1] int32
    order: Tensor  # [N] int32
    tile_experts: Tensor  # [N // block_m + E] int32, -1 for a tile without rows


@triton.jit
def sort_by_expert_kernel(
    expert_ids_ptr,
    offsets_ptr,
    order_ptr,
    tile_experts_ptr,
    num_pairs,
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """A counting sort: the offset of an expert is the number of pairs with a smaller id.

    expert_ids [N] int64, offsets [E + 1], order [N], tile_experts [N // BLOCK_M + E] int32. Grid (E,): a program owns
    one expert: its end offset, its rows of `order` and its tiles. Nothing is exchanged between programs.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    smaller = tl.zeros((BLOCK,), tl.int32)
    mine = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, num_pairs, BLOCK):
        ids = tl.load(expert_ids_ptr + begin + lane, mask=begin + lane < num_pairs, other=2**31)
        smaller += (ids < expert).to(tl.int32)
        mine += (ids == expert).to(tl.int32)
    start = tl.sum(smaller, 0)
    count = tl.sum(mine, 0)
    tl.store(offsets_ptr + expert + 1, start + count)
    if expert == 0:
        tl.store(offsets_ptr, 0)

    first = start // BLOCK_M + expert
    last = (start + count) // BLOCK_M + expert + 1
    for begin in range(first, last, BLOCK_TILES):
        tile = begin + tl.arange(0, BLOCK_TILES)
        owner = tl.where((tile - first) * BLOCK_M < count, expert, -1)
        tl.store(tile_experts_ptr + tile, owner, mask=tile < last)

    if count > 0:
        row = start
        for begin in range(0, num_pairs, BLOCK):
            pair = begin + lane
            ids = tl.load(expert_ids_ptr + pair, mask=pair < num_pairs, other=2**31)
            hit = (ids == expert).to(tl.int32)
            tl.store(order_ptr + row + tl.cumsum(hit, 0) - 1, pair, mask=hit > 0)
            row += tl.sum(hit, 0)


def sort_by_expert(expert_ids: Tensor, num_experts: int, block_m: int) -> ExpertSort:
    """Sorts the (token, expert) pairs by expert in one launch, without atomics and without the host.

    expert_ids [T, k] int64, contiguous, each in 0 to num_experts - 1 (not checked: the values stay on the device).
    Raises ValueError for another layout, or for 2^30 pairs and more.
    """
    require("expert_ids", expert_ids, torch.int64, ("T", "k"))
    pairs = expert_ids.numel()
    if pairs >= 2**30:
        raise ValueError(f"expert_ids must have fewer than 2^30 elements, got {pairs}")
    device = expert_ids.device
    sort = ExpertSort(
        torch.empty(num_experts + 1, dtype=torch.int32, device=device),
        torch.empty(pairs, dtype=torch.int32, device=device),
        torch.empty(pairs // block_m + num_experts, dtype=torch.int32, device=device),
    )
    sort_by_expert_kernel[(num_experts,)](
        expert_ids,
        sort.offsets,
        sort.order,
        sort.tile_experts,
        pairs,
        BLOCK_M=block_m,
        BLOCK=min(2048, max(128, triton.next_power_of_2(pairs))),
        BLOCK_TILES=32,
        num_warps=4,
    )
    return sort
