"""Prefill attention: causal, the query tokens of many sequences in one launch (FlashAttention-2)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import ID_DTYPES, require
from ..paged_cache import PagedCache
from .tile import LOG2E, attend_tile, check_attention


class Tile(NamedTuple):
    """The rows that one program owns, and how it walks over their context."""

    block_m: int  # block_m // group query tokens, each with its whole group of heads
    block_n: int  # context tokens a step
    num_warps: int
    num_stages: int


# By bytes per element. 128 rows are two warpgroups of an H100, each with the accumulators of 64.
TILES = {2: Tile(128, 64, 8, 3), 4: Tile(32, 16, 4, 2)}


@triton.jit
def sequence_of(tile, query_start_loc_ptr, sequences, TOKENS: tl.constexpr):
    """The sequence that owns a tile: the tiles of sequence s begin at query_start_loc[s] // TOKENS + s.

    That gives each sequence as many tiles as it needs or one more, and rises with s. The owner is the last sequence
    that begins at `tile` or before. Counting finds it without a chain of dependent loads.
    """
    BLOCK: tl.constexpr = 256
    begun = 0
    for first in range(0, sequences, BLOCK):
        s = first + tl.arange(0, BLOCK)
        begin = tl.load(query_start_loc_ptr + s, mask=s < sequences, other=0).to(tl.int32) // TOKENS + s
        begun += tl.sum(((begin <= tile) & (s < sequences)).to(tl.int32), 0)
    return begun - 1


@triton.jit(
    do_not_specialize=["table_stride", "sequences"],
    do_not_specialize_on_alignment=["block_tables_ptr", "query_start_loc_ptr", "seq_lens_ptr"],
)
def prefill_kernel(
    out_ptr,  # [T, HEADS, D]
    q_ptr,  # [T, HEADS, D]
    keys_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    values_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    block_tables_ptr,  # [S, max_blocks], rows table_stride apart
    query_start_loc_ptr,  # [S + 1]
    seq_lens_ptr,  # [S]
    scale_log2,
    table_stride,
    sequences,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = softmax(q Kᵀ scale) V, where a query sees the tokens of its sequence up to its own.

    Grid: (tiles * KV_HEADS,), tiles = T // TOKENS + S, never fewer than the sequences need. A program owns TOKENS query
    tokens of one sequence with all query heads of one key/value head, token by token, as rows of one tile. A tile of a
    single head's queries would have the same height and span TOKENS * GROUP tokens: more of it above the diagonal, more
    of it empty at the end of a sequence, and K and V of a short chunk read once per head instead of once per group.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TOKENS: tl.constexpr = BLOCK_M // GROUP
    head = tl.program_id(0) % KV_HEADS
    # A sequence's last tiles have the most to do and start first.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // KV_HEADS
    sequence = sequence_of(tile, query_start_loc_ptr, sequences, TOKENS)
    query_start = tl.load(query_start_loc_ptr + sequence).to(tl.int32)
    queries = tl.load(query_start_loc_ptr + sequence + 1).to(tl.int32) - query_start
    first = (tile - query_start // TOKENS - sequence) * TOKENS
    if first >= queries:
        return
    length = tl.load(seq_lens_ptr + sequence).to(tl.int32)

    row = tl.arange(0, BLOCK_M)
    query = first + row // GROUP
    position = length - queries + query
    column = tl.arange(0, BLOCK_D)
    q_mask = ((row < TOKENS * GROUP) & (query < queries))[:, None] & (column < D)[None, :]
    q_row = (query_start + query).to(tl.int64) * HEADS + head * GROUP + row % GROUP
    offsets = q_row[:, None] * D + column[None, :]
    q = tl.load(q_ptr + offsets, mask=q_mask, other=0.0)

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    block_table_ptr = block_tables_ptr + sequence.to(tl.int64) * table_stride
    stop = length - queries + tl.minimum(first + TOKENS, queries)
    # All queries of the tile see the tokens that its first one sees: no mask up to there.
    whole = (length - queries + first + 1) // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        m, l, acc = attend_tile(
            q,
            m,
            l,
            acc,
            keys_ptr,
            values_ptr,
            block_table_ptr,
            start,
            stop,
            position[:, None],
            head,
            scale_log2,
            KV_HEADS,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            BLOCK_D,
            False,
        )
    for start in range(whole, stop, BLOCK_N):
        m, l, acc = attend_tile(
            q,
            m,
            l,
            acc,
            keys_ptr,
            values_ptr,
            block_table_ptr,
            start,
            stop,
            position[:, None],
            head,
            scale_log2,
            KV_HEADS,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            BLOCK_D,
            True,
        )
    tl.store(out_ptr + offsets, (acc / l[:, None]).to(out_ptr.dtype.element_ty), mask=q_mask)


def prefill_attention(
    q: Tensor,
    cache: PagedCache,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention of several query tokens per sequence, in one launch (FlashAttention-2, Dao, 2023).

    Takes contiguous tensors; D up to 128, Hq / Hkv up to 16, block_size 16, 32, 64, 128 or 256. Ids are
    int32 or int64. No bit depends on the rest of the batch or on how a sequence is cut into chunks.
    """
    check_attention(q, cache, block_tables, seq_lens, scale)
    sequences = block_tables.shape[0]
    require("query_start_loc", query_start_loc, ID_DTYPES, (sequences + 1,), like=q, rows=True)
    out = torch.empty_like(q)
    tokens, heads, head_dim = q.shape
    if tokens == 0 or sequences == 0:
        return out
    _, kv_heads, block_size, _ = cache.keys.shape
    tile = TILES[q.element_size()]
    tiles = tokens // (tile.block_m // (heads // kv_heads)) + sequences
    prefill_kernel[(tiles * kv_heads,)](
        out,
        q,
        cache.keys,
        cache.values,
        block_tables,
        query_start_loc,
        seq_lens,
        scale * LOG2E,
        block_tables.stride(0),
        sequences,
        heads,
        kv_heads,
        head_dim,
        block_size,
        tile.block_m,
        tile.block_n,
        max(16, triton.next_power_of_2(head_dim)),  # a dot takes no fewer than 16
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return out
