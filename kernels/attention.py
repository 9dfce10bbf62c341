"""What decode and prefill attention share: tokens found in their pages, one step of the online softmax, the checks."""

import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, ID_DTYPES, require
from .paged_cache import PagedCache

LOG2E = 1.4426950408889634  # exp(x) = exp2(x * LOG2E)
MAX_GROUP = 16
MAX_HEAD_DIM = 128

BLOCK_SIZES = (16, 32, 64, 128, 256)


@triton.jit
def page_rows(
    block_table_ptr, start, stop, head, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Where one head's tokens start to start + BLOCK_N - 1 lie in a cache seen as rows of head_dim elements.

    block_table_ptr: the sequence's page ids, of which none is read whose page begins at `stop` or later; `start` is a
    multiple of BLOCK_N below `stop`. -> [BLOCK_N] int64. The caller multiplies by head_dim: done here, before the
    reshape, Triton 3.6 would no longer know that the product is divisible by head_dim and load two bytes at a time.
    """
    if BLOCK_SIZE >= BLOCK_N:
        page = tl.load(block_table_ptr + start // BLOCK_SIZE).to(tl.int64)
        return (page * KV_HEADS + head) * BLOCK_SIZE + start % BLOCK_SIZE + tl.arange(0, BLOCK_N)
    else:
        index = start // BLOCK_SIZE + tl.arange(0, BLOCK_N // BLOCK_SIZE)
        page = tl.load(block_table_ptr + index, mask=index * BLOCK_SIZE < stop, other=0).to(tl.int64)
        rows = ((page * KV_HEADS + head) * BLOCK_SIZE)[:, None] + tl.arange(0, BLOCK_SIZE)[None, :]
        return tl.reshape(rows, (BLOCK_N,))


@triton.jit
def attend_tile(
    q,
    top,
    total,
    acc,
    key_cache_ptr,
    value_cache_ptr,
    block_table_ptr,
    start,
    stop,
    last_visible,
    head,
    scale_log2,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Online softmax (Milakov and Gimelshein, 2018; FlashAttention, Dao et al., 2022) over tokens start to start + N.

    q [M, BLOCK_D]; caches [num_blocks, KV_HEADS, BLOCK_SIZE, D]. With MASKED, tokens from `stop` on are not read, and a
    query sees the tokens up to last_visible, [M, 1] or one number for all; each query must see one of the first tile.
    Carried from tile to tile, float32: top [M], the highest score in units of log2; total [M], the sum of the weights
    exp2(score - top); acc [M, BLOCK_D], the sum of the values under these weights.
    """
    rows = page_rows(block_table_ptr, start, stop, head, KV_HEADS, BLOCK_SIZE, BLOCK_N)
    token = start + tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * D + column[None, :]
    if MASKED:
        # A slot that was never written may hold NaN, and 0 * NaN is NaN: it is not read.
        kept = (token < stop)[:, None] & (column < D)[None, :]
        k = tl.load(key_cache_ptr + offsets, mask=kept, other=0.0)
        v = tl.load(value_cache_ptr + offsets, mask=kept, other=0.0)
    elif BLOCK_D == D:
        k = tl.load(key_cache_ptr + offsets)
        v = tl.load(value_cache_ptr + offsets)
    else:
        k = tl.load(key_cache_ptr + offsets, mask=(column < D)[None, :], other=0.0)
        v = tl.load(value_cache_ptr + offsets, mask=(column < D)[None, :], other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    if MASKED:
        scores = tl.where(token[None, :] <= last_visible, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
    weights = tl.exp2(scores * scale_log2 - new_top[:, None])
    rescale = tl.exp2(top - new_top)
    total = total * rescale + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
    return new_top, total, acc


def check_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> None:
    """Raises ValueError for what the kernels cannot read, naming what is needed and what was given."""
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
