"""Decode attention: one query token per sequence, the context split over programs as in Flash-Decoding."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paged_cache import PagedCache
from .tile import LOG2E, MAX_GROUP, attend_tile, check_attention

# A context is cut into at most MAX_SPLITS splits of at least MIN_SPLIT tokens. Only the sequence's own length decides
# how, so no result depends on the batch or on the width of the block tables. With 4 key/value heads, 32 splits of one
# sequence occupy 128 of an H100's 132 multiprocessors. With 128 tokens a split writes (8 query heads, float32) less
# than a fifteenth of the keys and values that it reads (bfloat16).
MAX_SPLITS = 32
MIN_SPLIT = 128


class Tile(NamedTuple):
    """How one program walks over its split."""

    block_n: int  # tokens a step, a divisor of MIN_SPLIT
    num_warps: int
    num_stages: int


# By bytes per element. The pipeline needs five stages to hold two tiles each of K and V: it spends the others on block
# ids. Three such programs fit on a multiprocessor of an H100.
TILES = {2: Tile(64, 4, 5), 4: Tile(32, 4, 3)}


@triton.jit
def split_size(length, MIN_SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Tokens of every split of a context but the last: a multiple of BLOCK_N."""
    return tl.maximum(MIN_SPLIT, tl.cdiv(length, MAX_SPLITS * BLOCK_N) * BLOCK_N)


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["block_tables_ptr", "seq_lens_ptr"])
def decode_split_kernel(
    partials_ptr,  # [S, HEADS, splits, D] float32, acc of each split
    stats_ptr,  # [S, HEADS, splits, 2] float32, m and l of each split
    q_ptr,  # [S, HEADS, D]
    keys_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    values_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    block_tables_ptr,  # [S, max_blocks], rows table_stride apart
    seq_lens_ptr,  # [S]
    scale_log2,
    table_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """m, l and acc of softmax(q Kᵀ scale) V over one split of a context.

    Grid: (splits, KV_HEADS, S). A program owns one split of one sequence for all query heads of one key/value head,
    which are the first rows of its tile, so K and V are read once. Programs beyond the context return at once.
    """
    split, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(0)
    length = tl.load(seq_lens_ptr + sequence).to(tl.int32)
    size = split_size(length, MIN_SPLIT, MAX_SPLITS, BLOCK_N)
    first = split * size
    if first >= length:
        return
    stop = tl.minimum(first + size, length)

    GROUP: tl.constexpr = HEADS // KV_HEADS
    member = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    q_mask = (member < GROUP)[:, None] & (column < D)[None, :]
    first_head = sequence * HEADS + head * GROUP
    q = tl.load(q_ptr + first_head * D + member[:, None] * D + column[None, :], mask=q_mask, other=0.0)

    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    block_table_ptr = block_tables_ptr + sequence * table_stride
    for start in range(first, stop, BLOCK_N):
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
            stop - 1,
            head,
            scale_log2,
            KV_HEADS,
            D,
            BLOCK_SIZE,
            BLOCK_N,
            BLOCK_D,
            True,
        )

    row = member * splits
    first_row = first_head * splits + split
    tl.store(partials_ptr + first_row * D + row[:, None] * D + column[None, :], acc, mask=q_mask)
    tl.store(stats_ptr + first_row * 2 + row * 2, m, mask=member < GROUP)
    tl.store(stats_ptr + first_row * 2 + row * 2 + 1, l, mask=member < GROUP)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["seq_lens_ptr"])
def decode_combine_kernel(
    out_ptr,  # [S, HEADS, D]
    partials_ptr,  # [S, HEADS, splits, D] float32
    stats_ptr,  # [S, HEADS, splits, 2] float32
    seq_lens_ptr,  # [S]
    splits,
    D: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = sum_i w_i acc_i / sum_i w_i l_i over the splits i of a context, w_i = exp2(m_i - max m); 0 for length 0.

    The sums always run over MAX_SPLITS lanes, so their order does not depend on `splits`.
    Grid: (HEADS, S). A program owns one query head of one sequence.
    """
    sequence = tl.program_id(1).to(tl.int64)
    head = sequence * tl.num_programs(0) + tl.program_id(0)
    length = tl.load(seq_lens_ptr + sequence).to(tl.int32)
    used = tl.cdiv(length, split_size(length, MIN_SPLIT, MAX_SPLITS, BLOCK_N))
    column = tl.arange(0, BLOCK_D)
    if used == 0:
        tl.store(out_ptr + head * D + column, tl.zeros((BLOCK_D,), out_ptr.dtype.element_ty), mask=column < D)
        return

    split = tl.arange(0, MAX_SPLITS)
    split_mask = split < used
    row = head * splits + split
    m = tl.load(stats_ptr + row * 2, mask=split_mask, other=float("-inf"))
    l = tl.load(stats_ptr + row * 2 + 1, mask=split_mask, other=0.0)
    acc_mask = split_mask[:, None] & (column < D)[None, :]
    acc = tl.load(partials_ptr + row[:, None] * D + column[None, :], mask=acc_mask, other=0.0)
    weight = tl.exp2(m - tl.max(m, 0))
    out = tl.sum(weight[:, None] * acc, 0) / tl.sum(weight * l, 0)
    tl.store(out_ptr + head * D + column, out.to(out_ptr.dtype.element_ty), mask=column < D)


def decode_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> Tensor:
    """Attention of one query token per sequence, in two launches (Flash-Decoding, Dao et al., 2023).

    Takes contiguous tensors; D up to 128, Hq / Hkv up to 16, block_size 16, 32, 64, 128 or 256. Ids are
    int32 or int64. A length is at most max_blocks * block_size.
    """
    check_attention(q, cache, block_tables, seq_lens, scale)
    sequences, heads, head_dim = q.shape
    if sequences != block_tables.shape[0]:
        raise ValueError(f"q must have a row per block table, got {sequences} rows and {block_tables.shape[0]} tables")
    out = torch.empty_like(q)
    if sequences == 0:
        return out
    _, kv_heads, block_size, _ = cache.keys.shape
    tile = TILES[q.element_size()]
    splits = min(MAX_SPLITS, max(1, triton.cdiv(block_tables.shape[1] * block_size, MIN_SPLIT)))
    block_d = max(16, triton.next_power_of_2(head_dim))  # a dot takes no fewer than 16
    partials = torch.empty((sequences, heads, splits, head_dim), dtype=torch.float32, device=q.device)
    stats = torch.empty((sequences, heads, splits, 2), dtype=torch.float32, device=q.device)
    decode_split_kernel[splits, kv_heads, sequences](
        partials,
        stats,
        q,
        cache.keys,
        cache.values,
        block_tables,
        seq_lens,
        scale * LOG2E,
        block_tables.stride(0),
        heads,
        kv_heads,
        head_dim,
        block_size,
        MIN_SPLIT,
        MAX_SPLITS,
        MAX_GROUP,
        tile.block_n,
        block_d,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    decode_combine_kernel[heads, sequences](
        out, partials, stats, seq_lens, splits, head_dim, MIN_SPLIT, MAX_SPLITS, tile.block_n, block_d, num_warps=4
    )
    return out
