"""Sorting (token, expert) pairs by expert on the device: a counting sort without atomics."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import require


class ExpertSort(NamedTuple):
    """Pairs in the order of their experts, and the tiles of block_m rows that cover them.

    A pair is one of the N = T k (token, expert) choices, numbered as in expert_ids.flatten(). Expert e owns the rows
    offsets[e] to offsets[e + 1], and row r is pair order[r]. Within an expert, pairs keep their order. No tile holds
    rows of two experts: the tiles of expert e start at offsets[e] // block_m + e, which leaves room for all earlier
    experts whatever their counts.
    """

    offsets: Tensor  # [E + 1] int32
    order: Tensor  # [N] int32
    tile_experts: Tensor  # [N // block_m + E] int32, -1 for a tile without rows


@triton.jit
def sort_by_expert_kernel(
    expert_ids_ptr,  # [N] int64
    offsets_ptr,  # [E + 1] int32
    order_ptr,  # [N] int32
    tile_experts_ptr,  # [N // BLOCK_M + E] int32
    num_pairs,  # N
    BLOCK_M: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """The offset of an expert is the number of pairs with a smaller id.

    Grid: (E,). A program owns one expert: its end offset, its rows of `order` and its tiles. Programs exchange nothing.
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
            pair_mask = (ids == expert).to(tl.int32)
            tl.store(order_ptr + row + tl.cumsum(pair_mask, 0) - 1, pair, mask=pair_mask > 0)
            row += tl.sum(pair_mask, 0)


def sort_by_expert(expert_ids: Tensor, num_experts: int, block_m: int) -> ExpertSort:
    """Sorts the (token, expert) pairs by expert in one launch; the host waits for nothing.

    expert_ids [T, k] int64, contiguous, each 0 to num_experts - 1. Raises ValueError for another layout, or for 2^30
    pairs and more.
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
