"""The experts of 1 to 16 tokens: two launches organised by outputs, no sort; every step is bound by reading weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_TOKENS = 16  # the rows of the smallest matmul that tensor cores take
GATE_UP_N, GATE_UP_BYTES = 16, 256  # columns of a program, bytes of a row per step
DOWN_ROWS, DOWN_BYTES = 32, 256  # columns times experts of a program, bytes of a row per step


@triton.jit
def small_gate_up_kernel(
    x_ptr,
    weight_ptr,
    weights_ptr,
    expert_ids_ptr,
    hidden_ptr,
    tokens,
    hidden_size,
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
    """hidden[pair] = weights[pair] silu(gate xᵀ) (up xᵀ), where pair = token k + choice and gate, up are its expert's.

    x [T, H], weight [E, 2 I, H] (gate rows, then up rows), weights and expert_ids [T, k], hidden [T k, I] float32.
    Grid (T k, I / BLOCK_N). A program stands for the expert of its pair and owns BLOCK_N columns of every pair with
    that expert; of several pairs the first works, so that each expert's weights are read once whatever is hit twice.
    """
    pair = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(expert_ids_ptr + pair)
    token = tl.arange(0, BLOCK_T)
    choice = tl.arange(0, TOP_K_PADDED)
    pairs = token[:, None] * TOP_K + choice[None, :]
    known = (token[:, None] < tokens) & (choice[None, :] < TOP_K)
    hit = known & (tl.load(expert_ids_ptr + pairs, mask=known, other=-1) == expert)
    if tl.min(tl.min(tl.where(hit, pairs, BLOCK_T * TOP_K_PADDED), 1), 0) < pair:
        return

    reads = tl.max(hit.to(tl.int32), 1)[:, None] > 0
    inside = column[None, :] < I
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + token.to(tl.int64)[:, None] * X_STRIDE + k[None, :]
    gate_ptrs = weight_ptr + expert * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE + k[:, None]
    up_ptrs = gate_ptrs + I * WEIGHT_STRIDE
    gate = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    up = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    # The trip count is a run-time number: a known one makes the compiler unroll the whole loop.
    for begin in range(0, hidden_size, BLOCK_K):
        x_mask, w_mask = reads, inside
        if H % BLOCK_K != 0:
            x_mask = reads & (begin + k[None, :] < H)
            w_mask = inside & (begin + k[:, None] < H)
        x = tl.load(x_ptrs + begin, mask=x_mask, other=0.0)
        gate = tl.dot(x, tl.load(gate_ptrs + begin, mask=w_mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(up_ptrs + begin, mask=w_mask, other=0.0), up, input_precision="ieee")

    weights = tl.load(weights_ptr + pairs, mask=hit, other=0.0).to(tl.float32)
    out = weights[:, :, None] * (gate / (1 + tl.exp(-gate)) * up)[:, None, :]
    out_ptrs = hidden_ptr + pairs[:, :, None] * I + column[None, None, :]
    tl.store(out_ptrs, out, mask=hit[:, :, None] & (column[None, None, :] < I))


@triton.jit
def small_down_kernel(
    hidden_ptr,
    weight_ptr,
    expert_ids_ptr,
    out_ptr,
    H: tl.constexpr,
    I: tl.constexpr,
    TOP_K: tl.constexpr,
    EXPERT_STRIDE: tl.constexpr,
    WEIGHT_STRIDE: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[token] = the sum over its k experts of down[expert] hiddenᵀ; the routing weight is already in hidden.

    hidden [T k, I] float32, weight [E, H, I], expert_ids [T, k], out [T, H]. Grid (T, H / BLOCK_N): a program owns
    BLOCK_N columns of one token and walks its k experts side by side, so that programs of tokens that share an expert
    read the same weights at the same time, all but one of them from the cache.
    """
    token = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    choice = tl.arange(0, TOP_K_PADDED)
    expert = tl.load(expert_ids_ptr + token * TOP_K + choice, mask=choice < TOP_K, other=0)
    k = tl.arange(0, BLOCK_K)
    rows = (choice < TOP_K)[:, None, None] & (column < H)[None, :, None]
    # Each column has its own pointers to the same hidden values: both tiles lie in the same threads, nothing is moved.
    hidden_rows = (token * TOP_K + choice)[:, None] * I + tl.zeros_like(column)[None, :]
    hidden_ptrs = hidden_ptr + hidden_rows[:, :, None] + k[None, None, :]
    weight_rows = expert[:, None] * EXPERT_STRIDE + column[None, :] * WEIGHT_STRIDE
    weight_ptrs = weight_ptr + weight_rows[:, :, None] + k[None, None, :]
    total = tl.zeros((TOP_K_PADDED, BLOCK_N, BLOCK_K), tl.float32)
    for begin in range(0, I, BLOCK_K):
        mask = rows & (begin + k < I)[None, None, :]
        hidden = tl.load(hidden_ptrs + begin, mask=mask, other=0.0)
        total += hidden * tl.load(weight_ptrs + begin, mask=mask, other=0.0).to(tl.float32)
    out = tl.sum(tl.sum(total, 2), 0)
    tl.store(out_ptr + token * H + column, out.to(out_ptr.dtype.element_ty), mask=column < H)


def _gate_up_constants(H: int, I: int, top_k: int, element_size: int) -> dict[str, int]:
    return {
        "H": H,
        "I": I,
        "TOP_K": top_k,
        "TOP_K_PADDED": triton.next_power_of_2(top_k),
        "BLOCK_T": MAX_TOKENS,
        "BLOCK_N": GATE_UP_N,
        "BLOCK_K": GATE_UP_BYTES // element_size,
    }


def _down_constants(H: int, I: int, top_k: int, element_size: int) -> dict[str, int]:
    padded = triton.next_power_of_2(top_k)
    return {
        "H": H,
        "I": I,
        "TOP_K": top_k,
        "TOP_K_PADDED": padded,
        "BLOCK_N": DOWN_ROWS // padded,
        "BLOCK_K": DOWN_BYTES // element_size,
    }


def moe_small(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """`moe_experts` of 1 to MAX_TOKENS tokens, in two launches; moe_experts has checked the arguments."""
    (tokens, H), I = x.shape, down_weight.shape[2]
    pairs, top_k = expert_ids.numel(), expert_ids.shape[1]
    hidden = torch.empty((pairs, I), dtype=torch.float32, device=x.device)
    out = torch.empty((tokens, H), dtype=x.dtype, device=x.device)
    constants = _gate_up_constants(H, I, top_k, x.element_size())
    small_gate_up_kernel[(pairs, triton.cdiv(I, constants["BLOCK_N"]))](
        x,
        gate_up_weight,
        weights,
        expert_ids,
        hidden,
        tokens,
        H,
        X_STRIDE=x.stride(0),
        EXPERT_STRIDE=gate_up_weight.stride(0),
        WEIGHT_STRIDE=gate_up_weight.stride(1),
        **constants,
        num_warps=4,
        num_stages=4,
    )
    constants = _down_constants(H, I, top_k, x.element_size())
    small_down_kernel[(tokens, triton.cdiv(H, constants["BLOCK_N"]))](
        hidden,
        down_weight,
        expert_ids,
        out,
        EXPERT_STRIDE=down_weight.stride(0),
        WEIGHT_STRIDE=down_weight.stride(1),
        **constants,
        num_warps=8,
    )
    return out
