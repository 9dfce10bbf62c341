"""sample against the reference: random numbers, thresholds, tokens, and every path through the kernel."""

import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_kernels import cpu, philox, reference, sampling
from qwen3_kernels.ops import NO_TOKEN, Ops
from qwen3_kernels.sampling import sample
from qwen3_kernels.testing.contract import poisoned_outputs

from .parameters import slow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INFINITY = math.inf
BACKENDS = [sampling, cpu, reference]

# Positions at which the random number of seed 0 is 1.2e-7 and 1 - 1.2e-7.
LOWEST, HIGHEST = 1_767_245, 4_826_271


def parameters(rows: int, vocabulary: int, **given: float | list) -> dict[str, torch.Tensor]:
    """All parameters of `rows` rows; what is not given filters nothing, and every row has its own position."""
    values = {"temperature": 1.0, "top_k": vocabulary, "top_p": 1.0, "min_p": 0.0, "seeds": 0, "positions": range(rows)}
    integers = ("top_k", "seeds", "positions")
    tensors = {}
    for name, value in (values | given).items():
        value = [value] * rows if isinstance(value, int | float) else list(value)
        tensors[name] = torch.tensor(value, dtype=torch.int64 if name in integers else torch.float32, device=DEVICE)
    return tensors


def normal(*shape: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def check(logits: torch.Tensor, **given: float | list) -> torch.Tensor:
    """The tokens are those of the reference."""
    arguments = parameters(*logits.shape, **given)
    before = logits.clone()
    with poisoned_outputs(sampling):
        tokens = sample(logits, **arguments)
    assert tokens.dtype == torch.int64 and torch.equal(logits, before)
    assert tokens.tolist() == reference.sample(logits, **arguments).tolist()
    return tokens


@pytest.fixture(params=["narrow", *slow("one block", "blocks", "whole row")])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows and candidates in one block; in several; so few candidates that the cut must be close; no candidates."""
    sizes = {"one block": (256, 256, 256), "blocks": (64, 128, 16), "narrow": (64, 24, 16), "whole row": (64, 0, 16)}
    for name, size in zip(("BLOCK", "CAPACITY", "CANDIDATES_BLOCK"), sizes[request.param]):
        monkeypatch.setattr(sampling, name, size)
    return request.param


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 64)
    monkeypatch.setattr(sampling, "CANDIDATES_BLOCK", 32)


# Random numbers.


@triton.jit
def uniform_kernel(words_ptr, uniform_ptr, seeds_ptr, positions_ptr, n, BLOCK: tl.constexpr):
    """words [4, n] int64 of Philox and uniform [n] for seeds and positions [n]."""
    index = tl.arange(0, BLOCK)
    seed = tl.load(seeds_ptr + index, mask=index < n, other=0)
    position = tl.load(positions_ptr + index, mask=index < n, other=0)
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, low * 0, low * 0)
    tl.store(words_ptr + index, w0.to(tl.int64), mask=index < n)
    tl.store(words_ptr + n + index, w1.to(tl.int64), mask=index < n)
    tl.store(words_ptr + 2 * n + index, w2.to(tl.int64), mask=index < n)
    tl.store(words_ptr + 3 * n + index, w3.to(tl.int64), mask=index < n)
    tl.store(uniform_ptr + index, sampling._uniform(seed, position), mask=index < n)


def test_random_numbers_are_those_of_the_reference() -> None:
    """All four words: of small and large numbers of either sign, so that all 64 bits of both count."""
    special = [0, 1, -1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63)]
    grid = [(a, b) for a in special for b in special]
    seeds, positions = torch.tensor(grid, device=DEVICE).t().contiguous()
    words, uniform = torch.empty(4, 64, dtype=torch.int64, device=DEVICE), torch.empty(64, device=DEVICE)
    uniform_kernel[(1,)](words, uniform, seeds, positions, 64, 64)
    mask, zero = 0xFFFFFFFF, torch.zeros_like(seeds)
    counter = positions & mask, (positions >> 32) & mask, zero, zero
    assert torch.equal(words, torch.stack(philox.philox(counter, (seeds & mask, (seeds >> 32) & mask))))
    assert torch.equal(uniform, philox.uniform(seeds, positions))
    assert uniform.unique().numel() == 64


# Greedy.


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 300])  # a single token; around a block; several blocks
def test_greedy(vocabulary: int, small: None) -> None:
    check(normal(3, vocabulary), temperature=0)


def test_greedy_takes_the_first_of_the_best(small: None) -> None:
    logits = torch.full((3, 300), -2.0, device=DEVICE)
    logits[1, [290, 70, 134]] = 5.0
    logits[2] = -INFINITY
    logits[2, 299] = -1e30
    assert check(logits, temperature=0).tolist() == [0, 70, 299]


# Thresholds. In an ascending row the lowest random number picks the first token that is kept: the threshold.


def check_threshold(row: list[float] | torch.Tensor, **given: float) -> int:
    logits = torch.as_tensor(row, device=DEVICE).float().sort().values[None]
    return int(check(logits, positions=[LOWEST], **given))


def test_extreme_random_numbers() -> None:
    numbers = philox.uniform(torch.zeros(2, dtype=torch.int64), torch.tensor([LOWEST, HIGHEST]))
    assert numbers[0] < 2e-7 and numbers[1] > 1 - 2e-7


@pytest.mark.parametrize(
    "filters",
    [
        {},  # nothing: the least likely token
        {"top_k": 1},  # the best alone
        {"top_k": 2},
        {"top_k": 20},
        {"top_k": 199},  # all but one
        {"top_k": 1000},  # more than there are
        {"top_p": 0.0},  # the best always stays
        {"top_p": 0.5},
        {"top_p": 0.99},
        {"top_k": 20, "top_p": 0.8},  # Qwen3 without thinking
        {"top_k": 20, "top_p": 0.95, "temperature": 0.6},  # and with it
        {"min_p": 0.05},
        {"min_p": 1.0},  # only what equals the best
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02},  # the three bite in this order
        {"top_k": 150, "top_p": 0.999, "min_p": 0.2},  # and in the reverse order
        {"min_p": 0.3, "temperature": 2.5},  # which is a probability after the temperature
    ],
    ids=str,
)
def test_thresholds(filters: dict, path: str) -> None:
    check_threshold(normal(200, scale=1.5), **filters)


@pytest.mark.parametrize("filters", [{"top_k": 4}, {"top_p": 0.7}, {"top_k": 6, "top_p": 0.7}], ids=str)
@pytest.mark.parametrize(
    "row",
    [
        [-1e4, -900.0, -70.0, -50.0, -1.0, 0.0, 1.0, 300.0],  # far apart: the cutoff is looked for outwards
        [1e-40, -1e-40, 0.0, -1e-45, 1e-45, 2e-40, 1e-38, -1e-38],  # denormals of either sign: weights that are all one
        [-3.0, -3.5, -4.0, -4.5, -5.0, -5.5, -6.0, -3.25],  # all negative
        [-INFINITY, -INFINITY, -INFINITY, 1.0, 2.0, 2.5, 3.0, 0.5],  # tokens that may not be sampled
        [1.6e38, 1.5e38, -1.6e38, 0.0, 1.4e38, 1.0, 2.0, 3.0],  # whose differences are just not infinite
    ],
    ids=["far apart", "denormal", "negative", "forbidden", "huge"],
)
def test_thresholds_of_odd_rows(row: list[float], filters: dict, path: str) -> None:
    check_threshold(row, **filters)


@pytest.mark.parametrize(
    ("filters", "kept"),
    [({"top_k": 1}, 3), ({"top_k": 4}, 7), ({"top_p": 0.1}, 3), ({"top_k": 5, "top_p": 0.99}, 7), ({"min_p": 0.9}, 3)],
    ids=str,
)
def test_equal_logits_stay_or_go_together(filters: dict, kept: int, path: str) -> None:
    """Three at 2, four at 1, fifty at -1."""
    row = [2.0] * 3 + [1.0] * 4 + [-1.0] * 50
    assert check_threshold(row, **filters) == len(row) - kept


@pytest.mark.parametrize(("top_p", "kept"), [(0.45, 1), (0.55, 11)])
def test_top_p_is_of_no_more_than_top_k_tokens(top_p: float, kept: int, path: str) -> None:
    """Ten tokens tie, half as likely as the best; two of them count in a top-k of three, whose half the best is."""
    row = [math.log(2)] + [0.0] * 10
    assert check_threshold(row, top_k=3, top_p=top_p) == len(row) - kept


def test_zeros_of_either_sign_are_equal(path: str) -> None:
    row = torch.tensor([[-0.0, 0.0, -0.0, 0.0, -1.0, -2.0]], device=DEVICE)
    for filters in ({"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}):
        assert check(row, positions=[LOWEST], **filters).tolist() == [0]
        assert check(row, positions=[HIGHEST], **filters).tolist() == [3]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_thresholds(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(1, 200))
    row = normal(vocabulary, scale=data.draw(st.sampled_from([0.01, 1.0, 10.0])), seed=data.draw(st.integers(0, 99)))
    given = {
        "top_k": data.draw(st.integers(1, vocabulary + 1)),
        "top_p": data.draw(st.sampled_from([0.013, 0.31, 0.87, 0.997, 1.0])),
        "min_p": data.draw(st.sampled_from([0.0, 0.0013, 0.17])),
        "temperature": data.draw(st.sampled_from([0.3, 1.0, 2.5])),
    }
    # The rarest token must be likelier than the lowest random number.
    assert check_threshold(row.clamp(row.max() - 3 * given["temperature"]), **given) >= 0


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.split(".")[-1])
def test_top_p_that_is_reached_exactly_keeps_nothing_more(backend: Ops) -> None:
    """Weights of 1, 1/2, 1/2, exact in float32: the first token alone holds half of the probability."""
    logits = torch.tensor([[0.0, -math.log(2), -math.log(2)]] * 2, device=DEVICE)
    for top_p, tokens in ((0.5, [0, 0]), (0.501, [0, 2])):
        given = parameters(2, 3, top_p=top_p, positions=[LOWEST, HIGHEST])
        assert backend.sample(logits, **given).tolist() == tokens


# Rows from which nothing can be sampled.


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.split(".")[-1])
def test_a_row_that_is_not_finite_gives_no_token(backend: Ops, small: None) -> None:
    """Wherever in the row it is, whatever is asked for; the rows beside it are sampled as ever."""
    good = normal(1, 150)
    # Around a block of 64.
    bad = [(place, value) for place in (0, 63, 64, 149) for value in (math.nan, -math.nan, INFINITY)]
    rows = good.repeat(len(bad) + 3, 1)
    for row, (place, value) in enumerate(bad, 1):
        rows[row, place] = value
    rows[-2] = -INFINITY
    rows[len(bad), 20] = -INFINITY  # infinities of both signs
    for filters in ({"temperature": 0.0}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.8}):
        [alone] = backend.sample(good, **parameters(1, 150, positions=[7], **filters)).tolist()
        given = parameters(len(rows), 150, positions=[7] * len(rows), **filters)
        assert backend.sample(rows, **given).tolist() == [alone, *[NO_TOKEN] * (len(rows) - 2), alone], filters


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.__name__.split(".")[-1])
def test_a_greedy_row_beside_sampled_ones_that_are_not_finite(backend: Ops, small: None) -> None:
    logits = normal(4, 100)
    logits[1:3, 99] = math.nan
    tokens = backend.sample(logits, **parameters(4, 100, temperature=[0.0, 0.0, 1.0, 1.0], top_k=[100, 3, 3, 1]))
    assert tokens.tolist() == [int(logits[0].argmax()), NO_TOKEN, NO_TOKEN, int(logits[3].argmax())]


# Tokens.


def test_sample_rows_of_all_kinds(path: str) -> None:
    """Rows of all kinds side by side, in the order of the ids."""
    kinds = {
        "temperature": [0.0, 1.0, 0.7, 0.6, 1.3, 2.0],
        "top_k": [150, 150, 20, 150, 50, 150],
        "top_p": [1.0, 1.0, 1.0, 0.9, 0.95, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.0, 0.05],
    }
    given = {name: values * 2 for name, values in kinds.items()}
    check(normal(12, 150, scale=2.0), seeds=[7, -(2**40), 2**62] * 4, **given)


@pytest.mark.slow
def test_frequencies_are_the_probabilities(small: None) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -INFINITY, 1.5], device=DEVICE)
    count = 300
    tokens = check(logits.expand(count, -1).contiguous(), temperature=0.8)
    expected = (logits / 0.8).softmax(-1)
    error = (tokens.bincount(minlength=6) / count - expected).abs()
    # Four standard deviations.
    assert bool((error <= 4 * (expected * (1 - expected) / count).sqrt()).all())


def test_a_forbidden_token_is_never_sampled(small: None) -> None:
    """Neither by the lowest nor by the highest random number, where the running sums are flat."""
    logits = torch.full((2, 200), -INFINITY, device=DEVICE)
    logits[:, 60:140] = normal(80, scale=1.0)
    assert check(logits, positions=[LOWEST, HIGHEST]).tolist() == [60, 139]


@pytest.mark.slow
def test_sample_a_row_is_the_same_alone_and_again(small: None) -> None:
    logits = normal(2, 60)
    arguments = parameters(2, 60, top_k=20, top_p=0.9, seeds=[3, 1])
    tokens = sample(logits, **arguments)
    assert torch.equal(tokens, sample(logits, **arguments))
    for s in range(2):
        alone = {name: value[s : s + 1].clone() for name, value in arguments.items()}
        assert torch.equal(tokens[s : s + 1], sample(logits[s : s + 1].clone(), **alone))


def test_the_vocabulary_of_qwen3() -> None:
    """In blocks of the real size: greedy, with the filters of Qwen3, and with the temperature alone."""
    given = {"temperature": [0.0, 0.6, 1.0], "top_k": [151936, 20, 151936], "top_p": [1.0, 0.95, 1.0]}
    check(normal(3, 151936), **given)


def test_sample_no_rows() -> None:
    assert sample(normal(0, 10), **parameters(0, 10)).shape == (0,)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU, to wait for")
def test_nothing_waits_for_the_device() -> None:
    logits, arguments = normal(4, 1000), parameters(4, 1000, top_k=20, top_p=0.9)
    sample(logits, **arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(logits, **arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs 9 GB of GPU memory: rows that start beyond element 2^31")
def test_sample_rows_beyond_int32() -> None:
    rows = 2**31 // 151936 + 3
    logits = torch.zeros(rows, 151936, device=DEVICE)
    logits[-1, 1234] = 50.0
    assert sample(logits, **parameters(rows, 151936, top_k=5))[-1] == 1234


def test_sample_refusals_say_what_they_got() -> None:
    logits, arguments = normal(4, 20), parameters(4, 20)

    def refused(message: str):
        return pytest.raises(ValueError, match=message)

    with refused("logits must be float32 .*, got bfloat16"):
        sample(logits.bfloat16(), **arguments)
    with refused(r"logits must be .* \[S, V\] .*, got float32 \[80\]"):
        sample(logits.flatten(), **arguments)
    with refused(r"logits must be .* contiguous memory, got .* strides \[1, 4\]"):
        sample(logits.t().contiguous().t(), **arguments)
    with refused(r"logits must have columns, got \[4, 0\]"):
        sample(logits[:, :0].contiguous(), **arguments)
    for name, value in arguments.items():
        dtype = str(value.dtype).removeprefix("torch.")
        with refused(rf"{name} must be {dtype} \[4\] on .*, got {dtype} \[3\]"):
            sample(logits, **arguments | {name: value[:3]})
        with refused(rf"{name} must be .*, got int32 \[4\]"):
            sample(logits, **arguments | {name: value.int()})
        with refused(rf"{name} must be .* contiguous memory, got .* strides \[2\]"):
            sample(logits, **arguments | {name: value.repeat(2)[::2]})
