"""rms_norm and add_rms_norm against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import reference, rms_norm
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.testing.contract import assert_contract, assert_guards, guarded, poisoned_outputs

from .parameters import EVERY_DTYPE, examples, slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


def inputs(*shape: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x and a residual of this shape, and a weight for their rows."""
    generator = torch.Generator().manual_seed(seed)
    x, residual = (torch.randn(*shape, generator=generator) * 2 for _ in range(2))
    weight = 1 + torch.randn(shape[-1], generator=generator) / 4
    return tuple(t.to(dtype).to(DEVICE) for t in (x, residual, weight))


def check_both(*shape: int, dtype: torch.dtype, seed: int = 0) -> None:
    x, residual, weight = inputs(*shape, dtype=dtype, seed=seed)
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    with poisoned_outputs(rms_norm):
        out = rms_norm.rms_norm(x, weight, EPS)
    assert_contract(out, exact, reference.rms_norm(x, weight, EPS))

    own, own_sum = reference.add_rms_norm(x, residual, weight, EPS)
    exact = reference.rms_norm(own_sum.double(), weight.double(), EPS)
    x_before, updated = x.clone(), guarded(residual)
    with poisoned_outputs(rms_norm):
        out, returned = rms_norm.add_rms_norm(x, updated, weight, EPS)
    assert returned is updated
    assert torch.equal(updated, own_sum)
    assert torch.equal(x, x_before)
    assert_guards(updated)
    assert_contract(out, exact, own)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    "hidden",
    [
        1,  # nothing but the sign and the weight is left
        2,
        127,  # one below a power of two, and rows that no wide load can start at
        128,  # a head: less than one load for each thread
        129,  # one above: nearly half of the tile is masked
        768,  # an expert's size, not a power of two
        1024,  # 2 warps on a GPU, as up to here from 1,025 on 4, then 8 and 16
        2048,  # Qwen3-30B-A3B
        4096,  # Qwen3-235B-A22B
        5120,  # Qwen3-32B, not a power of two
        8191,  # largest odd size
        8192,  # largest size
    ],
)
def test_rms_norm_hidden_sizes(hidden: int, dtype: torch.dtype) -> None:
    check_both(3, hidden, dtype=dtype)


# Rows are programs: none may depend on how many there are.
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 17, 65, *slow(129, 1023)])
def test_rms_norm_rows(rows: int) -> None:
    check_both(rows, 96, dtype=torch.bfloat16)


def test_rms_norm_leading_dimensions() -> None:
    check_both(2, 3, 5, 64, dtype=torch.float16)


def test_rms_norm_no_rows() -> None:
    x, residual, weight = inputs(0, 64, dtype=torch.float32)
    assert rms_norm.rms_norm(x, weight, EPS).shape == (0, 64)
    assert rms_norm.add_rms_norm(x, residual, weight, EPS)[0].shape == (0, 64)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 6e4], ids=["zeros", "eps outweighs the mean", "squares overflow float16"])
def test_rms_norm_magnitudes(scale: float, dtype: torch.dtype) -> None:
    x, _, weight = inputs(2, 256, dtype=torch.float32)
    x, weight = (x.clamp(-1, 1) * scale).to(dtype), weight.to(dtype)
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    assert_contract(rms_norm.rms_norm(x, weight, EPS), exact, reference.rms_norm(x, weight, EPS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rms_norm_rounds_where_hugging_face_does(dtype: torch.dtype) -> None:
    """Rounded once more before the weight: without it a fifth of the values comes out different."""
    x, residual, weight = inputs(16, 512, dtype=dtype)
    same = rms_norm.rms_norm(x, weight, EPS) == reference.rms_norm(x, weight, EPS)
    assert same.double().mean() > 0.995
    own = reference.add_rms_norm(x, residual, weight, EPS)[0]
    same = rms_norm.add_rms_norm(x, residual, weight, EPS)[0] == own
    assert same.double().mean() > 0.995


def test_rms_norm_a_row_is_the_same_alone_and_again() -> None:
    x, residual, weight = inputs(9, 160, dtype=torch.bfloat16)
    out = rms_norm.rms_norm(x, weight, EPS)
    added, total = rms_norm.add_rms_norm(x, residual.clone(), weight, EPS)
    again, total_again = rms_norm.add_rms_norm(x, residual.clone(), weight, EPS)
    assert torch.equal(added, again) and torch.equal(total, total_again)
    assert torch.equal(out, rms_norm.rms_norm(x, weight, EPS))
    assert torch.equal(out[4:5], rms_norm.rms_norm(x[4:5], weight, EPS))
    assert torch.equal(added[4:5], rms_norm.add_rms_norm(x[4:5], residual[4:5].clone(), weight, EPS)[0])


@pytest.mark.slow
@examples(25)
@given(
    rows=st.integers(1, 4),
    hidden=st.integers(1, 700),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_rms_norm_any_shape(rows: int, hidden: int, dtype: torch.dtype, seed: int) -> None:
    check_both(rows, hidden, dtype=dtype, seed=seed)


def refused(message: str):
    return pytest.raises(ValueError, match=message)


def test_rms_norm_refusals_say_what_they_got() -> None:
    x, residual, weight = inputs(4, 64, dtype=torch.float32)
    with refused(r"x must be .* contiguous memory, got .* strides \[64, 2\]"):
        rms_norm.rms_norm(x[:, ::2], weight[:32], EPS)
    with refused(r"x must be float32, float16 or bfloat16 \[..., H\] .*, got float64 \[4, 64\]"):
        rms_norm.rms_norm(x.double(), weight.double(), EPS)
    with refused(r"x must have 1 to 8192 columns, got \[1, 8193\]"):
        rms_norm.rms_norm(torch.zeros(1, 8193, device=DEVICE), torch.zeros(8193, device=DEVICE), EPS)
    with refused(r"weight must be float32 \[64\] on .*, got float32 \[63\]"):
        rms_norm.rms_norm(x, weight[:63], EPS)
    with refused("weight must be .*, got bfloat16"):
        rms_norm.rms_norm(x, weight.bfloat16(), EPS)
    with refused(r"weight must be .* contiguous memory, got .* strides \[2\]"):
        rms_norm.rms_norm(x, weight.repeat(2)[::2], EPS)
    with refused(r"residual must be float32 \[4, 64\] .*, got float32 \[3, 64\]"):
        rms_norm.add_rms_norm(x, residual[:3], weight, EPS)
    with refused("residual must be .*, got float16"):
        rms_norm.add_rms_norm(x, residual.half(), weight, EPS)
    with refused(r"residual must be .* contiguous memory, got .* strides \[1, 4\]"):
        rms_norm.add_rms_norm(x, residual.t().contiguous().t(), weight, EPS)
