"""The CPU backend against the reference: every op within the numbers contract, on every path that it may take."""

import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qwen3_kernels import cpu, reference
from qwen3_kernels.checks import DTYPES
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.testing.contract import assert_contract, assert_guards, guarded
from qwen3_kernels.weights import Dense

from .attention_case import AttentionCase, attention_case, few_sums
from .parameters import examples

EPS = 1e-6

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.inference_mode():
        yield


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.double() for t in tensors)


# 1: a batch of two halves, or oneDNN off; 2: oneDNN off; 128 and 129: from W xᵀ to x Wᵀ.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 128, 129])
@pytest.mark.parametrize("outputs", [1, 24, 333])  # 1 and 333: an odd number has no halves
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(tokens, outputs, has_bias, dtype):
    x, weight = normal(tokens, 40, dtype=dtype), normal(outputs, 40, dtype=dtype, scale=40**-0.5, seed=1)
    bias = normal(outputs, dtype=dtype, seed=2) if has_bias else None
    out = cpu.linear(x, Dense(weight), bias)
    exact = reference.linear(x.double(), Dense(weight.double()), None if bias is None else bias.double())
    terms = x.abs().double() @ weight.abs().double().t()
    summed = float(terms.max()) if terms.numel() and dtype == torch.float32 else 0.0
    assert out.is_contiguous()
    assert_contract(out, exact, reference.linear(x, Dense(weight), bias), summed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (1, 2048), (5, 96), (2, 3, 64), (0, 64)])
