"""route against the reference."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen3_kernels import reference
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.moe import route as module
from qwen3_kernels.moe.route import route
from qwen3_kernels.testing.contract import assert_contract, poisoned_outputs

from .parameters import EVERY_DTYPE, examples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INFINITY = float("inf")


def logits_of(tokens: int, experts: int, dtype: torch.dtype, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, experts, generator=generator) * scale).to(dtype).to(DEVICE)


def check_route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights within the contract, and the experts those of the largest logits, the lowest id first of equals."""
    before = logits.clone()
    with poisoned_outputs(module):
        weights, expert_ids = route(logits, top_k, renormalize)
    assert torch.equal(logits, before)
    assert expert_ids.dtype == torch.int64
    assert torch.equal(expert_ids, logits.sort(dim=-1, descending=True, stable=True).indices[:, :top_k])
    exact, _ = reference.route(logits.double(), top_k, renormalize)
    own, _ = reference.route(logits, top_k, renormalize)
    assert_contract(weights, exact, own)
    return weights, expert_ids


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    ("experts", "top_k"),
    [
        (4, 1),  # fewest experts; one choice, whose renormalized weight is 1
        (4, 4),  # every expert is chosen
        (5, 3),  # neither is a power of two: both tiles are masked
        (16, 16),  # most choices, and all of them
        (60, 4),  # another family's size, above a warp and not a power of two
        (128, 8),  # Qwen3-30B-A3B and 235B-A22B
        (512, 10),  # most experts, 16 in each lane
    ],
)
def test_route_experts_and_choices(experts: int, top_k: int, renormalize: bool, dtype: torch.dtype) -> None:
    check_route(logits_of(3, experts, dtype), top_k, renormalize)


# A program is a token: none may depend on how many there are.
@pytest.mark.parametrize("tokens", [1, 2, 17, 33])
def test_route_tokens(tokens: int) -> None:
    check_route(logits_of(tokens, 8, torch.bfloat16), 2, True)


@pytest.mark.parametrize("renormalize", [True, False])
def test_weights_are_rounded_once(renormalize: bool) -> None:
    """Rounded once more than the reference's a third of them comes out different."""
    logits = logits_of(25, 128, torch.bfloat16)
    weights, _ = check_route(logits, 8, renormalize)
    same = weights == reference.route(logits, 8, renormalize)[0]
    assert same.double().mean() > 0.98


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_all_negative_logits(dtype: torch.dtype) -> None:
    """The lanes beyond the last expert must not win with a zero."""
    check_route(-10 - logits_of(4, 5, dtype).abs(), 5, False)


@pytest.mark.parametrize("dtype", EVERY_DTYPE)
def test_equal_logits(dtype: torch.dtype) -> None:
    """All experts tie: any choice has the right weights, ours is the lowest ids."""
    weights, expert_ids = check_route(torch.full((2, 6), -3.0, dtype=dtype, device=DEVICE), 3, True)
    assert expert_ids.tolist() == [[0, 1, 2]] * 2
    assert weights.unique().numel() == 1


@pytest.mark.parametrize("descending", [True, False])
def test_the_larger_logit_wins_where_rounded_probabilities_are_equal(descending: bool) -> None:
    """Six logits an ulp apart: probabilities in bfloat16 would all be the same."""
    logits = (2.0**-5 + torch.arange(6) * 2.0**-12).bfloat16()[None].to(DEVICE)
    logits = logits.flip(1) if descending else logits
    weights, expert_ids = check_route(logits, 3, False)
    assert weights.unique().numel() == 1
    assert expert_ids.tolist() == [[0, 1, 2] if descending else [5, 4, 3]]


def test_signs_and_extremes_are_ordered() -> None:
    """The order of floats is taken from their bits: across zero, among denormals, at the largest of either sign."""
    row = [0.0, -1e-40, 1e-40, -1.0, 1.0, 1e38, -1e38, 1e-45]
    _, expert_ids = route(torch.tensor([row], device=DEVICE), 8, True)
    assert expert_ids.tolist() == [sorted(range(8), key=lambda i: -row[i])]


@pytest.mark.parametrize("renormalize", [True, False])
def test_infinitely_negative_logits(renormalize: bool) -> None:
    """An expert at -inf has weight 0 and is chosen only when no other is left."""
    logits = torch.tensor([[-INFINITY, 1.0, -INFINITY, -2.0, 0.5], [-INFINITY] * 4 + [7.0]], device=DEVICE)
    weights, expert_ids = check_route(logits, 4, renormalize)
    assert expert_ids.tolist() == [[1, 4, 3, 0], [4, 0, 1, 2]]
    assert weights[0, 3] == 0 and weights[1].tolist() == [1, 0, 0, 0]


def test_far_apart_logits() -> None:
    """Probabilities that vanish in float32 still leave the experts in the order of their logits."""
    check_route(torch.tensor([[-300.0, 200.0, -200.0, 0.0, -250.0]], device=DEVICE), 4, True)


def test_nan_is_not_hidden() -> None:
    logits = logits_of(2, 8, torch.float32)
    logits[1, 3] = float("nan")
    weights, _ = route(logits, 2, True)
    assert weights[0].isfinite().all() and weights[1].isnan().all()


def test_negative_nan_gives_real_experts() -> None:
    """Its bits sort below -inf, which the lanes beyond the last expert hold."""
    nan = torch.full((1, 5), float("nan"), device=DEVICE).copysign(torch.tensor(-1.0))
    weights, expert_ids = route(nan, 3, True)
    assert expert_ids.tolist() == [[0, 1, 2]] and weights.isnan().all()


def test_rows_of_a_wider_matrix() -> None:
    check_route(logits_of(5, 20, torch.float16)[:, 3:11], 3, True)


def test_route_repeats_bit_by_bit() -> None:
    logits = logits_of(9, 16, torch.float32)
    first, second = route(logits, 4, True), route(logits, 4, True)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.slow
@examples(15)
@given(st.data())
def test_route_any_shape(data: st.DataObject) -> None:
    """Not in float32: the reference's own error, rounding alone, can be almost nothing on so few values."""
    tokens, experts = data.draw(st.integers(1, 4)), data.draw(st.integers(4, 40))
    logits = logits_of(tokens, experts, data.draw(st.sampled_from(DTYPES[1:])), data.draw(st.integers(0, 99)), 4.0)
    check_route(logits, data.draw(st.integers(1, min(experts, 16))), data.draw(st.booleans()))


def test_route_no_tokens() -> None:
    weights, expert_ids = route(torch.empty(0, 8, device=DEVICE), 2, True)
    assert weights.shape == expert_ids.shape == (0, 2)


@pytest.mark.parametrize(
    ("logits", "top_k", "says"),
    [
        (torch.zeros(2, 8).t(), 1, "strides"),
        (torch.zeros(8), 1, r"router_logits must be .* \[T, E\] .*, got float32 \[8\]"),
        (torch.zeros(2, 8, dtype=torch.float64), 1, "float64"),
        (torch.zeros(2, 8), 9, "top_k=9"),
        (torch.zeros(2, 8), 0, "top_k=0"),
        (torch.zeros(2, 32), 17, "top_k=17"),
        (torch.zeros(2, 513), 1, "experts=513"),
    ],
)
def test_route_refuses(logits: torch.Tensor, top_k: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        route(logits, top_k, True)
