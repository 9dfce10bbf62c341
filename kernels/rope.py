"""Rotary position embedding, alone and as what stands between the qkv projection and attention, in one launch."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require
from .paged_cache import PagedCache

MAX_HEAD_DIM = 512


class Tile(NamedTuple):
    """What one program owns of one token."""

    heads: int
    half: int  # columns of each half of a head, a power of two
    num_warps: int

    @classmethod
    def of(cls, head_dim: int) -> "Tile":
        """512 elements of each half, one 128-bit load of bfloat16 for each thread of two warps.

        So a token's heads spread over several programs (40 heads of 128 over 5), which is what a single token needs,
        and no sum over a head leaves its warp.
        """
        half = triton.next_power_of_2(head_dim // 2)
        return cls(max(1, 512 // half), half, 2)


# Rows of one tensor of ids, positions and slots begin at any multiple of 8 bytes: not worth a second compilation.
@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def rope_kernel(
    out_ptr,
    x_ptr,
    positions_ptr,
    table_ptr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """(first, second) -> (first cos - second sin, second cos + first sin), the two halves of each head.

    out, x: [T, HEADS, D]; positions: [T]; table: [max_positions, D] float32, cosines then sines.
    Grid: (T, blocks of heads). A program owns TILE_HEADS heads of one token.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    column = tl.arange(0, TILE_HALF)
    in_half = column < D // 2
    position = tl.load(positions_ptr + token).to(tl.int64)
    mask = (head < HEADS)[:, None] & in_half[None, :]
    # Spread over the heads before the load, so that each thread reads the columns that it turns.
    table = tl.broadcast_to(table_ptr + position * D + column[None, :], (TILE_HEADS, TILE_HALF))
    cos = tl.load(table, mask=mask, other=0.0)
    sin = tl.load(table + D // 2, mask=mask, other=0.0)
    offsets = token * (HEADS * D) + head[:, None] * D + column[None, :]
    first = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + offsets + D // 2, mask=mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + offsets, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(out_ptr + offsets + D // 2, (second * cos + first * sin).to(dtype), mask=mask)


def rope(x: Tensor, positions: Tensor, rope_table: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout (Su et al., 2021), computed in float32.

    x [T, heads, D] contiguous, float32, float16 or bfloat16, D even; positions [T] int64, each below max_positions;
    rope_table [max_positions, D] float32 = cosines then sines, D/2 each -> [T, heads, D]. Raises ValueError for other
    layouts or dtypes.
    """
    require("x", x, DTYPES, ("T", "heads", "D"))
    tokens, heads, head_dim = x.shape
    _check_rotation(x, head_dim, positions, rope_table)
    out = torch.empty_like(x)
    tile = Tile.of(head_dim)
    if x.numel():
        rope_kernel[(tokens, triton.cdiv(heads, tile.heads))](
            out, x, positions, rope_table, heads, head_dim, tile.heads, tile.half, num_warps=tile.num_warps
        )
    return out


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def qk_norm_rope_cache_kernel(
    q_ptr,
    qkv_ptr,
    q_weight_ptr,
    k_weight_ptr,
    eps,
    positions_ptr,
    table_ptr,
    slots_ptr,
    key_cache_ptr,
    value_cache_ptr,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """q and k: rope(round(x / sqrt(mean(x²) + eps)) * weight) per head; k and v then go to the token's slot.

    qkv: [T, (Q_HEADS + 2 KV_HEADS) D]; q: [T, Q_HEADS, D]; q_weight, k_weight: [D]; positions, slots: [T];
    table: [max_positions, D] float32, cosines then sines; caches: [num_blocks, KV_HEADS, BLOCK_SIZE, D].
    Grid: (T, blocks of heads). A program owns TILE_HEADS consecutive heads of one token's row, whichever of q, k and v
    they belong to: every head is loaded, normalised and turned alike, and the masks of the stores tell them apart.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    column = tl.arange(0, TILE_HALF)
    in_half = column < D // 2
    position = tl.load(positions_ptr + token).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    mask = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & in_half[None, :]
    is_q = (head < Q_HEADS)[:, None] & mask
    is_k = (head >= Q_HEADS)[:, None] & (head < Q_HEADS + KV_HEADS)[:, None] & mask
    is_v = (head >= Q_HEADS + KV_HEADS)[:, None] & mask

    in_head = head[:, None] * D + column[None, :]
    row = qkv_ptr + token * ((Q_HEADS + 2 * KV_HEADS) * D)
    first_in = tl.load(row + in_head, mask=mask, other=0.0)
    second_in = tl.load(row + in_head + D // 2, mask=mask, other=0.0)
    # Spread over the heads before the load, so that each thread reads the columns that it works on.
    columns = tl.broadcast_to(column[None, :], (TILE_HEADS, TILE_HALF))
    cos = tl.load(table_ptr + position * D + columns, mask=mask, other=0.0)
    sin = tl.load(table_ptr + position * D + D // 2 + columns, mask=mask, other=0.0)
    first_weight = tl.load(k_weight_ptr + columns, mask=is_k, other=0.0)
    first_weight = tl.load(q_weight_ptr + columns, mask=is_q, other=first_weight).to(tl.float32)
    second_weight = tl.load(k_weight_ptr + D // 2 + columns, mask=is_k, other=0.0)
    second_weight = tl.load(q_weight_ptr + D // 2 + columns, mask=is_q, other=second_weight).to(tl.float32)

    dtype = qkv_ptr.dtype.element_ty
    first, second = first_in.to(tl.float32), second_in.to(tl.float32)
    scale = tl.rsqrt(tl.sum(first * first + second * second, 1) / D + eps)[:, None]
    first = ((first * scale).to(dtype).to(tl.float32) * first_weight).to(dtype).to(tl.float32)
    second = ((second * scale).to(dtype).to(tl.float32) * second_weight).to(dtype).to(tl.float32)
    first_out = (first * cos - second * sin).to(dtype)
    second_out = (second * cos + first * sin).to(dtype)

    q_row = q_ptr + token * (Q_HEADS * D)
    tl.store(q_row + in_head, first_out, mask=is_q)
    tl.store(q_row + in_head + D // 2, second_out, mask=is_q)
    if slot >= 0:
        page = (slot // BLOCK_SIZE) * (KV_HEADS * BLOCK_SIZE * D) + (slot % BLOCK_SIZE) * D
        key = key_cache_ptr + page + (head - Q_HEADS)[:, None] * (BLOCK_SIZE * D) + column[None, :]
        tl.store(key, first_out, mask=is_k)
        tl.store(key + D // 2, second_out, mask=is_k)
        value = value_cache_ptr + page + (head - Q_HEADS - KV_HEADS)[:, None] * (BLOCK_SIZE * D) + column[None, :]
        tl.store(value, first_in, mask=is_v)
        tl.store(value + D // 2, second_in, mask=is_v)


def qk_norm_rope_cache(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    rope_table: Tensor,
    slot_mapping: Tensor,
    cache: PagedCache,
) -> Tensor:
    """Per-head RMSNorm of q and k, RoPE on both, K and V written to their slots; V is untouched.

    qkv [T, (Hq + 2 Hkv) D] contiguous, from the fused projection, float32, float16 or bfloat16, D even; q_weight and
    k_weight [D] and the caches [num_blocks, Hkv, block_size, D] of the same dtype; positions and slot_mapping [T]
    int64, a slot of -1 writes nothing, others must be distinct; rope_table as in `rope` -> q [T, Hq, D]. Raises
    ValueError for other layouts or dtypes.
    """
    require("qkv", qkv, DTYPES, ("T", "(Hq + 2 Hkv) D"))
    require("cache.keys", cache.keys, qkv.dtype, ("num_blocks", "Hkv", "block_size", "D"), like=qkv)
    require("cache.values", cache.values, qkv.dtype, cache.keys.shape, like=qkv)
    _, kv_heads, block_size, head_dim = cache.keys.shape
    require("q_weight", q_weight, qkv.dtype, (head_dim,), like=qkv)
    require("k_weight", k_weight, qkv.dtype, (head_dim,), like=qkv)
    tokens, columns = qkv.shape
    _check_rotation(qkv, head_dim, positions, rope_table)
    require("slot_mapping", slot_mapping, torch.int64, (tokens,), like=qkv)
    heads = columns // head_dim
    q_heads = heads - 2 * kv_heads
    if columns % head_dim or q_heads < 1:
        raise ValueError(f"qkv must be [T, (Hq + 2 * {kv_heads}) * {head_dim}], got {list(qkv.shape)}")
    q = torch.empty((tokens, q_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    tile = Tile.of(head_dim)
    if tokens:
        qk_norm_rope_cache_kernel[(tokens, triton.cdiv(heads, tile.heads))](
            q,
            qkv,
            q_weight,
            k_weight,
            eps,
            positions,
            rope_table,
            slot_mapping,
            cache.keys,
            cache.values,
            q_heads,
            kv_heads,
            head_dim,
            block_size,
            tile.heads,
            tile.half,
            num_warps=tile.num_warps,
        )
    return q


def _check_rotation(x: Tensor, head_dim: int, positions: Tensor, rope_table: Tensor) -> None:
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be even, 2 to {MAX_HEAD_DIM}, got {head_dim}")
    require("positions", positions, torch.int64, x.shape[:1], like=x)
    require("rope_table", rope_table, torch.float32, ("max_positions", head_dim), like=x)
