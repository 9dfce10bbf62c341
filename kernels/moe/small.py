"""Experts of 1 to 16 tokens: two launches organized by outputs, no sort. Reading the weights bounds both."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_TOKENS = 16  # rows of the smallest tl.dot
GATE_UP_N, GATE_UP_BYTES = 16, 256  # columns of a program, bytes of a row per step
DOWN_ROWS, DOWN_BYTES = 32, 256  # columns times experts of a program, bytes of a row per step


@triton.jit
def small_gate_up_kernel(
    x_ptr,  # [T, H], rows X_STRIDE apart
    weight_ptr,  # [E, 2 I, H], gate rows, then up rows
    weights_ptr,  # [T, k]
    expert_ids_ptr,  # [T, k]
    hidden_ptr,  # [T k, I] float32
    tokens,  # T
    hidden_size,  # H, a run-time number: the compiler would unroll a loop whose trip count it knows
    H: tl.constexpr,
    I: tl.constexpr,
    TOP_K: tl.constexpr,
    X_STRIDE: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """hidden[pair] = weights[pair] silu(gate xᵀ) (up xᵀ), pair = token k + choice, gate and up of the pair's expert.

    Grid: (T k, I / BLOCK_N). A program owns BLOCK_N columns of all pairs that share the expert of its pair. If several
    pairs share an expert, only the program of the first pair computes: each expert's weights are read once.
    """
    pair = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_ids_ptr + pair)
    token = tl.arange(0, BLOCK_T)
    choice = tl.arange(0, TOP_K_PADDED)
    pairs = token[:, None] * TOP_K + choice[None, :]
    choice_mask = (token[:, None] < tokens) & (choice[None, :] < TOP_K)
    pair_mask = choice_mask & (tl.load(expert_ids_ptr + pairs, mask=choice_mask, other=-1) == expert)
    if tl.min(tl.min(tl.where(pair_mask, pairs, BLOCK_T * TOP_K_PADDED), 1), 0) < pair:
        return

    token_mask = tl.max(pair_mask.to(tl.int32), 1)[:, None] > 0
    column_mask = column[None, :] < I
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token.to(tl.int64)[:, None] * X_STRIDE + k[None, :]
    gate_ptrs = weight_ptr + expert * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    up_ptrs = gate_ptrs + I * WEIGHT_STRIDE
    gate = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for begin in range(0, hidden_size, BLOCK_K):
        x_mask, w_mask = token_mask, column_mask
        if H % BLOCK_K != 0:
            x_mask = token_mask & (begin + k[None, :] < H)
            w_mask = column_mask & (begin + k[:, None] < H)
        x = tl.load(x_ptrs + begin, mask=x_mask, other=0.0)
        gate = tl.dot(x, tl.load(gate_ptrs + begin, mask=w_mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(up_ptrs + begin, mask=w_mask, other=0.0), up, input_precision="ieee")

    weights = tl.load(weights_ptr + pairs, mask=pair_mask, other=0.0).to(tl.float32)
    out = weights[:, :, None] * (gate / (1 + tl.exp(-gate)) * up)[:, None, :]
    out_ptrs = hidden_ptr + pairs[:, :, None] * I + column[None, None, :]
    tl.store(out_ptrs, out, mask=pair_mask[:, :, None] & (column[None, None, :] < I))


@triton.jit
def small_down_kernel(
    hidden_ptr,  # [T k, I] float32
    weight_ptr,  # [E, H, I]
    expert_ids_ptr,  # [T, k]
    out_ptr,  # [T, H]
    H: tl.constexpr,
    I: tl.constexpr,
    TOP_K: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[token] = sum over its k experts of down hiddenᵀ. The routing weight is already in hidden.

    Grid: (T, H / BLOCK_N). A program owns BLOCK_N columns of one token and walks its k experts side by side. Programs
    of tokens that share an expert read the same weights at the same time, all but one of them from the L2 cache.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    choice = tl.arange(0, TOP_K_PADDED)
    expert = tl.load(expert_ids_ptr + token * TOP_K + choice, mask=choice < TOP_K, other=0)
    k = tl.arange(0, BLOCK_K)
    row_mask = (choice < TOP_K)[:, None, None] & (column < H)[None, :, None]
    # Each column has its own pointers to the same hidden values, so both tiles have one layout and none is converted.
    hidden_rows = (token * TOP_K + choice)[:, None] * I + tl.zeros_like(column)[None, :]
    hidden_ptrs = hidden_ptr + hidden_rows[:, :, None] + k[None, None, :]
    weight_rows = expert[:, None] * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE
    weight_ptrs = weight_ptr + weight_rows[:, :, None] + k[None, None, :]
    acc = tl.zeros((TOP_K_PADDED, BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, I, BLOCK_K):
        tile_mask = row_mask & (begin + k < I)[None, None, :]
        hidden = tl.load(hidden_ptrs + begin, mask=tile_mask, other=0.0)
        acc += hidden * tl.load(weight_ptrs + begin, mask=tile_mask, other=0.0).to(tl.float32)
    out = tl.sum(tl.sum(acc, 2), 0)
    tl.store(out_ptr + token * H + column, out.to(out_ptr.dtype.element_ty), mask=column < H)


def moe_small(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """The op `moe_experts` with dense weights for 1 to MAX_TOKENS tokens, in two launches."""
    (tokens, H), I, (pairs, top_k) = x.shape, down.shape[2], (expert_ids.numel(), expert_ids.shape[1])
    top_k_padded = triton.next_power_of_2(top_k)
    hidden = torch.empty((pairs, I), dtype=torch.float32, device=x.device)
    out = torch.empty((tokens, H), dtype=x.dtype, device=x.device)
    small_gate_up_kernel[pairs, triton.cdiv(I, GATE_UP_N)](
        x,
        gate_up,
        weights,
        expert_ids,
        hidden,
        tokens,
        H,
        H=H,
        I=I,
        TOP_K=top_k,
        X_STRIDE=x.stride(0),
        EXPERT_STRIDE=gate_up.stride(0),
        WEIGHT_STRIDE=gate_up.stride(1),
        BLOCK_T=MAX_TOKENS,
        TOP_K_PADDED=top_k_padded,
        BLOCK_N=GATE_UP_N,
        BLOCK_K=GATE_UP_BYTES // x.element_size(),
        num_warps=4,
        num_stages=4,
    )
    down_n = DOWN_ROWS // top_k_padded
    small_down_kernel[tokens, triton.cdiv(H, down_n)](
        hidden,
        down,
        expert_ids,
        out,
        H=H,
        I=I,
        TOP_K=top_k,
        EXPERT_STRIDE=down.stride(0),
        WEIGHT_STRIDE=down.stride(1),
        TOP_K_PADDED=top_k_padded,
        BLOCK_N=down_n,
        BLOCK_K=DOWN_BYTES // x.element_size(),
        num_warps=8,
    )
    return out
