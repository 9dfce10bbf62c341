"""The reference ops against the plainest formulas, and against each other."""

import math

import pytest
import torch

from qwen3_kernels import cpu
from qwen3_kernels import reference as ops
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.weights import Dense

SCALE = 0.3


def pages(lengths, kv_heads=2, block_size=4, head_dim=8, dtype=torch.float32, seed=0):
    """Random K and V of every sequence, and the same in shuffled pages whose unused slots hold NaN.

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


# 0: nothing to read; 1; one below, at and above a page of 4; several pages.
LENGTHS = [0, 1, 3, 4, 5, 17]


@pytest.mark.parametrize("lengths", [LENGTHS, [8, 8], [0], [0, 0], [1]])
@pytest.mark.parametrize("q_heads", [2, 6])
def test_decode_attention(lengths, q_heads):
    keys, values, cache, tables = pages(lengths)
    q = torch.randn(len(lengths), q_heads, 8)
    out = ops.decode_attention(q, cache, tables, torch.tensor(lengths), SCALE)
    for s, length in enumerate(lengths):
        expected = plain_attention(q[s : s + 1], keys[s], values[s]) if length else torch.zeros(1, q_heads, 8)
        torch.testing.assert_close(out[s : s + 1], expected, atol=2e-6, rtol=1e-5)
        if length == 0:
            assert torch.equal(out[s], torch.zeros(q_heads, 8))


@pytest.mark.parametrize("q_heads", [2, 6])
def test_prefill_attention_whole_prompts_and_last_chunks(q_heads):
    lengths, new = [5, 17, 4, 1, 9], [5, 6, 1, 1, 9]
    keys, values, cache, tables = pages(lengths)
    q = torch.randn(sum(new), q_heads, 8)
    starts = torch.tensor([0, *new]).cumsum(0)
    out = ops.prefill_attention(q, cache, tables, starts, torch.tensor(lengths), SCALE)
    for s in range(len(lengths)):
        rows = slice(starts[s], starts[s + 1])
        torch.testing.assert_close(out[rows], plain_attention(q[rows], keys[s], values[s]), atol=2e-6, rtol=1e-5)


def test_rope_turns_pairs_by_their_angle():
    """As complex numbers: (first + i second) e^(i angle), the angle at position p of pair j being p theta^(-2j/D)."""
    positions = torch.tensor([0, 3, 1, 700])
    frequencies = 1e4 ** (-torch.arange(4, dtype=torch.float64) / 4)
    angles = torch.arange(1000)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), -1)
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(
        torch.ones(4, 1, 4, dtype=torch.float64), angles[positions][:, None]
    )
    torch.testing.assert_close(ops.rope(x, positions, table), torch.cat((turned.real, turned.imag), -1))


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


@torch.inference_mode()
@pytest.mark.parametrize("dtype, eps", [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.float64, 0.5)])
def test_rms_norm_of_one_row_is_that_of_many(dtype, eps):
    x, weight = torch.randn(1, 64).to(dtype), torch.randn(64).to(dtype)
    torch.testing.assert_close(ops.rms_norm(x, weight, eps), ops.rms_norm(x.expand(2, -1), weight, eps)[:1])


# 1: a batch of two halves; 2 and 3: with and without oneDNN; 128 and 129: from W xᵀ to x Wᵀ.
@pytest.mark.parametrize("rows", [1, 2, 3, 128, 129])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("outputs", [24, 3300])
def test_linear_is_torch_linear(rows, dtype, outputs):
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((rows, 40), (outputs, 40), (outputs,)))
    torch.testing.assert_close(ops.linear(x, Dense(weight), bias), torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(ops.linear(x, Dense(weight)), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize("renormalize", [True, False])
def test_route(renormalize):
    logits = torch.randn(7, 16)
    weights, ids = ops.route(logits, 4, renormalize)
    probabilities = logits.softmax(-1)
    assert torch.equal(ids, probabilities.topk(4).indices)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7) if renormalize else probabilities.topk(4).values.sum(-1))


@pytest.mark.parametrize(
    "tokens, experts, top_k",
    # one token; fewer tokens than experts, so some are not hit; every expert hit; one choice; 512 pairs and more: the
    # last that are computed together, the first expert by expert
    [(1, 8, 2), (3, 16, 4), (40, 4, 2), (5, 4, 1), (128, 8, 4), (129, 8, 4)],
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


@torch.inference_mode()
@pytest.mark.parametrize("n, length", [(129, 129), (150, 150), (140, 333)])
@pytest.mark.parametrize("scores", [cpu._SCORES, 2**13])
def test_attention_by_blocks_of_queries(n, length, scores, monkeypatch):
    monkeypatch.setattr(cpu, "_SCORES", scores)
    keys, values, cache, tables = pages([length])
    q = torch.randn(n, 4, 8)
    starts, lengths = torch.tensor([0, n]), torch.tensor([length])
    out = ops.prefill_attention(q, cache, tables, starts, lengths, SCALE)
    torch.testing.assert_close(out, plain_attention(q, keys[0], values[0]), atol=2e-6, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize(
    "tokens, experts, hidden, inter", [(40, 4, 12, 6), (400, 4, 12, 6), (300, 3, 512, 512), (9, 3, 512, 512)]
)
def test_experts_padded_or_one_by_one(tokens, experts, hidden, inter, even, dtype):
    """Small experts and large, few rows and many, an even load and one that leaves an expert without a token."""
    x = torch.randn(tokens, hidden).to(dtype)
    gate_up = (torch.randn(experts, 2 * inter, hidden) / hidden**0.5).to(dtype)
    down = (torch.randn(experts, hidden, inter) / inter**0.5).to(dtype)
    scores = torch.rand(tokens, experts) - torch.tensor([0.0] * (experts - 1) + [0.0 if even else 2.0])
    weights, ids = scores.topk(2)
    out = ops.moe_experts(x, Dense(gate_up), Dense(down), weights.to(dtype), ids)
    exact = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for weight, e in zip(weights[t].to(dtype).double(), ids[t].tolist()):
            gate, up = (gate_up[e].double() @ x[t].double()).chunk(2)
            exact[t] += weight * (down[e].double() @ (torch.nn.functional.silu(gate) * up))
    error = (out.double() - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
    assert error < (1e-6 if dtype == torch.float32 else 1e-2)
