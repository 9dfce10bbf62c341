"""Two to eight tokens times a weight, on tensor cores.

The weight is the operand of 16 rows and the tokens are the columns, which come in eights, so nothing is padded. No sum
is split between programs.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .norm import Norm, load_total, normalize

MAX_TOKENS = 8  # columns of the smallest tensor-core instruction
MAX_FUSED_OUTPUTS = 16384  # with the norm in the same launch


class Tile(NamedTuple):
    """Outputs of a program and bytes of each row per step, for up to so many outputs."""

    limit: float
    block_n: int
    row_bytes: int
    num_warps: int
    num_stages: int


TILES = (
    Tile(MAX_FUSED_OUTPUTS, 16, 512, 2, 5),
    Tile(float("inf"), 64, 256, 4, 4),
)


@triton.jit
def linear_matrix_kernel(
    out_ptr,  # [T, N]
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    residual_ptr,  # [T, K] or None
    norm_weight_ptr,  # [K] or None
    total_ptr,  # [T, K] or None, residual + x
    normed_ptr,  # [T, K] or None
    eps,
    tokens,  # T
    outputs,  # N
    columns,  # K, a run-time number: the compiler would unroll a loop whose trip count it knows
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = x weightᵀ + bias, of up to BLOCK_T tokens. With a norm_weight, x stands for rms_norm(residual + x).

    Grid: (N / BLOCK_N,). A program owns BLOCK_N outputs of all tokens and walks their rows of the weight once. Program
    0 also writes total and normed.
    """
    program = tl.program_id(0)
    row = tl.arange(0, BLOCK_N)
    output = program * BLOCK_N + row
    token = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    token_mask = (token < tokens)[None, :]
    x_offsets = token[None, :] * K + k[:, None]
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    scale = 0.0
    if norm_weight_ptr is not None:
        squares = tl.zeros((BLOCK_K, BLOCK_T), tl.float32)
        for begin in range(0, columns, BLOCK_K):
            total_mask = token_mask & (begin + k[:, None] < K)
            total = load_total(x_ptr, residual_ptr, x_offsets + begin, total_mask)
            squares += total * total
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)[None, :]

    weight_ptrs = weight_ptr + (program * BLOCK_N).to(tl.int64) * K + row[:, None] * K + k[None, :]
    output_mask = (output < outputs)[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    for begin in range(0, columns, BLOCK_K):
        x_mask, weight_mask = token_mask, output_mask
        if K % BLOCK_K != 0:
            x_mask = token_mask & (begin + k[:, None] < K)
            weight_mask = output_mask & (begin + k[None, :] < K)
        if norm_weight_ptr is None:
            x = tl.load(x_ptr + x_offsets + begin, mask=x_mask, other=0.0)
        else:
            total = load_total(x_ptr, residual_ptr, x_offsets + begin, x_mask)
            norm_weight = tl.load(norm_weight_ptr + begin + k, mask=begin + k < K, other=0.0)
            x = normalize(total, scale, norm_weight[:, None], dtype)
            if program == 0:
                if residual_ptr is not None:
                    tl.store(total_ptr + x_offsets + begin, total.to(dtype), mask=x_mask)
                tl.store(normed_ptr + x_offsets + begin, x, mask=x_mask)
        weight = tl.load(weight_ptrs + begin, mask=weight_mask, other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    out_ptrs = out_ptr + token[None, :] * outputs + output[:, None]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=token_mask & output_mask)


def launch(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm) -> None:
    """Writes the projection of x to out, in one launch."""
    (tokens, K), outputs = x.shape, weight.shape[0]
    tile = next(tile for tile in TILES if outputs <= tile.limit)
    linear_matrix_kernel[(triton.cdiv(outputs, tile.block_n),)](
        out,
        x,
        weight,
        bias,
        *norm,
        tokens,
        outputs,
        K,
        K=K,
        BLOCK_T=MAX_TOKENS,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.row_bytes // x.element_size(),
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
