"""What decode and prefill attention share: one step of the online softmax over a paged cache, and the checks."""

import triton
import triton.language as tl
from torch import Tensor

from ..checks import DTYPES, ID_DTYPES, require
from ..paged_cache import PagedCache

LOG2E = 1.4426950408889634  # exp(x) = exp2(x * LOG2E)
MAX_GROUP = 16
MAX_HEAD_DIM = 128
BLOCK_SIZES = (16, 32, 64, 128, 256)


@triton.jit
def cache_rows(
    block_table_ptr,  # [max_blocks] of one sequence
    start,
    stop,
    head,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Rows of a head's tokens start to start + BLOCK_N - 1 in a cache seen as a matrix [rows, D] -> [BLOCK_N] int64.

    `start` is a multiple of BLOCK_N below `stop`. Entries of the table for tokens from `stop` on are not read. The
    caller multiplies by D: Triton 3.6 forgets across the reshape that the product is divisible by D and then loads two
    bytes at a time.
    """
    if BLOCK_SIZE >= BLOCK_N:
        block = tl.load(block_table_ptr + start // BLOCK_SIZE).to(tl.int64)
        return (block * KV_HEADS + head) * BLOCK_SIZE + start % BLOCK_SIZE + tl.arange(0, BLOCK_N)
    else:
        index = start // BLOCK_SIZE + tl.arange(0, BLOCK_N // BLOCK_SIZE)
        block = tl.load(block_table_ptr + index, mask=index * BLOCK_SIZE < stop, other=0).to(tl.int64)
        rows = ((block * KV_HEADS + head) * BLOCK_SIZE)[:, None] + tl.arange(0, BLOCK_SIZE)[None, :]
        return tl.reshape(rows, (BLOCK_N,))


@triton.jit
def attend_tile(
    q,  # [M, BLOCK_D]
    m,  # [M] float32, largest score so far times log2(e)
    l,  # [M] float32, sum of exp2(score - m) so far
    acc,  # [M, BLOCK_D] float32, sum of exp2(score - m) v so far
    keys_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    values_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    block_table_ptr,  # [max_blocks] of one sequence
    start,
    stop,
    last_visible,  # [M, 1], or one number for all queries
    head,
    scale_log2,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Updates m, l and acc with tokens start to start + BLOCK_N - 1 of one key/value head.

    Online softmax (Milakov and Gimelshein, 2018) as in FlashAttention (Dao et al., 2022). With MASKED, tokens from
    `stop` on are not read and a query sees tokens up to `last_visible`. Each query must see a token of the first tile.
    """
    rows = cache_rows(block_table_ptr, start, stop, head, KV_HEADS, BLOCK_SIZE, BLOCK_N)
    token = start + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * D + column[None, :]
    if MASKED:
        # A slot that was never written may hold NaN, and 0 * NaN is NaN: it is not read.
        kv_mask = (token < stop)[:, None] & (column < D)[None, :]
        k = tl.load(keys_ptr + offsets, mask=kv_mask, other=0.0)
        v = tl.load(values_ptr + offsets, mask=kv_mask, other=0.0)
    elif BLOCK_D == D:
        k = tl.load(keys_ptr + offsets)
        v = tl.load(values_ptr + offsets)
    else:
        k = tl.load(keys_ptr + offsets, mask=(column < D)[None, :], other=0.0)
        v = tl.load(values_ptr + offsets, mask=(column < D)[None, :], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(token[None, :] <= last_visible, scores, float("-inf"))
    new_m = tl.maximum(m, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - new_m[:, None])
    rescale = tl.exp2(m - new_m)
    l = l * rescale + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return new_m, l, acc


def check_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> None:
    """Raises ValueError for arguments that the kernels do not support."""
    require("q", q, DTYPES, ("T", "Hq", "D"))
    require("cache.keys", cache.keys, q.dtype, ("num_blocks", "Hkv", "block_size", q.shape[2]), like=q)
    require("cache.values", cache.values, q.dtype, cache.keys.shape, like=q)
    heads, head_dim = q.shape[1:]
    _, kv_heads, block_size, _ = cache.keys.shape
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be 1 to {MAX_HEAD_DIM}, got {head_dim}")
    if kv_heads == 0 or heads % kv_heads or not 1 <= heads // kv_heads <= MAX_GROUP:
        raise ValueError(f"1 to {MAX_GROUP} query heads must share a key/value head, got {heads} and {kv_heads} heads")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}")
    require("block_tables", block_tables, ID_DTYPES, ("S", "max_blocks"), like=q, rows=True)
    require("seq_lens", seq_lens, ID_DTYPES, block_tables.shape[:1], like=q, rows=True)
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
