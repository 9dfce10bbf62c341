"""linear and add_norm_linear against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import linear as package
from qwen3_kernels import reference, rms_norm
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.linear import MAX_TOKENS, add_norm_linear, dense, linear, matrix, vector
from qwen3_kernels.testing.contract import assert_contract, assert_guards, guarded, poisoned_outputs
from qwen3_kernels.weights import Dense

from .parameters import EVERY_DTYPE, examples, slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


class Inputs:
    """Everything that the two ops take, of one dtype, guarded by NaN; `double()` is the same values in float64."""

    def __init__(self, tokens: int, outputs: int, hidden: int, dtype: torch.dtype, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        self.tensors = {
            "x": normal(tokens, hidden),
            "residual": normal(tokens, hidden) * 2,
            "norm_weight": 1 + normal(hidden) / 4,
            "weight": normal(outputs, hidden) / hidden**0.5,
            "bias": normal(outputs),
        }
        self.tensors = {name: guarded(t.to(dtype).to(DEVICE)) for name, t in self.tensors.items()}

    def linear(self, bias: bool, wide: bool = False) -> tuple:
        return self._of(("x", "weight", "bias" if bias else None), wide)

    def add_norm_linear(self, residual: bool, bias: bool, wide: bool = False) -> tuple:
        x, residual, norm_weight = self._of(("x", "residual" if residual else None, "norm_weight"), wide)
        return x, residual, norm_weight, EPS, *self._of(("weight", "bias" if bias else None), wide)

    def _of(self, names: tuple, wide: bool) -> tuple:
        tensors = {name: t.double() if wide else t for name, t in self.tensors.items()}
        return tuple(Dense(tensors[name]) if name == "weight" else tensors.get(name) for name in names)


def magnitude(dtype: torch.dtype, x: torch.Tensor, weight: Dense, bias: torch.Tensor | None) -> float:
    """The largest sum of magnitudes behind an output, where there are so few that cancellation may hit them all.

    Only in float32: in a narrower dtype both sides sum in float32, and what counts is the rounding of the result.
    """
    if dtype != torch.float32 or x.shape[0] * weight.shape[0] > 64:
        return 0.0
    return float(reference.linear(x.abs(), Dense(weight.data.abs()), None if bias is None else bias.abs()).max())


def check_linear(*shape: int, dtype: torch.dtype, bias: bool = True, seed: int = 0) -> None:
    inputs = Inputs(*shape, dtype, seed)
    exact = reference.linear(*inputs.linear(bias, wide=True))
    with poisoned_outputs(dense):
        out = linear(*inputs.linear(bias))
    assert_contract(
        out, exact, reference.linear(*inputs.linear(bias)), magnitude(dtype, *inputs.linear(bias, wide=True))
    )


def check_fused(*shape: int, dtype: torch.dtype, residual: bool = True, bias: bool = True, seed: int = 0) -> None:
    inputs = Inputs(*shape, dtype, seed)
    own, own_total, own_normed = reference.add_norm_linear(*inputs.add_norm_linear(residual, bias))
    # The norm is of the sum as it is rounded: the exact values are those of the rounded sum too.
    _, _, norm_weight, eps, *projection = inputs.add_norm_linear(residual, bias, wide=True)
    exact, _, exact_normed = reference.add_norm_linear(own_total.double(), None, norm_weight, eps, *projection)
    before = {name: t.clone() for name, t in inputs.tensors.items()}
    with poisoned_outputs(package, dense, rms_norm):
        out, total, normed = add_norm_linear(*inputs.add_norm_linear(residual, bias))
    assert_contract(out, exact, own, magnitude(dtype, exact_normed, *projection))
    assert_contract(normed, exact_normed, own_normed)
    assert torch.equal(total, own_total)
    for name, tensor in inputs.tensors.items():
        assert_guards(tensor)
        assert torch.equal(tensor, before[name]) or (name == "residual" and total is tensor)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize(
    "tokens",
    [
        1,  # the vector kernel
        2,  # fewest of the matrix kernel, or, in float32, of several in the vector kernel
        3,
        7,  # one masked token
        8,  # MAX_TOKENS: no token is masked
        9,  # torch's matmul
        17,
    ],
)
def test_linear_tokens(tokens: int, dtype: torch.dtype) -> None:
    check_linear(tokens, 40, 72, dtype=dtype)
    check_fused(tokens, 40, 72, dtype=dtype)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(
    ("outputs", "hidden"),
    [
        (1, 1),  # nothing but one product
        (5, 8),  # a single wide load, less than the smallest tensor-core instruction
        (17, 127),  # rows that no wide load can start at, nearly all of the tile
        *slow(
            (16, 128),  # exactly the outputs of a program of either kernel, and a power of two
            (15, 129),  # one output less, one column more
        ),
        (33, 256),  # exactly one step of columns of the matrix kernel, three programs
        (20, 520),  # three steps, the last one nearly empty
        (6, 2048),  # Qwen3-30B-A3B
        *slow((3, 5120)),  # Qwen3-32B, not a power of two
    ],
)
def test_linear_sizes(outputs: int, hidden: int, tokens: int, dtype: torch.dtype) -> None:
    check_linear(tokens, outputs, hidden, dtype=dtype, bias=False)
    check_fused(tokens, outputs, hidden, dtype=dtype, bias=False)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("tile", vector.TILES)
# Outputs around what one program owns, and two tiles around what two do.
@pytest.mark.parametrize("more", [*slow(-1, 0), 1])
def test_every_vector_tile(tile, more: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "TILES", (tile._replace(limit=float("inf")),))
    check_linear(1, 16 * tile.steps + more, 24, dtype=dtype)
    check_fused(1, max(1, 2 * tile.elements * tile.steps // 2048 + more), 2000, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", matrix.TILES)
# Outputs around what one program owns, columns around two steps.
@pytest.mark.parametrize("more", [*slow(-1, 0), 1])
def test_every_matrix_tile(tile, more: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "TILES", (tile._replace(limit=float("inf")),))
    hidden = 2 * tile.row_bytes // dtype.itemsize + 8 * more
    check_linear(4, tile.block_n + more, hidden, dtype=dtype)
    check_fused(4, tile.block_n + more, hidden, dtype=dtype)


@pytest.mark.parametrize(("tokens", "outputs"), [(8, 144), *slow((1, 1024), (2, 2048))])
def test_linear_at_the_depth_of_real_models(tokens: int, outputs: int) -> None:
    """So many outputs of so many columns that one rounding more would show: sums are kept in float32."""
    check_linear(tokens, outputs, 4096, dtype=torch.bfloat16)
    check_fused(tokens, outputs, 4096, dtype=torch.bfloat16)


@pytest.mark.parametrize("tokens", [1, 4, 12])
def test_before_the_first_layer(tokens: int) -> None:
    """Nothing to add: x itself is the residual that is returned."""
    check_fused(tokens, 24, 64, dtype=torch.bfloat16, residual=False)
    arguments = Inputs(tokens, 24, 64, torch.bfloat16).add_norm_linear(residual=False, bias=False)
    assert add_norm_linear(*arguments)[1] is arguments[0]


def test_linear_no_tokens() -> None:
    inputs = Inputs(0, 5, 16, torch.float32)
    assert linear(*inputs.linear(bias=True)).shape == (0, 5)
    shapes = [t.shape for t in add_norm_linear(*inputs.add_norm_linear(residual=True, bias=True))]
    assert shapes == [(0, 5), (0, 16), (0, 16)]


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("tokens", [1, 3])
def test_linear_rows_longer_than_a_program_can_hold(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would take the vector kernel then takes the other one, which walks the columns."""
    monkeypatch.setattr(vector, "MAX_COLUMNS", 64)
    check_linear(tokens, 20, 72, dtype=dtype)
    check_fused(tokens, 20, 72, dtype=dtype)