def test_rms_norm(shape, dtype):
    x, residual = normal(*shape, dtype=dtype, scale=2), normal(*shape, dtype=dtype, seed=1)
    weight = 1 + normal(shape[-1], dtype=dtype, scale=0.25, seed=2)
    exact = reference.rms_norm(x.double(), weight.double(), EPS)
    assert_contract(cpu.rms_norm(x, weight, EPS), exact, reference.rms_norm(x, weight, EPS))
    out, total = cpu.add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, residual + x)
    assert torch.equal(out, cpu.rms_norm(total, weight, EPS))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm_of_one_row_equals_that_of_many(dtype, eps):
    x, weight = normal(1, 64, dtype=dtype), normal(64, dtype=dtype, seed=1)
    torch.testing.assert_close(cpu.rms_norm(x, weight, eps), cpu.rms_norm(x.expand(2, -1), weight, eps)[:1])


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("has_residual", [True, False])
def test_add_norm_linear(tokens, has_residual):
    x = normal(tokens, 64, dtype=torch.bfloat16)
    residual = normal(tokens, 64, dtype=torch.bfloat16, seed=1) if has_residual else None
    norm_weight, weight = normal(64, dtype=torch.bfloat16, seed=2), Dense(normal(24, 64, dtype=torch.bfloat16, seed=3))
    out, total, normed = cpu.add_norm_linear(x, residual, norm_weight, EPS, weight)
    assert torch.equal(total, x if residual is None else residual + x)
    assert torch.equal(normed, cpu.rms_norm(total, norm_weight, EPS))
    assert torch.equal(out, cpu.linear(normed, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_rope(tokens, dtype):
    x, table = normal(tokens, 3, 16, dtype=dtype), normal(50, 16, seed=1)
    positions = torch.tensor([49, 0, 7, 7, 3])[:tokens]
    exact = reference.rope(x.double(), positions, table)
    assert_contract(cpu.rope(x, positions, table), exact, reference.rope(x, positions, table))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [[], [6], [-1], [13, 0, 6], [-1, 3, 5, -1]])
def test_qk_norm_rope_cache(slots, dtype):
    tokens, q_heads, kv_heads, dim = len(slots), 4, 2, 16
    qkv, table = normal(tokens, (q_heads + 2 * kv_heads) * dim, dtype=dtype, scale=2), normal(50, dim, seed=1)
    weights = [1 + normal(dim, dtype=dtype, scale=0.25, seed=seed) for seed in (2, 3)]
    positions, slot_mapping = torch.tensor([49, 0, 7, 7])[:tokens], torch.tensor(slots, dtype=torch.int64)

    def run(ops, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        empty = torch.full((4, kv_heads, 4, dim), math.nan, dtype=dtype)
        cache = PagedCache(guarded(empty), guarded(empty))
        arguments = qkv.to(dtype), *(weight.to(dtype) for weight in weights), EPS, positions, table, slot_mapping
        return ops.qk_norm_rope_cache(*arguments, cache), *cache

    (q, keys, values), (own_q, own_keys, own_values) = run(cpu, dtype), run(reference, dtype)
    exact_q, exact_keys, _ = run(reference, torch.float64)
    assert_contract(q, exact_q, own_q)
    assert_guards(keys)
    assert_guards(values)
    torch.testing.assert_close(values, own_values, rtol=0, atol=0, equal_nan=True)
    written = ~exact_keys.isnan()
    assert torch.equal(~keys.isnan(), written)
    assert_contract(keys[written], exact_keys[written], own_keys[written])


def check_decode(case: AttentionCase, ratio: float | None = None) -> Tensor:
    own, exact = case.plain(case.q.dtype), case.plain(torch.float64)
    # Slots that were never written hold NaN. The tables of this backend hold blocks that are there.
    out = cpu.decode_attention(*case.plain_tables().decode_arguments())
    assert_contract(
        out,
        reference.decode_attention(*exact.decode_arguments()),
        reference.decode_attention(*own.decode_arguments()),
        few_sums(out),
        ratio,
    )
    return out


# 0: nothing to read; 1; one below, at and above a block; several blocks.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[0, 1, 15, 16, 17, 70], [32, 32], [0], [0, 0], [1], [100]])
@pytest.mark.parametrize("group", [1, 4])
def test_decode_attention(lengths, group, dtype):
    out = check_decode(attention_case(lengths, group=group, head_dim=16, dtype=dtype))
    assert not out[[length == 0 for length in lengths]].any()


def check_prefill(case: AttentionCase, ratio: float | None = None) -> None:
    own, exact = case.plain(case.q.dtype), case.plain(torch.float64)
    out = cpu.prefill_attention(*case.plain_tables().prefill_arguments())
    assert_contract(
        out,
        reference.prefill_attention(*exact.prefill_arguments()),
        reference.prefill_attention(*own.prefill_arguments()),
        few_sums(out),
        ratio,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize(
    ("lengths", "queries"),
    [
        ([5, 17, 4, 1, 9], [5, 6, 1, 1, 9]),  # whole prompts and last chunks
        ([0, 20, 7], [0, 0, 7]),  # sequences without a query in this step
        ([129, 200], [129, 128]),  # by blocks of queries, and the most that are not
        ([333], [140]),
    ],
)
def test_prefill_attention(lengths, queries, group, dtype):
    check_prefill(attention_case(lengths, queries, group=group, head_dim=16, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "queries"), [(150, 150), (333, 140)])
def test_prefill_attention_in_the_smallest_blocks(length, queries, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "_MAX_SCORES", 1)
    check_prefill(attention_case([length], [queries], group=2, head_dim=16, dtype=dtype))


@examples(15)
@given(
    prefixes_and_queries=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 150)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    head_dim=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES[1:]),
    seed=st.integers(0, 2**31),
)
def test_attention_of_any_shape(prefixes_and_queries, **shape):
    """Not in float32: the reference's own error can be almost nothing on so few values. PyTorch's attention is held to
    a wider bound, because it rounds its weights where it likes."""
    with torch.inference_mode():
        lengths = [sum(pair) for pair in prefixes_and_queries]
        check_prefill(attention_case(lengths, [n for _, n in prefixes_and_queries], **shape), ratio=1.5)
        check_decode(attention_case(lengths, **shape), ratio=1.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(0, 8), (1, 1), (3, 96), (2, 1025)])
