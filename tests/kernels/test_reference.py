"""The reference ops against formulas token by token; float64 throughout, gradients, zero rows."""

import math

import pytest
import torch

from qwen3_kernels import cpu
from qwen3_kernels import reference as ops
from qwen3_kernels.ops import Ops
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.weights import Dense

SCALE = 0.3


def blocks_of(lengths, kv_heads=2, block_size=4, head_dim=8, dtype=torch.float64, seed=0):
    """Random K and V of every sequence, and the same in shuffled blocks whose unused slots hold NaN.

    -> keys and values per sequence [Hkv, length, D], cache, block tables.
    """
    generator = torch.Generator().manual_seed(seed)
    used = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(used) + 3, generator=generator).tolist()
    caches = [torch.full((len(order), kv_heads, block_size, head_dim), math.nan, dtype=dtype) for _ in range(2)]
    tables = torch.zeros(len(lengths), max(max(used), 1), dtype=torch.int64)
    plain = ([], [])
    for s, length in enumerate(lengths):
        blocks = [order.pop() for _ in range(used[s])]
        tables[s, : used[s]] = torch.tensor(blocks, dtype=torch.int64)
        for cache, kept in zip(caches, plain):
            x = torch.randn(kv_heads, length, head_dim, generator=generator).to(dtype)
            kept.append(x)
            for i in range(length):
                cache[blocks[i // block_size], :, i % block_size] = x[:, i]
    return *plain, PagedCache(*caches), tables


def plain_attention(q, keys, values):
    """softmax(q kᵀ) v, one query token after another. q [n, Hq, D], keys and values [Hkv, length, D]."""
    n, q_heads, _ = q.shape
    kv_heads, length, _ = keys.shape
    out = torch.zeros_like(q)
    for i in range(n):
        seen = length - n + i + 1
        for h in range(q_heads):
            k, v = keys[h * kv_heads // q_heads, :seen], values[h * kv_heads // q_heads, :seen]
            out[i, h] = (k @ q[i, h] * SCALE).softmax(0) @ v
    return out


# 0: nothing to read; 1; one below, at and above a block of 4; several blocks.
LENGTHS = [0, 1, 3, 4, 5, 17]


@pytest.mark.parametrize("lengths", [LENGTHS, [8, 8], [0], [0, 0], [1]])
@pytest.mark.parametrize("q_heads", [2, 6])
def test_decode_attention(lengths, q_heads):
    keys, values, cache, tables = blocks_of(lengths)
    q = torch.randn(len(lengths), q_heads, 8, dtype=torch.float64)
    out = ops.decode_attention(q, cache, tables, torch.tensor(lengths), SCALE)
    for s, length in enumerate(lengths):
        expected = plain_attention(q[s : s + 1], keys[s], values[s]) if length else torch.zeros_like(q[:1])
        torch.testing.assert_close(out[s : s + 1], expected, atol=1e-12, rtol=1e-12)
        if length == 0:
            assert not out[s].any()


@pytest.mark.parametrize("q_heads", [2, 6])
def test_prefill_attention_whole_prompts_and_last_chunks(q_heads):
    lengths, new = [5, 17, 4, 1, 9], [5, 6, 1, 1, 9]
    keys, values, cache, tables = blocks_of(lengths)
    q = torch.randn(sum(new), q_heads, 8, dtype=torch.float64)
    starts = torch.tensor([0, *new]).cumsum(0)
    out = ops.prefill_attention(q, cache, tables, starts, torch.tensor(lengths), SCALE)
    for s in range(len(lengths)):
        rows = slice(starts[s], starts[s + 1])
        torch.testing.assert_close(out[rows], plain_attention(q[rows], keys[s], values[s]), atol=1e-12, rtol=1e-12)


def test_rope_rotates_pairs_by_their_angle():
    """As complex numbers: (first + i second) e^(i angle), the angle at position p of pair j being p theta^(-2j/D)."""
    positions = torch.tensor([0, 3, 1, 700])
    frequencies = 1e4 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = torch.arange(1000)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), -1)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    rotated = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(
        torch.ones(4, 1, 4, dtype=torch.float64), angles[positions][:, None]
    )
    torch.testing.assert_close(ops.rope(x, positions, table), torch.cat((rotated.real, rotated.imag), -1))


def test_qk_norm_rope_cache_writes_its_slots_and_nothing_else():
    tokens, q_heads, kv_heads, dim = 5, 4, 2, 8
    qkv = torch.randn(tokens, (q_heads + 2 * kv_heads) * dim)
    q_weight, k_weight = torch.randn(dim), torch.randn(dim)
    table, positions = torch.randn(50, dim), torch.tensor([7, 0, 49, 3, 3])
    caches = PagedCache(*(torch.full((4, kv_heads, 4, dim), 99.0) for _ in range(2)))
    slots = torch.tensor([13, -1, 0, 6, 3])
    q = ops.qk_norm_rope_cache(qkv, q_weight, k_weight, 1e-6, positions, table, slots, caches)
    parts = qkv.view(tokens, -1, dim)
    expected_q = ops.rope(ops.rms_norm(parts[:, :4], q_weight, 1e-6), positions, table)
    expected_k = ops.rope(ops.rms_norm(parts[:, 4:6], k_weight, 1e-6), positions, table)
    torch.testing.assert_close(q, expected_q)
    untouched = torch.ones(4, 4, dtype=torch.bool)
    for t, slot in enumerate(slots.tolist()):
        if slot >= 0:
            torch.testing.assert_close(caches[0][slot // 4, :, slot % 4], expected_k[t])
            assert torch.equal(caches[1][slot // 4, :, slot % 4], parts[t, 6:])
            untouched[slot // 4, slot % 4] = False
    for cache in caches:
        assert (cache.transpose(1, 2)[untouched] == 99).all()


def test_rms_norm_rounds_before_the_weight():
    x, weight = torch.randn(3, 64).bfloat16(), torch.randn(64).bfloat16()
    wide = x.float()
    normed = (wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    assert torch.equal(ops.rms_norm(x, weight, 1e-6), normed * weight)
    residual = torch.randn(3, 64).bfloat16()
    out, total = ops.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, residual + x) and torch.equal(out, ops.rms_norm(total, weight, 1e-6))
    projection = torch.randn(5, 64).bfloat16()
    got = ops.add_norm_linear(x, residual, weight, 1e-6, Dense(projection))
    assert torch.equal(got[0], out @ projection.t()) and torch.equal(got[1], total) and torch.equal(got[2], out)
    got = ops.add_norm_linear(x, None, weight, 1e-6, Dense(projection))
    assert torch.equal(got[1], x) and torch.equal(got[2], ops.rms_norm(x, weight, 1e-6))


@pytest.mark.parametrize("renormalize", [True, False])
def test_route(renormalize):
    logits = torch.randn(7, 16)
    weights, ids = ops.route(logits, 4, renormalize)
    probabilities = logits.softmax(-1)
    assert torch.equal(ids, probabilities.topk(4).indices)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7) if renormalize else probabilities.topk(4).values.sum(-1))


@pytest.mark.parametrize(
    "tokens, experts, top_k",
    # one token; fewer tokens than experts, so some are not hit; every expert hit; one choice
    [(1, 8, 2), (3, 16, 4), (40, 4, 2), (5, 4, 1)],
)
def test_moe_experts(tokens, experts, top_k):
    shapes = (tokens, 12), (experts, 2 * 10, 12), (experts, 12, 10), (tokens, experts)
    inputs = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, gate_up, down, router_logits = inputs
    weights, ids = ops.route(router_logits, top_k, True)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for weight, e in zip(weights[t], ids[t]):
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            expected[t] += weight * (down[e] @ (gate * gate.sigmoid() * up))
    out, above = (
        ops.moe_experts(x, Dense(gate_up), Dense(down), weights, ids),
        torch.randn(tokens, 12, dtype=torch.float64),
    )
    torch.testing.assert_close(out, expected)
    gradients = (torch.autograd.grad(y, inputs, above, retain_graph=True) for y in (out, expected))
    for got, wanted in zip(*gradients):
        torch.testing.assert_close(got, wanted)


def test_moe_experts_all_tokens_to_the_same_expert():
    x, gate_up, down = torch.randn(6, 12), torch.randn(4, 20, 12), torch.randn(4, 12, 10)
    ids = torch.full((6, 1), 2)
    out = ops.moe_experts(x, Dense(gate_up), Dense(down), torch.full((6, 1), 0.5), ids)
    torch.testing.assert_close(out, 0.5 * ops.swiglu(x @ gate_up[2].t()) @ down[2].t())


def test_moe_experts_are_summed_in_float32_and_rounded_once():
    """Two experts cancel but for what bfloat16 would have lost."""
    x, gate_up = torch.ones(1, 1).bfloat16(), torch.ones(3, 2, 1).bfloat16()
    hidden = ops.swiglu(torch.ones(1, 2).bfloat16())
    down = torch.tensor([256.0, 1.0, -256.0]).bfloat16()[:, None, None]
    out = ops.moe_experts(x, Dense(gate_up), Dense(down), torch.ones(1, 3).bfloat16(), torch.tensor([[0, 1, 2]]))
    assert torch.equal(out, hidden)


def case(dtype: torch.dtype, tokens: int = 5) -> dict[str, tuple]:
    """Arguments of every op, by its name, for two sequences whose tokens are all queries."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    cache = PagedCache(torch.zeros(4, 2, 4, 8, dtype=dtype), torch.zeros(4, 2, 4, 8, dtype=dtype))
    ids = torch.arange(tokens)
    tables, lengths = torch.tensor([[2, 0], [1, 3]]), torch.tensor([tokens, 0])
    x, table = normal(tokens, 16), torch.randn(9, 8, generator=generator)
    expert_ids = ids[:, None] % 2 + torch.arange(2)
    parameters = torch.full((tokens,), 0.7), torch.full((tokens,), 3), torch.full((tokens,), 0.9), torch.zeros(tokens)
    return {
        "embedding": (ids, Dense(normal(9, 16))),
        "linear": (x, Dense(normal(6, 16)), normal(6)),
        "rms_norm": (x, normal(16), 1e-6),
        "add_rms_norm": (x, normal(tokens, 16), normal(16), 1e-6),
        "add_norm_linear": (x, normal(tokens, 16), normal(16), 1e-6, Dense(normal(6, 16))),
        "rope": (normal(tokens, 3, 8), ids, table),
        "qk_norm_rope_cache": (normal(tokens, 8 * 8), normal(8), normal(8), 1e-6, ids, table, ids, cache),
        "decode_attention": (normal(tokens, 4, 8), cache, tables[:1].expand(tokens, -1), ids, 0.3),
        "prefill_attention": (normal(tokens, 4, 8), cache, tables, torch.tensor([0, tokens, tokens]), lengths, 0.3),
        "swiglu": (x,),
        "route": (normal(tokens, 4), 2, True),
        "moe_experts": (x, Dense(normal(4, 12, 16)), Dense(normal(4, 16, 6)), normal(tokens, 2), expert_ids),
        "sample": (normal(tokens, 20), *parameters, ids, ids),
    }


OPS = sorted(name for name in vars(Ops) if not name.startswith("_"))


def test_every_op_has_a_case():
    assert sorted(case(torch.float32)) == OPS


@pytest.mark.parametrize("module", [ops, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", OPS)
def test_no_rows(name, module):
    arguments = case(torch.float32, tokens=0)[name]
    with torch.inference_mode():
        out = getattr(module, name)(*arguments)
    assert all(len(y) == 0 for y in (out if isinstance(out, tuple) else (out,)))


@pytest.mark.parametrize("name", [name for name in OPS if name != "sample"])
def test_float64_throughout_and_differentiable(name):
    """Finite differences of 1e-6 agree with the gradients: a step in float32 would leave nothing of them."""
    arguments = case(torch.float64)[name]
    floats = [i for i, a in enumerate(arguments) if isinstance(a, Dense) or getattr(a, "dtype", None) == torch.float64]

    def run(*values):
        given = list(arguments)
        for i, value in zip(floats, values):
            given[i] = Dense(value) if isinstance(given[i], Dense) else value
        out = getattr(ops, name)(*given)
        return out[0] if name == "route" else out

    inputs = [arguments[i].data.requires_grad_() for i in floats]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["decode_attention", "prefill_attention"])
def test_attention_is_differentiable_in_the_cache(name):
    """As in training, where each window of text is written to a cache and read from it in one step."""
    q, cache, *rest = case(torch.float64)[name]
    keys, values = (torch.randn_like(x).requires_grad_() for x in cache)

    def run(keys, values):
        return getattr(ops, name)(q, PagedCache(keys, values), *rest)

    assert torch.autograd.gradcheck(run, (keys, values), fast_mode=True)


@pytest.mark.parametrize("name", OPS)
def test_dtype_of_the_inputs_is_that_of_the_outputs(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        out = getattr(ops, name)(*case(dtype)[name])
        for y in out if isinstance(out, tuple) else (out,):
            assert y.dtype == (dtype if y.dtype.is_floating_point else torch.int64)


@pytest.mark.parametrize("module", [ops, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("renormalize", [True, False])
def test_the_larger_logit_wins_where_rounded_probabilities_are_equal(module, descending, renormalize):
    """The softmax is in float32: six logits an ulp of bfloat16 apart have the same probabilities in bfloat16."""
    logits = (2.0**-5 + torch.arange(6) * 2.0**-12).bfloat16()[None]
    assert logits.softmax(-1).unique().numel() == 1
    logits = logits.flip(1) if descending else logits
    weights, expert_ids = module.route(logits, 3, renormalize)
    assert weights.unique().numel() == 1
    assert expert_ids.tolist() == [[0, 1, 2] if descending else [5, 4, 3]]


def test_scores_of_attention_are_not_rounded():
    """Of 16-bit queries and keys they are computed wide; the weights alone are rounded, before the values."""
    generator = torch.Generator().manual_seed(0)
    q, keys, values = (torch.randn(n, 2, 16, generator=generator).bfloat16() for n in (3, 40, 40))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys.float()) * 0.25
    visible = torch.arange(40) <= torch.arange(37, 40)[:, None]
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).bfloat16()
    assert torch.equal(ops.attention(q, keys, values, 0.25), torch.einsum("hqk,khd->qhd", weights, values))
