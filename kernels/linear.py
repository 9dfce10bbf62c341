"""Linear layers of up to eight tokens, with or without the residual add and the RMSNorm before them.

So few tokens cost what reading the weight costs: 21 MB, 6.3 us on an H100, for the q, k and v of Qwen3-30B-A3B. The
add and the norm as a launch of their own would cost 1.3 us of launching and two trips to memory and back; here every
program computes the norm itself from rows that lie in the L2 cache, 12 KB a token, and one of them writes it out.

One token: a dot product per output in float32. The weights go straight to registers, 16 KB of a program at once, and
the first of them are on their way while the norm is computed. Multiplying and adding takes a tenth of the time that
the memory takes; a matmul would carry every weight through shared memory for fifteen rows of padding.
Two to eight tokens: one multiplication per weight and token is too many, so tensor cores do them, weights on the side
that has sixteen rows and tokens on the side that has eight: nothing is padded. No sum is split between programs. There
are no such cores for float32: its tokens are programs side by side, each as if it were alone.
More tokens: torch's matmul, and the norm in its own launch. That is also the better way for two tokens and more into
a vocabulary, where thousands of programs would read the rows again: 150 MB for eight tokens, against 3 us.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, require
from .rms_norm import MAX_HIDDEN, add_rms_norm, rms_norm
from .weights import Weight

MAX_TOKENS = 8  # the columns of the smallest tensor-core instruction
MAX_VECTOR = 8192  # columns that one program holds at once
MAX_FUSED_OUTPUTS = 16384  # of two tokens and more; above, the norm is a launch of its own


class VectorTile(NamedTuple):
    """Elements of a weight tile and how many tiles one program walks, for weights of up to so many elements."""

    limit: float
    elements: int
    steps: int


class MatrixTile(NamedTuple):
    """Outputs of a program and bytes of each row per step, for up to so many outputs."""

    limit: float
    block_n: int
    row_bytes: int
    num_warps: int
    num_stages: int


# At least five programs, 80 KB in flight, for each of 132 multiprocessors as soon as the weight is large enough; of a
# larger one more tiles each, because x is read once per program.
VECTOR_TILES = (
    VectorTile(2**21, 4096, 1),
    VectorTile(2**23, 8192, 1),
    VectorTile(2**24, 8192, 2),
    VectorTile(2**26, 8192, 4),
    VectorTile(float("inf"), 8192, 8),
)
MATRIX_TILES = (
    MatrixTile(MAX_FUSED_OUTPUTS, 16, 512, 2, 5),
    MatrixTile(float("inf"), 64, 256, 4, 4),
)


@triton.jit
def _with_residual(x_ptr, residual_ptr, offsets, mask):
    """x, or residual + x rounded to their dtype, in float32."""
    total = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        total = total.to(x_ptr.dtype.element_ty).to(tl.float32)
    return total


@triton.jit
def _normalise(total, scale, norm_weight, dtype: tl.constexpr):
    """round(round(total * scale) * norm_weight): normalised, rounded, then times weight."""
    return ((total * scale).to(dtype).to(tl.float32) * norm_weight.to(tl.float32)).to(dtype)


@triton.jit
def linear_vector_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    norm_weight_ptr,
    total_ptr,
    normed_ptr,
    eps,
    outputs,
    steps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = weight x + bias, token by token. With a norm_weight, x stands for rms_norm(residual + x).

    out [T, N], x [T, K], weight [N, K], bias [N] or None; residual [T, K] or None, norm_weight [K] or None. The first
    program of a token also writes total [T, K] = residual + x and normed [T, K]. Grid: (T, N / (steps BLOCK_N)). A
    program owns steps tiles of BLOCK_N whole rows of the weight for one token, holds its x in registers and asks for
    each tile before it reduces the one at hand.
    """
    token = tl.program_id(0)
    first = tl.program_id(1) * steps * BLOCK_N
    row = tl.arange(0, BLOCK_N)
    column = tl.arange(0, BLOCK_K)
    inside = column < K
    tile_ptrs = weight_ptr + first.to(tl.int64) * K + row[:, None] * K + column[None, :]
    tile = tl.load(tile_ptrs, mask=(first + row < outputs)[:, None] & inside[None, :], other=0.0)

    x_offsets = token * K + column
    x = _with_residual(x_ptr, residual_ptr, x_offsets, inside)
    if norm_weight_ptr is not None:
        scale = tl.rsqrt(tl.sum(x * x, 0) / K + eps)
        norm_weight = tl.load(norm_weight_ptr + column, mask=inside, other=0.0)
        normed = _normalise(x, scale, norm_weight, x_ptr.dtype.element_ty)
        if first == 0:
            if residual_ptr is not None:
                tl.store(total_ptr + x_offsets, x.to(x_ptr.dtype.element_ty), mask=inside)
            tl.store(normed_ptr + x_offsets, normed, mask=inside)
        x = normed.to(tl.float32)

    for step in range(steps):
        output = first + step * BLOCK_N + row
        ahead = (output + BLOCK_N < outputs) & (step + 1 < steps)
        tile_ptrs += BLOCK_N * K
        next_tile = tl.load(tile_ptrs, mask=ahead[:, None] & inside[None, :], other=0.0)
        out = tl.sum(tile.to(tl.float32) * x[None, :], 1)
        if bias_ptr is not None:
            out += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)
        tl.store(out_ptr + token * outputs + output, out.to(out_ptr.dtype.element_ty), mask=output < outputs)
        tile = next_tile


