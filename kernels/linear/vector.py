"""One token times a weight: a dot product per output, in float32.

The weights go straight to registers, 16 KB of a program at once, and the first of them are on their way while the norm
is computed. Multiplying and adding takes a tenth of the time that the memory takes; a tl.dot would carry every weight
through shared memory for fifteen rows of padding. float32 has no tensor cores, so its tokens are programs side by side.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .norm import Norm, load_total, normalize

MAX_COLUMNS = 8192  # that one program holds at once


class Tile(NamedTuple):
    """Elements of a tile of the weight and tiles of a program, for weights of up to so many elements."""

    limit: float
    elements: int
    steps: int


# At least five programs, 80 KB in flight, for each of 132 multiprocessors as soon as the weight is large enough. A
# program of a larger weight has more tiles, because it reads x once.
TILES = (
    Tile(2**21, 4096, 1),
    Tile(2**23, 8192, 1),
    Tile(2**24, 8192, 2),
    Tile(2**26, 8192, 4),
    Tile(float("inf"), 8192, 8),
)


@triton.jit
def linear_vector_kernel(
    out_ptr,  # [T, N]
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    residual_ptr,  # [T, K] or None
    norm_weight_ptr,  # [K] or None
    total_ptr,  # [T, K] or None, residual + x
    normed_ptr,  # [T, K] or None
    eps,
    outputs,  # N
    steps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = weight x + bias, token by token. With a norm_weight, x stands for rms_norm(residual + x).

    Grid: (T, N / (steps BLOCK_N)). A program owns `steps` tiles of BLOCK_N whole rows of the weight for one token. It
    holds its x in registers and asks for each tile before it reduces the one before. The first program of a token also
    writes total and normed.
    """
    token = tl.program_id(0)
    first = tl.program_id(1) * steps * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    column_mask = column < K
    tile_ptrs = weight_ptr + first.to(tl.int64) * K + row[:, None] * K + column[None, :]
    tile = tl.load(tile_ptrs, mask=(first + row < outputs)[:, None] & column_mask[None, :], other=0.0)

    x_offsets = token * K + column
    x = load_total(x_ptr, residual_ptr, x_offsets, column_mask)
    if norm_weight_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, 0) / K + eps)
        norm_weight = tl.load(norm_weight_ptr + column, mask=column_mask, other=0.0)
        normed = normalize(x, scale, norm_weight, x_ptr.dtype.element_ty)
        if first == 0:
            if residual_ptr is not None:
                tl.store(total_ptr + x_offsets, x.to(x_ptr.dtype.element_ty), mask=column_mask)
            tl.store(normed_ptr + x_offsets, normed, mask=column_mask)
        x = normed.to(tl.float32)

    for step in range(steps):
        output = first + step * BLOCK_N + row
        next_mask = (output + BLOCK_N < outputs) & (step + 1 < steps)
        tile_ptrs += BLOCK_N * K
        next_tile = tl.load(tile_ptrs, mask=next_mask[:, None] & column_mask[None, :], other=0.0)
        out = tl.sum(tile.to(tl.float32) * x[None, :], 1)
        if bias_ptr is not None:
            out += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)
        tl.store(out_ptr + token * outputs + output, out.to(out_ptr.dtype.element_ty), mask=output < outputs)
        tile = next_tile


def takes(tokens: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether this kernel computes so many tokens of up to MAX_TOKENS; the matrix kernel computes the others."""
    return columns <= MAX_COLUMNS and (tokens == 1 or dtype == torch.float32)


def launch(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm) -> None:
    """Writes the projection of x to out, in one launch."""
    (tokens, K), outputs = x.shape, weight.shape[0]
    tile = next(tile for tile in TILES if outputs * K <= tile.limit)
    block_k = triton.next_power_of_2(K)
    block_n = min(16, max(1, tile.elements // block_k))
    linear_vector_kernel[tokens, triton.cdiv(outputs, tile.steps * block_n)](
        out, x, weight, bias, *norm, outputs, tile.steps, K=K, BLOCK_N=block_n, BLOCK_K=block_k, num_warps=4
    )
