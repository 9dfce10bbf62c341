"""The experts of a mixture (`moe_experts`): grouped matmuls over rows sorted by expert for more than 16 tokens."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require
from .moe_route import sort_by_expert
from .moe_small import MAX_TOKENS, moe_small
from .weights import Weight

__all__ = ["moe_experts"]


class Matmul(NamedTuple):
    """How one of the two matmuls is cut: output columns, bytes of a row per step, and the launch."""

    block_n: int
    step_bytes: int
    num_warps: int
    num_stages: int


class Tile(NamedTuple):
    """A row of the tile table: the rows of a program, for experts of up to max_rows rows on average."""

    max_rows: float
    block_m: int
    gate_up: Matmul
    down: Matmul


TILES = (
    Tile(8, 16, Matmul(64, 256, 4, 3), Matmul(128, 256, 4, 3)),
    Tile(16, 32, Matmul(64, 256, 4, 3), Matmul(128, 256, 4, 3)),
    Tile(64, 64, Matmul(64, 128, 4, 4), Matmul(128, 128, 4, 4)),
    Tile(float("inf"), 128, Matmul(64, 128, 8, 3), Matmul(256, 128, 8, 3)),
)
COMBINE_COLUMNS = 1024


def tile_for(pairs: int, num_experts: int) -> Tile:
    """The row of the table for this many (token, expert) pairs; the counts of single experts stay on the device."""
    return next(tile for tile in TILES if pairs <= tile.max_rows * num_experts)


@triton.jit
def _tile_rows(tile_experts_ptr, offsets_ptr, tile, BLOCK_M: tl.constexpr):
    """The expert of a tile (-1: none), its rows and how far they reach; see moe_route.ExpertSort."""
    expert = tl.load(tile_experts_ptr + tile)
    start = tl.load(offsets_ptr + expert, mask=expert >= 0, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert >= 0, other=0)
    row = start + (tile - start // BLOCK_M - expert) * BLOCK_M + tl.arange(0, BLOCK_M)
    return expert, row, row < end


@triton.jit
def gate_up_kernel(
    x_ptr,
    weight_ptr,
    offsets_ptr,
    order_ptr,
    tile_experts_ptr,
    hidden_ptr,
    hidden_size,
    H: tl.constexpr,
    I: tl.constexpr,
    TOP_K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hidden[r] = silu(gate xᵀ) (up xᵀ) for the token x and the expert of sorted row r.

    x [T, H], weight [E, 2 I, H] (gate rows, then up rows), offsets, order and tile_experts as in ExpertSort,
    hidden [T k, I]. Grid (tiles * I / BLOCK_N,), the columns of a tile side by side: they share x, and the next tile of
    the same expert finds the weights in the cache. A program owns BLOCK_M rows of one expert by BLOCK_N columns.
    """
    blocks: tl.constexpr = (I + BLOCK_N - 1) // BLOCK_N
    expert, row, valid = _tile_rows(tile_experts_ptr, offsets_ptr, tl.program_id(0) // blocks, BLOCK_M)
    if expert < 0:
        return
    token = (tl.load(order_ptr + row, mask=valid, other=0) // TOP_K).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < I
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * X_STRIDE + k[None, :]
    gate_ptrs = weight_ptr + expert.to(tl.int64) * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    up_ptrs = gate_ptrs + I * WEIGHT_STRIDE
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # The trip count is a run-time number: a known one makes the compiler unroll the whole loop.
    for begin in range(0, hidden_size, BLOCK_K):
        x_mask, w_mask = valid[:, None], inside[None, :]
        if H % BLOCK_K != 0:
            x_mask = x_mask & (begin + k[None, :] < H)
            w_mask = w_mask & (begin + k[:, None] < H)
        x = tl.load(x_ptrs + begin, mask=x_mask, other=0.0)
        gate = tl.dot(x, tl.load(gate_ptrs + begin, mask=w_mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(up_ptrs + begin, mask=w_mask, other=0.0), up, input_precision="ieee")
    hidden = (gate / (1 + tl.exp(-gate)) * up).to(hidden_ptr.dtype.element_ty)
    hidden_ptrs = hidden_ptr + row.to(tl.int64)[:, None] * I + column[None, :]
    tl.store(hidden_ptrs, hidden, mask=valid[:, None] & inside[None, :])


@triton.jit
def down_kernel(
    hidden_ptr,
    weight_ptr,
    weights_ptr,
    offsets_ptr,
    order_ptr,
    tile_experts_ptr,
    out_ptr,
    intermediate_size,
    H: tl.constexpr,
    I: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[pair] = weights[pair] * down hiddenᵀ for each sorted row, put where its (token, expert) pair belongs.

    hidden [T k, I] in sorted order, weight [E, H, I], weights [T, k], out [T k, H] in the order of the pairs. Grid
    (tiles * H / BLOCK_N,): a program owns BLOCK_M rows of one expert by BLOCK_N columns.
    """
    blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    expert, row, valid = _tile_rows(tile_experts_ptr, offsets_ptr, tl.program_id(0) // blocks, BLOCK_M)
    if expert < 0:
        return
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = column < H
    k = tl.arange(0, BLOCK_K)
    hidden_ptrs = hidden_ptr + row.to(tl.int64)[:, None] * I + k[None, :]
    weight_ptrs = weight_ptr + expert.to(tl.int64) * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, intermediate_size, BLOCK_K):
        h_mask, w_mask = valid[:, None], inside[None, :]
        if I % BLOCK_K != 0:
            h_mask = h_mask & (begin + k[None, :] < I)
            w_mask = w_mask & (begin + k[:, None] < I)
        hidden = tl.load(hidden_ptrs + begin, mask=h_mask, other=0.0)
        out = tl.dot(hidden, tl.load(weight_ptrs + begin, mask=w_mask, other=0.0), out, input_precision="ieee")
    pair = tl.load(order_ptr + row, mask=valid, other=0).to(tl.int64)
    out *= tl.load(weights_ptr + pair, mask=valid, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + pair[:, None] * H + column[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=valid[:, None] & inside[None, :])


@triton.jit
def combine_kernel(pairs_ptr, out_ptr, H: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """out[token] = pairs[token, 0] + ... + pairs[token, k - 1] in float32, always in this order.

    pairs [T, k, H], out [T, H]. Grid (T, H / BLOCK): a program owns BLOCK columns of one token.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        total += tl.load(pairs_ptr + (token * TOP_K + choice) * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * H + column, total.to(out_ptr.dtype.element_ty), mask=column < H)


def _grouped(
    x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, weights: Tensor, expert_ids: Tensor, tile: Tile
) -> Tensor:
    """Any number of tokens, in four launches: sort, gate_up, down, combine."""
    (tokens, H), (experts, _, I) = x.shape, down_weight.shape
    pairs, top_k = expert_ids.numel(), expert_ids.shape[1]
    sort = sort_by_expert(expert_ids, experts, tile.block_m)
    tiles = len(sort.tile_experts)
    hidden = torch.empty((pairs, I), dtype=x.dtype, device=x.device)
    results = torch.empty((pairs, H), dtype=x.dtype, device=x.device)
    out = torch.empty((tokens, H), dtype=x.dtype, device=x.device)
    n, step_bytes, num_warps, num_stages = tile.gate_up
    gate_up_kernel[(tiles * triton.cdiv(I, n),)](
        x,
        gate_up_weight,
        *sort,
        hidden,
        H,
        H=H,
        I=I,
        TOP_K=top_k,
        X_STRIDE=x.stride(0),
        EXPERT_STRIDE=gate_up_weight.stride(0),
        WEIGHT_STRIDE=gate_up_weight.stride(1),
        BLOCK_M=tile.block_m,
        BLOCK_N=n,
        BLOCK_K=step_bytes // x.element_size(),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    n, step_bytes, num_warps, num_stages = tile.down
    down_kernel[(tiles * triton.cdiv(H, n),)](
        hidden,
        down_weight,
        weights,
        *sort,
        results,
        I,
        H=H,
        I=I,
        EXPERT_STRIDE=down_weight.stride(0),
        WEIGHT_STRIDE=down_weight.stride(1),
        BLOCK_M=tile.block_m,
        BLOCK_N=n,
        BLOCK_K=step_bytes // x.element_size(),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    combine_kernel[(tokens, triton.cdiv(H, COMBINE_COLUMNS))](
        results, out, H=H, TOP_K=top_k, BLOCK=COMBINE_COLUMNS, num_warps=4
    )
    return out


def _check(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, expert_ids: Tensor) -> None:
    require("x", x, DTYPES, ("T", "H"), rows=True)
    tokens, H = x.shape
    require("down", down, x.dtype, ("E", H, "I"), like=x, rows=True)
    experts, _, I = down.shape
    require("gate_up", gate_up, x.dtype, (experts, 2 * I, H), like=x, rows=True)
    require("expert_ids", expert_ids, torch.int64, (tokens, "k"), like=x)
    require("weights", weights, x.dtype, expert_ids.shape, like=x)
    if not 1 <= expert_ids.shape[1] <= 16 or not 1 <= experts <= 512:
        got = f"{expert_ids.shape[1]} of {experts}"
        raise ValueError(f"moe_experts needs 1 to 16 experts per token of 1 to 512, got {got}")


def moe_experts(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """The weighted sum of each token's experts: sum over k of weight * down(silu(gate(x)) * up(x)).

    x [T, H], gate_up [E, 2 I, H] (gate rows, then up rows), down [E, H, I], weights [T, k], all
    float32, float16 or bfloat16; expert_ids [T, k] int64 in 0 to E - 1 (not checked: the values stay on the device)
    -> [T, H] in x's dtype. Up to 512 experts and 16 per token. Rows may lie apart, by a multiple of 8 elements for
    full speed. Up to 16 tokens take two launches, more take four; the bits are the same every time. Raises
    ValueError for another layout. Sparsely gated experts: Shazeer et al., 2017; with SwiGLU: Shazeer, 2020.
    """
    gate_up_weight, down_weight = gate_up.data, down.data
    _check(x, gate_up_weight, down_weight, weights, expert_ids)
    if len(x) == 0:
        return torch.empty_like(x)
    if len(x) <= MAX_TOKENS:
        return moe_small(x, gate_up_weight, down_weight, weights, expert_ids)
    tile = tile_for(expert_ids.numel(), len(gate_up_weight))
    return _grouped(x, gate_up_weight, down_weight, weights, expert_ids, tile)
