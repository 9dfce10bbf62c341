"""Rotary position embedding, alone or fused with q/k norm and the cache write, the steps from qkv to attention."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require
from .paged_cache import PagedCache

MAX_HEAD_DIM = 512


class Tile(NamedTuple):
    """The part of a token that one program owns."""

    heads: int
    half: int  # columns of each half of a head, a power of two
    num_warps: int

    @classmethod
    def for_head_dim(cls, head_dim: int) -> "Tile":
        """512 elements of each half, one 128-bit load of bfloat16 for each thread of two warps.

        The heads of a token spread over several programs (40 heads of 128 over 5), which a single token needs to be
        fast, and no sum over a head leaves its warp.
        """
        half = triton.next_power_of_2(head_dim // 2)
        return cls(max(1, 512 // half), half, 2)


# Positions and slots are rows of one tensor of ids, at any multiple of 8 bytes: not worth a second compilation.
@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def rope_kernel(
    out_ptr,  # [T, HEADS, D]
    x_ptr,  # [T, HEADS, D]
    positions_ptr,  # [T]
    table_ptr,  # [max_positions, D] float32, cosines then sines
    HEADS: tl.constexpr,
    D: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """(first, second) -> (first cos - second sin, second cos + first sin), the two halves of each head.

    Grid: (T, HEADS / TILE_HEADS). A program owns TILE_HEADS heads of one token.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    column = tl.arange(0, TILE_HALF)
    half_mask = column < D // 2
    position = tl.load(positions_ptr + token).to(tl.int64)
    head_mask = (head < HEADS)[:, None] & half_mask[None, :]
    # Broadcast over the heads before the load, so that each thread reads the columns that it rotates.
    table = tl.broadcast_to(table_ptr + position * D + column[None, :], (TILE_HEADS, TILE_HALF))
    cos = tl.load(table, mask=head_mask, other=0.0)
    sin = tl.load(table + D // 2, mask=head_mask, other=0.0)
    offsets = token * (HEADS * D) + head[:, None] * D + column[None, :]
    first = tl.load(x_ptr + offsets, mask=head_mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + offsets + D // 2, mask=head_mask, other=0.0).to(tl.float32)
    dtype = out_ptr.dtype.element_ty
    tl.store(out_ptr + offsets, (first * cos - second * sin).to(dtype), mask=head_mask)
    tl.store(out_ptr + offsets + D // 2, (second * cos + first * sin).to(dtype), mask=head_mask)


def rope(x: Tensor, positions: Tensor, rope_table: Tensor) -> Tensor:
    """Rotary position embedding, in one launch. Takes contiguous tensors, D even and up to 512."""
    require("x", x, DTYPES, ("T", "heads", "D"))
    tokens, heads, head_dim = x.shape
    _check_rotation(x, head_dim, positions, rope_table)
    out = torch.empty_like(x)
    tile = Tile.for_head_dim(head_dim)
    if x.numel():
        rope_kernel[(tokens, triton.cdiv(heads, tile.heads))](
            out, x, positions, rope_table, heads, head_dim, tile.heads, tile.half, num_warps=tile.num_warps
        )
    return out


@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def qk_norm_rope_cache_kernel(
    q_ptr,  # [T, Q_HEADS, D]
    qkv_ptr,  # [T, (Q_HEADS + 2 KV_HEADS) D]
    q_weight_ptr,  # [D]
    k_weight_ptr,  # [D]
    eps,
    positions_ptr,  # [T]
    table_ptr,  # [max_positions, D] float32, cosines then sines
    slots_ptr,  # [T]
    keys_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    values_ptr,  # [num_blocks, KV_HEADS, BLOCK_SIZE, D]
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr,
):
    """q and k: rope(round(x / sqrt(mean(x²) + eps)) * weight) per head. k and v are written to the token's slot.

    Grid: (T, (Q_HEADS + 2 KV_HEADS) / TILE_HEADS). A program owns TILE_HEADS consecutive heads of one token, be they of
    q, k or v. All heads are loaded, normalized and rotated alike; the masks of the stores tell them apart.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    column = tl.arange(0, TILE_HALF)
    half_mask = column < D // 2
    position = tl.load(positions_ptr + token).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    head_mask = (head < Q_HEADS + 2 * KV_HEADS)[:, None] & half_mask[None, :]
    q_mask = (head < Q_HEADS)[:, None] & head_mask
    k_mask = (head >= Q_HEADS)[:, None] & (head < Q_HEADS + KV_HEADS)[:, None] & head_mask
    v_mask = (head >= Q_HEADS + KV_HEADS)[:, None] & head_mask

    in_head = head[:, None] * D + column[None, :]
    row = qkv_ptr + token * ((Q_HEADS + 2 * KV_HEADS) * D)
    first_in = tl.load(row + in_head, mask=head_mask, other=0.0)
    second_in = tl.load(row + in_head + D // 2, mask=head_mask, other=0.0)
    # Broadcast over the heads before the load, so that each thread reads the columns that it works on.
    columns = tl.broadcast_to(column[None, :], (TILE_HEADS, TILE_HALF))
    cos = tl.load(table_ptr + position * D + columns, mask=head_mask, other=0.0)
    sin = tl.load(table_ptr + position * D + D // 2 + columns, mask=head_mask, other=0.0)
    first_weight = tl.load(k_weight_ptr + columns, mask=k_mask, other=0.0)
    first_weight = tl.load(q_weight_ptr + columns, mask=q_mask, other=first_weight).to(tl.float32)
    second_weight = tl.load(k_weight_ptr + D // 2 + columns, mask=k_mask, other=0.0)
    second_weight = tl.load(q_weight_ptr + D // 2 + columns, mask=q_mask, other=second_weight).to(tl.float32)

    dtype = qkv_ptr.dtype.element_ty
    first, second = first_in.to(tl.float32), second_in.to(tl.float32)
    scale = tl.rsqrt(tl.sum(first * first + second * second, 1) / D + eps)[:, None]
    first = ((first * scale).to(dtype).to(tl.float32) * first_weight).to(dtype).to(tl.float32)
    second = ((second * scale).to(dtype).to(tl.float32) * second_weight).to(dtype).to(tl.float32)
    first_out = (first * cos - second * sin).to(dtype)
    second_out = (second * cos + first * sin).to(dtype)

    q_row = q_ptr + token * (Q_HEADS * D)
    tl.store(q_row + in_head, first_out, mask=q_mask)
    tl.store(q_row + in_head + D // 2, second_out, mask=q_mask)
    if slot >= 0:
        block = (slot // BLOCK_SIZE) * (KV_HEADS * BLOCK_SIZE * D) + (slot % BLOCK_SIZE) * D
        key = keys_ptr + block + (head - Q_HEADS)[:, None] * (BLOCK_SIZE * D) + column[None, :]
        tl.store(key, first_out, mask=k_mask)
        tl.store(key + D // 2, second_out, mask=k_mask)
        value = values_ptr + block + (head - Q_HEADS - KV_HEADS)[:, None] * (BLOCK_SIZE * D) + column[None, :]
        tl.store(value, first_in, mask=v_mask)
        tl.store(value + D // 2, second_in, mask=v_mask)


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
    """Norm and rotation of q and k, and the write of k and v, in one launch.

    Takes contiguous tensors, D even and up to 512.
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
    tile = Tile.for_head_dim(head_dim)
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