@triton.jit
def linear_matrix_kernel(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    norm_weight_ptr,
    total_ptr,
    normed_ptr,
    eps,
    tokens,
    outputs,
    columns,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = x weightᵀ + bias, of up to BLOCK_T tokens. With a norm_weight, x stands for rms_norm(residual + x).

    out [T, N], x [T, K], weight [N, K], bias [N] or None; residual [T, K] or None, norm_weight [K] or None. Program 0
    also writes total [T, K] = residual + x and normed [T, K]. Grid: (N / BLOCK_N,). A program owns BLOCK_N outputs of
    all tokens and walks their rows of the weight once; columns is K as a run-time number.
    """
    program = tl.program_id(0)
    row = tl.arange(0, BLOCK_N)
    output = program * BLOCK_N + row
    token = tl.arange(0, BLOCK_T)
    k = tl.arange(0, BLOCK_K)
    known = (token < tokens)[None, :]
    x_offsets = token[None, :] * K + k[:, None]
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    scale = 0.0
    if norm_weight_ptr is not None:
        squares = tl.zeros((BLOCK_K, BLOCK_T), tl.float32)
        for begin in range(0, columns, BLOCK_K):
            mask = known & (begin + k[:, None] < K)
            total = _with_residual(x_ptr, residual_ptr, x_offsets + begin, mask)
            squares += total * total
        scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)[None, :]

    weight_ptrs = weight_ptr + (program * BLOCK_N).to(tl.int64) * K + row[:, None] * K + k[None, :]
    owned = (output < outputs)[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_T), tl.float32)
    # The trip count is a run-time number: a known one makes the compiler unroll the whole loop.
    for begin in range(0, columns, BLOCK_K):
        x_mask, weight_mask = known, owned
        if K % BLOCK_K != 0:
            x_mask = known & (begin + k[:, None] < K)
            weight_mask = owned & (begin + k[None, :] < K)
        if norm_weight_ptr is None:
            x = tl.load(x_ptr + x_offsets + begin, mask=x_mask, other=0.0)
        else:
            total = _with_residual(x_ptr, residual_ptr, x_offsets + begin, x_mask)
            norm_weight = tl.load(norm_weight_ptr + begin + k, mask=begin + k < K, other=0.0)
            x = _normalise(total, scale, norm_weight[:, None], dtype)
            if program == 0:
                if residual_ptr is not None:
                    tl.store(total_ptr + x_offsets + begin, total.to(dtype), mask=x_mask)
                tl.store(normed_ptr + x_offsets + begin, x, mask=x_mask)
        weight = tl.load(weight_ptrs + begin, mask=weight_mask, other=0.0)
        acc = tl.dot(weight, x, acc, input_precision="ieee")

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(out_ptr + token[None, :] * outputs + output[:, None], acc.to(out_ptr.dtype.element_ty), mask=known & owned)


def _is_vector(tokens: int, K: int, dtype: torch.dtype) -> bool:
    return K <= MAX_VECTOR and (tokens == 1 or dtype == torch.float32)


def _vector_constants(outputs: int, K: int) -> tuple[dict[str, int], int]:
    """What the kernel is compiled for, and its number of programs for each token."""
    tile = next(tile for tile in VECTOR_TILES if outputs * K <= tile.limit)
    block_k = triton.next_power_of_2(K)
    block_n = min(16, max(1, tile.elements // block_k))
    constants = {"steps": tile.steps, "K": K, "BLOCK_N": block_n, "BLOCK_K": block_k}
    return constants, triton.cdiv(outputs, tile.steps * block_n)


def _matrix_tile(outputs: int) -> MatrixTile:
    return next(tile for tile in MATRIX_TILES if outputs <= tile.limit)


def _matrix_constants(outputs: int, K: int, element_size: int) -> tuple[dict[str, int], int]:
    """What the kernel is compiled for, and its number of programs."""
    tile = _matrix_tile(outputs)
    constants = {"K": K, "BLOCK_T": MAX_TOKENS, "BLOCK_N": tile.block_n, "BLOCK_K": tile.row_bytes // element_size}
    return constants, triton.cdiv(outputs, tile.block_n)


def _launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
    total: Tensor | None = None,
    normed: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """The projection of 1 to MAX_TOKENS tokens in one launch. Writes residual + x to total and its norm to normed."""
    (tokens, K), outputs = x.shape, weight.shape[0]
    out = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    arguments = out, x, weight, bias, residual, norm_weight, total, normed, eps
    if _is_vector(tokens, K, x.dtype):
        constants, programs = _vector_constants(outputs, K)
        linear_vector_kernel[(tokens, programs)](*arguments, outputs, **constants, num_warps=4)
    else:
        tile = _matrix_tile(outputs)
        constants, programs = _matrix_constants(outputs, K, x.element_size())
        linear_matrix_kernel[(programs,)](
            *arguments, tokens, outputs, K, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages
        )
    return out


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: one launch up to MAX_TOKENS tokens, torch's matmul above.

    x [T, H], weight [N, H], bias [N] or None, all contiguous and of one dtype, float32, float16 or bfloat16 -> [T, N].
    Wide loads need an H that is divisible by 8; others are right and slow. Raises ValueError for other layouts or
    dtypes.
    """
    _check(x, weight.data, bias)
    if 0 < x.shape[0] <= MAX_TOKENS:
        return _launch(x, weight.data, bias)
    return F.linear(x, weight.data, bias)


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The residual add, the RMSNorm (Zhang and Sennrich, 2019) and the projection that follows it.

    x and residual [T, H], norm_weight [H], H up to 8,192, weight [N, H], bias [N] or None, as in `linear`; residual may
    be None, before the first layer -> (projection [T, N], residual + x [T, H], normalised rows [T, H]). One launch for
    one token, and for MAX_TOKENS tokens if N is at most MAX_FUSED_OUTPUTS; else `rms_norm` or `add_rms_norm`, which
    writes the sum over the residual passed in, then `linear`. Raises ValueError for other layouts or dtypes.
    """
    _check(x, weight.data, bias)
    if x.shape[1] > MAX_HIDDEN:
        raise ValueError(f"x must have at most {MAX_HIDDEN} columns, got {list(x.shape)}")
    require("norm_weight", norm_weight, x.dtype, x.shape[1:], like=x)
    if residual is not None:
        require("residual", residual, x.dtype, x.shape, like=x)
    tokens, outputs = x.shape[0], weight.shape[0]
    if tokens == 1 or (0 < tokens <= MAX_TOKENS and outputs <= MAX_FUSED_OUTPUTS):
        # A new tensor for the sum: other programs may still read the residual when the first one writes it.
        total, normed = None if residual is None else torch.empty_like(x), torch.empty_like(x)
        out = _launch(x, weight.data, bias, residual, norm_weight, total, normed, eps)
        return out, x if total is None else total, normed
    if residual is None:
        normed, total = rms_norm(x, norm_weight, eps), x
    else:
        normed, total = add_rms_norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), total, normed


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    require("x", x, DTYPES, ("T", "H"))
    require("weight", weight, x.dtype, ("N", x.shape[1]), like=x)
    if 0 in weight.shape:
        raise ValueError(f"weight must have rows and columns, got {list(weight.shape)}")
    if bias is not None:
        require("bias", bias, x.dtype, weight.shape[:1], like=x)