@pytest.mark.parametrize("tokens", [2, 8])
def test_many_outputs_of_several_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is then a launch of its own, which writes the sum over the residual."""
    monkeypatch.setattr(package, "MAX_FUSED_OUTPUTS", 10)
    check_fused(tokens, 20, 72, dtype=torch.bfloat16)


@pytest.mark.parametrize(("outputs", "launches"), [(20, 1), (21, 2)])
def test_the_most_outputs_of_one_launch(outputs: int, launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several tokens; a launch of the norm alone writes the sum over the residual."""
    monkeypatch.setattr(package, "MAX_FUSED_OUTPUTS", 20)
    x, residual, *rest = Inputs(2, outputs, 32, torch.bfloat16).add_norm_linear(True, False)
    assert (add_norm_linear(x, residual, *rest)[1] is residual) == (launches == 2)


class Launches:
    """Stands for a kernel and counts its launches."""

    def __init__(self, kernel) -> None:
        self.kernel, self.count = kernel, 0

    def __getitem__(self, grid):
        self.count += 1
        return self.kernel[grid]


@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_linear_one_launch(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [
        (vector, "linear_vector_kernel"),
        (matrix, "linear_matrix_kernel"),
        (rms_norm, "rms_norm_kernel"),
        (rms_norm, "add_rms_norm_kernel"),
    ]
    counters = [Launches(getattr(owner, name)) for owner, name in kernels]
    for (owner, name), counter in zip(kernels, counters):
        monkeypatch.setattr(owner, name, counter)
    add_norm_linear(*Inputs(tokens, 24, 32, torch.bfloat16).add_norm_linear(residual=True, bias=False))
    assert [c.count for c in counters] == [int(tokens == 1), int(tokens > 1), 0, 0]


@pytest.mark.parametrize("tokens", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_rounds_where_hugging_face_does(dtype: torch.dtype, tokens: int) -> None:
    """Rounded once more before the weight: without it a fifth of the normalized values comes out different."""
    arguments = Inputs(tokens, 8, 1024, dtype).add_norm_linear(residual=True, bias=False)
    same = add_norm_linear(*arguments)[2] == reference.add_norm_linear(*arguments)[2]
    assert same.double().mean() > 0.995


@pytest.mark.parametrize("tokens", [1, 8])
def test_zeros_give_the_bias(tokens: int) -> None:
    inputs = Inputs(tokens, 20, 48, torch.bfloat16)
    x, residual, norm_weight, eps, weight, bias = inputs.add_norm_linear(residual=True, bias=True)
    out, total, normed = add_norm_linear(x.zero_(), residual.zero_(), norm_weight, eps, weight, bias)
    assert torch.equal(out, bias.expand(tokens, -1)) and not total.any() and not normed.any()


@pytest.mark.parametrize("tokens", [1, 8])
def test_linear_repeats_bit_by_bit(tokens: int) -> None:
    arguments = Inputs(tokens, 50, 300, torch.bfloat16).add_norm_linear(residual=True, bias=True)
    first, second = add_norm_linear(*arguments), add_norm_linear(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize(("dtype", "alone"), [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 2)])
def test_linear_token_does_not_depend_on_the_batch(dtype: torch.dtype, alone: int) -> None:
    """In float32 to the last bit from one token on; of 16-bit types from two on, which are of one kernel."""
    x, residual, norm_weight, eps, weight, _ = Inputs(8, 30, 280, dtype).add_norm_linear(True, False)
    together = add_norm_linear(x, residual, norm_weight, eps, weight)
    some = slice(3, 3 + alone)
    apart = add_norm_linear(x[some].clone(), residual[some].clone(), norm_weight, eps, weight)
    assert all(torch.equal(a[some], b) for a, b in zip(together, apart))


@pytest.mark.slow
@examples(20)
@given(
    tokens=st.integers(1, MAX_TOKENS + 2),
    outputs=st.integers(1, 50),
    hidden=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    residual=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_linear_any_shape(
    tokens: int, outputs: int, hidden: int, dtype: torch.dtype, residual: bool, bias: bool, seed: int
) -> None:
    check_linear(tokens, outputs, hidden, dtype=dtype, bias=bias, seed=seed)
    check_fused(tokens, outputs, hidden, dtype=dtype, residual=residual, bias=bias, seed=seed)


def refused(message: str):
    return pytest.raises(ValueError, match=message)


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_linear_refusals_say_what_they_got(tokens: int) -> None:
    x, residual, norm_weight, eps, weight, bias = Inputs(tokens, 6, 64, torch.float32).add_norm_linear(True, True)
    with refused("x must be float32, float16 or bfloat16 .*, got float64"):
        linear(x.double(), Dense(weight.data.double()))
    with refused(rf"x must be .* \[T, H\] .*, got float32 \[{tokens}, 8, 8\]"):
        linear(x.view(tokens, 8, 8), weight)
    with refused(r"x must be .* contiguous memory, got .* strides \[64, 2\]"):
        linear(x[:, ::2], Dense(weight.data[:, :32].contiguous()))
    with refused(r"weight must be float32 \[N, 64\] .*, got float32 \[64\]"):
        linear(x, Dense(weight.data[0]))
    with refused(r"weight must be float32 \[N, 64\] on .*, got float32 \[6, 63\]"):
        linear(x, Dense(weight.data[:, :63]))
    with refused(r"weight must have rows and columns, got \[0, 64\]"):
        linear(x, Dense(weight.data[:0]))
    with refused("weight must be .*, got bfloat16"):
        linear(x, Dense(weight.data.bfloat16()))
    with refused(r"weight must be .* contiguous memory, got .* strides \[1, 6\]"):
        linear(x, Dense(weight.data.t().contiguous().t()))
    with refused(r"bias must be float32 \[6\] on .*, got float32 \[5\]"):
        linear(x, weight, bias[:5])
    with refused(r"norm_weight must be float32 \[64\] on .*, got float32 \[63\]"):
        add_norm_linear(x, residual, norm_weight[:63], eps, weight)
    with refused("residual must be float32 .*, got float16"):
        add_norm_linear(x, residual.half(), norm_weight, eps, weight)
    with refused(r"residual must be .* contiguous memory, got .* strides \[128, 2\]"):
        add_norm_linear(x, residual.repeat(1, 2)[:, ::2], norm_weight, eps, weight)
    with refused(rf"x must have at most 8192 columns, got \[{tokens}, 8193\]"):
        wide = torch.zeros(tokens, 8193, device=DEVICE)
        add_norm_linear(wide, None, wide[0], eps, Dense(wide[:1]))