def test_swiglu(rows, size, dtype):
    gate_up = normal(rows, 2 * size, dtype=dtype, scale=3)
    assert_contract(cpu.swiglu(gate_up), reference.swiglu(gate_up.double()), reference.swiglu(gate_up))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(0, 8, 2), (1, 4, 4), (7, 16, 4), (3, 128, 8)])
def test_route(tokens, experts, top_k, renormalize, dtype):
    # Distinct in every dtype: of equal logits any may be chosen.
    order = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(0)).argsort(-1)
    logits = (order / 16 - 4).to(dtype)
    weights, expert_ids = cpu.route(logits, top_k, renormalize)
    own, own_ids = reference.route(logits, top_k, renormalize)
    assert expert_ids.dtype == torch.int64 and torch.equal(expert_ids, own_ids)
    assert_contract(weights, reference.route(logits.double(), top_k, renormalize)[0], own)


def check_experts(expert_ids: Tensor, experts: int, hidden: int, inter: int, dtype: torch.dtype) -> None:
    x = normal(len(expert_ids), hidden, dtype=dtype)
    gate_up = normal(experts, 2 * inter, hidden, dtype=dtype, scale=hidden**-0.5, seed=1)
    down = normal(experts, hidden, inter, dtype=dtype, scale=inter**-0.5, seed=2)
    weights = (normal(*expert_ids.shape, seed=3).abs() + 0.05).softmax(-1).to(dtype)
    exact = reference.moe_experts(*map(wide_weight, (x, gate_up, down, weights)), expert_ids)
    arguments = x, Dense(gate_up), Dense(down), weights, expert_ids
    assert_contract(cpu.moe_experts(*arguments), exact, reference.moe_experts(*arguments))


def wide_weight(x: Tensor) -> Tensor | Dense:
    return Dense(x.double()) if x.dim() == 3 else x.double()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("idle", [None, -1, 1])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "inter"),
    [
        (0, 4, 2, 12, 6),
        (1, 8, 2, 32, 10),  # nothing to gather
        (1, 8, 3, 32, 9),  # an odd number of rows has no halves
        (3, 16, 4, 32, 10),  # some experts are not hit
        (5, 4, 1, 12, 6),  # one choice
        (40, 4, 2, 12, 6),
        (128, 8, 4, 32, 24),  # 512 pairs: the most that are concatenated
        (400, 4, 2, 12, 6),
    ],
)
def test_moe_experts(tokens, experts, top_k, hidden, inter, padded, idle, dtype, monkeypatch):
    """An even load, and one that leaves the last expert or the second without a token and so needs too much padding
    for many tokens."""
    if not padded:
        monkeypatch.setattr(cpu, "_MAX_PADDED_WEIGHTS", 0)
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(0))
    if idle is not None:
        scores[:, idle] -= 2
    expert_ids = scores.topk(top_k).indices
    assert idle is None or experts - 1 < top_k or idle % experts not in expert_ids
    check_experts(expert_ids, experts, hidden, inter, dtype)


@pytest.mark.parametrize("tokens", [1, 6, 600])
def test_moe_experts_of_one_expert_twice_for_a_token(tokens):
    check_experts(torch.tensor([[2, 2]] * tokens), 4, 12, 10, torch.float32)


