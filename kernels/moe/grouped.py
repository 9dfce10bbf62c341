"""Experts of many tokens: grouped matmuls over rows sorted by expert, in four launches."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sort import sort_by_expert


class Matmul(NamedTuple):
    """How one of the two matmuls is cut: columns of a program, bytes of a row per step, and the launch."""

    block_n: int
    step_bytes: int
    num_warps: int
    num_stages: int


class Tile(NamedTuple):
    """A row of the tile table: rows of a program, for experts of up to max_rows rows on average."""

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
# Without tensor cores the accumulators of other tiles spill on an A100.
FLOAT32_TILES = (Tile(float("inf"), 32, Matmul(64, 128, 4, 3), Matmul(128, 128, 4, 3)),)
COMBINE_COLUMNS = 1024


def tile_for(pairs: int, num_experts: int, itemsize: int) -> Tile:
    """The row of the table for this many (token, expert) pairs. The counts of single experts stay on the device."""
    tiles = FLOAT32_TILES if itemsize == 4 else TILES
    return next(tile for tile in tiles if pairs <= tile.max_rows * num_experts)


@triton.jit
def tile_rows(tile_experts_ptr, offsets_ptr, tile, BLOCK_M: tl.constexpr):
    """The expert of a tile (-1: none), its rows and the mask of those that are there; see sort.ExpertSort."""
    expert = tl.load(tile_experts_ptr + tile)
    start = tl.load(offsets_ptr + expert, mask=expert >= 0, other=0)
    end = tl.load(offsets_ptr + expert + 1, mask=expert >= 0, other=0)
    row = start + (tile - start // BLOCK_M - expert) * BLOCK_M + tl.arange(0, BLOCK_M)
    return expert, row, row < end


@triton.jit
def gate_up_kernel(
    x_ptr,  # [T, H], rows X_STRIDE apart
    weight_ptr,  # [E, 2 I, H], gate rows, then up rows
    offsets_ptr,  # [E + 1]
    order_ptr,  # [T k]
    tile_experts_ptr,  # [tiles]
    hidden_ptr,  # [T k, I]
    hidden_size,  # H, a run-time number: the compiler would unroll a loop whose trip count it knows
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

    Grid: (tiles * I / BLOCK_N,), the columns of a tile side by side: they share x, and the next tile of the same expert
    finds the weights in the L2 cache. A program owns BLOCK_M rows of one expert by BLOCK_N columns.
    """
    blocks: tl.constexpr = (I + BLOCK_N - 1) // BLOCK_N
    expert, row, row_mask = tile_rows(tile_experts_ptr, offsets_ptr, tl.program_id(0) // blocks, BLOCK_M)
    if expert < 0:
        return
    token = (tl.load(order_ptr + row, mask=row_mask, other=0) // TOP_K).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < I
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token[:, None] * X_STRIDE + k[None, :]
    gate_ptrs = weight_ptr + expert.to(tl.int64) * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    up_ptrs = gate_ptrs + I * WEIGHT_STRIDE
    gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, hidden_size, BLOCK_K):
        x_mask, w_mask = row_mask[:, None], column_mask[None, :]
        if H % BLOCK_K != 0:
            x_mask = x_mask & (begin + k[None, :] < H)
            w_mask = w_mask & (begin + k[:, None] < H)
        x = tl.load(x_ptrs + begin, mask=x_mask, other=0.0)
        gate = tl.dot(x, tl.load(gate_ptrs + begin, mask=w_mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(up_ptrs + begin, mask=w_mask, other=0.0), up, input_precision="ieee")
    hidden = (gate / (1 + tl.exp(-gate)) * up).to(hidden_ptr.dtype.element_ty)
    hidden_ptrs = hidden_ptr + row.to(tl.int64)[:, None] * I + column[None, :]
    tl.store(hidden_ptrs, hidden, mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def down_kernel(
    hidden_ptr,  # [T k, I], in sorted order
    weight_ptr,  # [E, H, I]
    weights_ptr,  # [T, k]
    offsets_ptr,  # [E + 1]
    order_ptr,  # [T k]
    tile_experts_ptr,  # [tiles]
    out_ptr,  # [T k, H], in the order of the pairs
    intermediate_size,  # I, a run-time number
    H: tl.constexpr,
    I: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[pair] = weights[pair] * down hiddenᵀ, where the pair of sorted row r is order[r].

    Grid: (tiles * H / BLOCK_N,). A program owns BLOCK_M rows of one expert by BLOCK_N columns.
    """
    blocks: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    expert, row, row_mask = tile_rows(tile_experts_ptr, offsets_ptr, tl.program_id(0) // blocks, BLOCK_M)
    if expert < 0:
        return
    column = tl.program_id(0) % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    column_mask = column < H
    k = tl.arange(0, BLOCK_K)
    hidden_ptrs = hidden_ptr + row.to(tl.int64)[:, None] * I + k[None, :]
    weight_ptrs = weight_ptr + expert.to(tl.int64) * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for begin in range(0, intermediate_size, BLOCK_K):
        h_mask, w_mask = row_mask[:, None], column_mask[None, :]
        if I % BLOCK_K != 0:
            h_mask = h_mask & (begin + k[None, :] < I)
            w_mask = w_mask & (begin + k[:, None] < I)
        hidden = tl.load(hidden_ptrs + begin, mask=h_mask, other=0.0)
        acc = tl.dot(hidden, tl.load(weight_ptrs + begin, mask=w_mask, other=0.0), acc, input_precision="ieee")
    pair = tl.load(order_ptr + row, mask=row_mask, other=0).to(tl.int64)
    acc *= tl.load(weights_ptr + pair, mask=row_mask, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + pair[:, None] * H + column[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def combine_kernel(
    pairs_ptr,  # [T, k, H]
    out_ptr,  # [T, H]
    H: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[token] = pairs[token, 0] + ... + pairs[token, k - 1] in float32, in this order.

    Grid: (T, H / BLOCK). A program owns BLOCK columns of one token.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(TOP_K):
        acc += tl.load(pairs_ptr + (token * TOP_K + choice) * H + column, mask=column < H, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * H + column, acc.to(out_ptr.dtype.element_ty), mask=column < H)


def moe_grouped(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """The op `moe_experts` with dense weights, in four launches: sort, gate_up, down, combine."""
    (tokens, H), (experts, _, I) = x.shape, down.shape
    pairs, top_k = expert_ids.numel(), expert_ids.shape[1]
    tile = tile_for(pairs, experts, x.element_size())
    sort = sort_by_expert(expert_ids, experts, tile.block_m)
    tiles = len(sort.tile_experts)
    hidden = torch.empty((pairs, I), dtype=x.dtype, device=x.device)
    results = torch.empty((pairs, H), dtype=x.dtype, device=x.device)
    out = torch.empty((tokens, H), dtype=x.dtype, device=x.device)
    n, step_bytes, num_warps, num_stages = tile.gate_up
    gate_up_kernel[(tiles * triton.cdiv(I, n),)](
        x,
        gate_up,
        *sort,
        hidden,
        H,
        H=H,
        I=I,
        TOP_K=top_k,
        X_STRIDE=x.stride(0),
        EXPERT_STRIDE=gate_up.stride(0),
        WEIGHT_STRIDE=gate_up.stride(1),
        BLOCK_M=tile.block_m,
        BLOCK_N=n,
        BLOCK_K=step_bytes // x.element_size(),
        num_warps=num_warps,
        num_stages=num_stages,
    )
    n, step_bytes, num_warps, num_stages = tile.down
    down_kernel[(tiles * triton.cdiv(H, n),)](
        hidden,
        down,
        weights,
        *sort,
        results,
        I,
        H=H,
        I=I,
        EXPERT_STRIDE=down.stride(0),
        WEIGHT_STRIDE=down.stride(1),
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
