"""The ops in plain PyTorch, each as its paper or transformers writes it: the oracle of the tests.

No function looks at the device, the dtype or the sizes of its inputs, so they run wherever PyTorch runs, and all are
differentiable. Given float64 they compute in float64 throughout: the exact values of the numbers contract. Contracts
and shapes are in `qwen3_kernels.ops`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import NO_TOKEN
from .paged_cache import PagedCache
from .philox import uniform
from .weights import Weight


def wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def embedding(token_ids: Tensor, weight: Weight) -> Tensor:
    """Rows of the table."""
    return F.embedding(token_ids, weight.dequantize())


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b."""
    return F.linear(x, weight.dequantize(), bias)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps), rounded, times weight."""
    normed = wide(x) * torch.rsqrt(wide(x).square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of residual + x, and this sum."""
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The projection of the norm of residual + x, this sum, and the norm."""
    residual = x if residual is None else residual + x
    normed = rms_norm(residual, norm_weight, eps)
    return linear(normed, weight, bias), residual, normed


def rope(x: Tensor, positions: Tensor, rope_table: Tensor) -> Tensor:
    """(first, second) -> (first cos - second sin, second cos + first sin), the two halves of each head."""
    cos, sin = rope_table[positions, None].chunk(2, dim=-1)
    first, second = wide(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def qk_norm_rope_cache(
    qkv: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    positions: Tensor,
    rope_table: Tensor,
    slot_mapping: Tensor,
    cache: PagedCache,
) -> Tensor:
    """Splits q, k and v into heads, normalizes and rotates q and k, and writes k and v into the cache."""
    _, kv_heads, block_size, head_dim = cache.keys.shape
    heads = qkv.unflatten(-1, (-1, head_dim))
    q, k, v = heads.split((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    q = rope(rms_norm(q, q_weight, eps), positions, rope_table)
    k = rope(rms_norm(k, k_weight, eps), positions, rope_table)
    has_slot = slot_mapping >= 0
    slots = slot_mapping[has_slot]
    cache.keys[slots // block_size, :, slots % block_size] = k[has_slot]
    cache.values[slots // block_size, :, slots % block_size] = v[has_slot]
    return q


def attention(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """softmax(q Kᵀ scale) V of the last n of L tokens, causal. q [n, Hq, D], keys and values [L, Hkv, D]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", wide(q), wide(keys)) * scale
    future_mask = torch.ones_like(scores, dtype=torch.bool).triu(len(keys) - len(q) + 1)
    weights = scores.masked_fill(future_mask, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights.to(values.dtype), values)


def prefill_attention(
    q: Tensor, cache: PagedCache, block_tables: Tensor, query_start_loc: Tensor, seq_lens: Tensor, scale: float
) -> Tensor:
    """The attention of each sequence over the tokens in its blocks."""
    block_size = cache.keys.shape[2]
    starts = query_start_loc.tolist()
    outs = [q[:0]]
    for table, start, stop, length in zip(block_tables, starts, starts[1:], seq_lens.tolist()):
        blocks = table[: -(-length // block_size)]
        # [blocks, Hkv, block_size, D] -> [tokens, Hkv, D]
        keys, values = (x[blocks].transpose(1, 2).flatten(0, 1)[:length] for x in cache)
        outs.append(attention(q[start:stop], keys, values, scale))
    return torch.cat(outs)


def decode_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> Tensor:
    """Prefill attention with one query a sequence; over no tokens at all it is zero."""
    return prefill_attention(q, cache, block_tables, torch.arange(len(q) + 1), seq_lens, scale)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The k largest of the softmax, divided by their sum with `renormalize`."""
    weights, expert_ids = wide(router_logits).softmax(-1).topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights.to(router_logits.dtype), expert_ids


def moe_experts(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """Expert by expert: the MLP of its tokens, times their weights, added to their rows of the output."""
    gate_up_weight, down_weight = gate_up.dequantize(), down.dequantize()
    out = torch.zeros_like(wide(x))
    for expert in expert_ids.unique().tolist():
        token, choice = (expert_ids == expert).nonzero(as_tuple=True)
        hidden = swiglu(F.linear(x[token], gate_up_weight[expert]))
        result = F.linear(hidden, down_weight[expert])
        out.index_add_(0, token, wide(result) * wide(weights[token, choice, None]))
    return out.to(x.dtype)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """Sorts each row, finds the least likely token that every filter keeps, and samples from those not below it."""
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    ranked = scaled.sort(dim=-1, descending=True).values
    rank = torch.arange(logits.shape[1], device=logits.device)
    top_k_mask = rank < top_k[:, None]
    probabilities = ranked.masked_fill(~top_k_mask, float("-inf")).softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    top_p_mask = (before < top_p[:, None]) | (top_p[:, None] >= 1)
    min_p_mask = ranked >= ranked[:, :1] + min_p[:, None].log()
    kept_mask = top_k_mask & top_p_mask & min_p_mask | (rank == 0)
    threshold = ranked.masked_fill(~kept_mask, float("inf")).amin(-1, keepdim=True)
    cumulative = scaled.masked_fill(scaled < threshold, float("-inf")).softmax(-1).cumsum(-1)
    sampled = uniform(seeds, positions)[:, None] * cumulative[:, -1:]
    tokens = torch.where(greedy, logits.argmax(-1), (cumulative > sampled).to(torch.uint8).argmax(-1))
    # The largest of a row with NaN is NaN.
    return torch.where(logits.amax(-1).isfinite(), tokens, NO_TOKEN)