def sampling_parameters(rows: int, vocabulary: int, **given: list[float]) -> dict[str, Tensor]:
    values = {"temperature": 1.0, "top_k": vocabulary, "top_p": 1.0, "min_p": 0.0, "seeds": 0}
    integers = ("top_k", "seeds")
    tensors = {
        name: torch.tensor(given.get(name, [value] * rows), dtype=torch.int64 if name in integers else torch.float32)
        for name, value in values.items()
    }
    return tensors | {"positions": torch.arange(rows)}


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": [0.0] * 8},  # greedy alone
        {},  # the temperature alone: nothing is ranked
        {"min_p": [0.1] * 8},
        {"top_k": [5, 1, 50, 150, 1000, 3, 20, 2]},
        {"top_p": [0.9, 1.0, 0.0, 0.5, 0.95, 0.1, 0.8, 1.0]},
        {
            "temperature": [0.0, 1.0, 0.7, 0.6, 1.3, 2.0, 0.5, 1.0],
            "top_k": [150, 150, 20, 30, 50, 150, 20, 40],
            "top_p": [1.0, 1.0, 0.8, 0.9, 0.95, 1.0, 0.3, 1.0],
            "min_p": [0.0, 0.0, 0.0, 0.01, 0.0, 0.05, 0.0, 0.2],
        },
    ],
    ids=lambda given: "+".join(given) or "none",
)
def test_sample(given):
    logits, parameters = (
        normal(8, 150, scale=2),
        sampling_parameters(8, 150, seeds=[7, -(2**40), 2**62, 1] * 2, **given),
    )
    assert torch.equal(cpu.sample(logits, **parameters), reference.sample(logits, **parameters))


def test_sample_a_row_that_keeps_all_tokens_beside_rows_with_top_k():
    logits, parameters = normal(8, 150, scale=2), sampling_parameters(8, 150)
    parameters["top_k"][::2] = 1
    sampled = cpu.sample(logits, **parameters)
    assert torch.equal(sampled, reference.sample(logits, **parameters))
    assert torch.equal(sampled[::2], logits[::2].argmax(-1)) and not torch.equal(sampled, logits.argmax(-1))


def test_sample_no_rows():
    assert cpu.sample(torch.empty(0, 10), **sampling_parameters(0, 10)).shape == (0,)


def test_onednn_is_on_again_after_products_in_several_threads():
    """The switch belongs to the process: two threads that turn it off and on at once must not leave it off."""
    x, weight = normal(1, 64, dtype=torch.bfloat16), Dense(normal(64, 64, dtype=torch.bfloat16))
    before = torch.backends.mkldnn.enabled
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cpu.linear(x, weight), range(400)))
    assert torch.backends.mkldnn.enabled == before


@pytest.mark.parametrize("module", [cpu, reference], ids=["cpu", "reference"])
def test_a_token_without_weight_is_not_sampled_where_the_random_number_is_zero(module, monkeypatch):
    monkeypatch.setattr(module, "uniform", lambda seeds, positions: torch.zeros(len(seeds)))
    logits = torch.tensor([[-math.inf, -math.inf, 0.0, 1.0]])
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int64)
    assert module.sample(logits, one, zero + 4, one, 0 * one, zero, zero).tolist() == [2]


def test_onednn_is_left_as_it_was_and_one_thread_at_a_time_switches_it(monkeypatch):
    calls = []

    class Lock:
        def acquire(self, *arguments, **options):
            calls.append((arguments, options))

        def release(self):
            calls.append("released")

    monkeypatch.setattr(cpu, "_onednn_lock", Lock())
    for enabled in (True, False):
        switch = SimpleNamespace(enabled=enabled)
        monkeypatch.setattr(cpu, "_onednn", switch)
        with cpu._WithoutOneDNN():
            assert switch.enabled is False
        assert switch.enabled is enabled
    assert calls == 2 * [((), {}), "released"]


def test_queries_are_scaled_in_float32():
    """A scale that is no power of two rounds 16-bit queries."""
    q, keys, values = (normal(n, 200, 128, dtype=torch.bfloat16, seed=n) for n in (4, 2, 3))
    values = values[:2]
    scale = 128**-0.5
    expected = reference.attention(*(x.float().transpose(0, 1) for x in (q, keys, values)), scale).transpose(0, 1)
    wide = cpu._attention_by_blocks(q, keys, values.float(), scale)
    assert (wide - expected).abs().max() < 1e-5
