"""The ops in PyTorch, tuned for a CPU: few and large operations, and products that read the weights at full speed.

For inference only: autograd cannot follow where an op writes into a buffer or computes with Python numbers. They run on
other devices too, but are tuned for none. Contracts and shapes are in `qwen3_kernels.ops`.
"""

from itertools import accumulate
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import NO_TOKEN
from .paged_cache import PagedCache
from .philox import uniform
from .reference import embedding
from .weights import Weight

__all__ = [
    "add_norm_linear",
    "add_rms_norm",
    "decode_attention",
    "embedding",
    "linear",
    "moe_experts",
    "prefill_attention",
    "qk_norm_rope_cache",
    "rms_norm",
    "rope",
    "route",
    "sample",
    "swiglu",
]

# Attention scores computed at once: 2 MB in float32, which stay in the cache of a core.
_MAX_SCORES = 2**19
# Fewest and most query tokens of a block of prefill attention.
_MIN_QUERIES, _MAX_QUERIES = 16, 128
# Weights of all experts up to which a batched product over padded rows is faster than one product per expert.
_MAX_PADDED_WEIGHTS = 2**20

# mypy takes the switch `enabled` for the object that implements it.
_onednn: Any = torch.backends.mkldnn
_onednn_lock = Lock()


class _WithoutOneDNN:
    """Turns oneDNN off: it repacks bfloat16 weights in every call, PyTorch's own products only read them.

    The switch belongs to the process, so one thread at a time holds it. A product of another thread may run without
    oneDNN meanwhile: slower, and equal up to rounding.
    """

    def __enter__(self) -> None:
        _onednn_lock.acquire()
        self.enabled = _onednn.enabled
        _onednn.enabled = False

    def __exit__(self, *exception: object) -> None:
        _onednn.enabled = self.enabled
        _onednn_lock.release()


def _wide(x: Tensor) -> Tensor:
    """x in float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def _halves(size: int) -> int:
    """Into how many matrices to cut one of `size` rows: all cores read a batch of two, a single core reads one."""
    return 2 if size % 2 == 0 else 1


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, not always contiguous. x [T, K], weight [N, K], bias [N] -> [T, N]."""
    tokens = x.shape[0]
    if x.dtype == torch.float32 and 0 < tokens <= 128:
        # W xᵀ reads the weight up to twice as fast as x Wᵀ.
        if tokens == 1:
            (size, length), halves = weight.shape, _halves(weight.shape[0])
            column = x.t().expand(halves, length, 1)
            out = torch.bmm(weight.view(halves, -1, length), column).view(1, size)
        else:
            out = torch.mm(weight, x.t()).t()
        return out if bias is None else out + bias
    if x.dtype == torch.bfloat16 and 0 < tokens <= 2:
        with _WithoutOneDNN():
            return F.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b."""
    return _product(x, weight.dequantize(), bias).contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """torch.rms_norm, or, for a single row, a dot product and Python's numbers."""
    if x.dim() == 2 and x.shape[0] == 1:
        row = _wide(x)[0]
        return (row * (float(row.dot(row)) / x.shape[1] + eps) ** -0.5).to(x.dtype)[None] * weight
    return torch.rms_norm(x, x.shape[-1:], None, eps) * weight


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
    """The reference's rotation in fewer operations."""
    cos, sin = _wide(torch.embedding(rope_table, positions[:, None])).chunk(2, dim=-1)
    first, second = _wide(x).chunk(2, dim=-1)
    rotated = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(rotated, dim=-1).to(x.dtype)


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
    """One norm and one rotation for q and k together."""
    _, kv_heads, block_size, head_dim = cache.keys.shape
    tokens, q_heads = qkv.shape[0], qkv.shape[1] // head_dim - 2 * kv_heads
    heads = qkv.view(tokens, q_heads + 2 * kv_heads, head_dim)
    qk, v = heads.split_with_sizes((q_heads + kv_heads, kv_heads), dim=1)
    weight = torch.cat((q_weight.expand(q_heads, -1), k_weight.expand(kv_heads, -1)))
    q, k = rope(rms_norm(qk, weight, eps), positions, rope_table).split_with_sizes((q_heads, kv_heads), dim=1)
    slots = slot_mapping.tolist()
    if len(slots) == 1 and slots[0] >= 0:
        block, offset = divmod(slots[0], block_size)
        cache.keys[block, :, offset], cache.values[block, :, offset] = k[0], v[0]
        return q
    if min(slots, default=0) < 0:
        slot_mask = slot_mapping >= 0
        slot_mapping, k, v = slot_mapping[slot_mask], k[slot_mask], v[slot_mask]
    index = slot_mapping // block_size, slot_mapping % block_size
    cache.keys.transpose(1, 2)[index] = k
    cache.values.transpose(1, 2)[index] = v
    return q


def _gather(cache: PagedCache, block_tables: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the first `length` tokens of each table, two of [S, Hkv, length, D]."""
    num_blocks, kv_heads, block_size, head_dim = cache.keys.shape
    blocks = block_tables[:, None, : -(-length // block_size)]
    rows = torch.add(torch.arange(kv_heads, device=blocks.device)[:, None], blocks, alpha=kv_heads)
    shape = len(blocks), kv_heads, blocks.shape[2] * block_size, head_dim
    keys = torch.embedding(cache.keys.view(num_blocks * kv_heads, -1), rows).view(shape)
    values = torch.embedding(cache.values.view(num_blocks * kv_heads, -1), rows).view(shape)
    return keys[:, :, :length], values[:, :, :length]


def decode_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> Tensor:
    """One masked product over the longest sequence; the query heads of a group are rows of one matrix."""
    sequences, q_heads, head_dim = q.shape
    kv_heads = cache.keys.shape[1]
    lengths = seq_lens.tolist()
    longest, shortest = max(lengths, default=0), min(lengths, default=0)
    if longest == 0:
        return torch.zeros_like(q)
    keys, values = _gather(cache, block_tables, longest)
    mask = None
    if shortest < longest:
        mask = (torch.arange(longest, device=q.device) < seq_lens[:, None])[:, None, None, :]
        # A slot that was never written may hold NaN, and 0 * NaN is NaN.
        keys, values = keys.masked_fill(~mask.mT, 0), values.masked_fill(~mask.mT, 0)
    grouped = q.view(sequences, kv_heads, q_heads // kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    if shortest == 0:
        out = out.masked_fill(seq_lens.view(-1, 1, 1, 1) == 0, 0)
    return out.reshape(sequences, q_heads, head_dim)


def prefill_attention(
    q: Tensor, cache: PagedCache, block_tables: Tensor, query_start_loc: Tensor, seq_lens: Tensor, scale: float
) -> Tensor:
    """PyTorch's attention, or, from 129 queries on, one block of queries after another."""
    grouped = q.shape[1] != cache.keys.shape[1]
    starts, outs = query_start_loc.tolist(), [q[:0]]
    for s, length in enumerate(seq_lens.tolist()):
        queries = q[starts[s] : starts[s + 1]].transpose(0, 1)
        n = queries.shape[1]
        if n == 0:
            continue
        keys, values = _gather(cache, block_tables[s : s + 1], length)
        if n > _MAX_QUERIES:
            outs.append(_attention_by_blocks(queries, keys[0], values[0], scale).transpose(0, 1))
            continue
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n) if n < length else None
        out = F.scaled_dot_product_attention(
            queries[None], keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def _attention_by_blocks(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention a block of queries at a time, over the keys up to the last query of the block.

    q [Hq, n, D]: the last n of the keys' tokens; keys, values [Hkv, length, D] -> [Hq, n, D].
    """
    heads, n, head_dim = q.shape
    kv_heads, length, _ = keys.shape
    block = min(n, _MAX_QUERIES, max(_MIN_QUERIES, _MAX_SCORES // (heads * length)))
    q, keys = _wide(q) * scale, _wide(keys).mT
    future = q.new_full((block, block), float("-inf")).triu_(1)
    # One buffer for all blocks: the system has to clear new memory each time.
    buffer, outs = q.new_empty(heads * block * length), []
    for start in range(0, n, block):
        rows = q[:, start : start + block]
        count = rows.shape[1]
        seen = length - n + start + count
        scores = buffer[: heads * count * seen].view(heads, count, seen)
        # The query heads of a group are rows of one matrix: no key is repeated.
        torch.bmm(rows.reshape(kv_heads, -1, head_dim), keys[..., :seen], out=scores.view(kv_heads, -1, seen))
        scores[..., seen - count :] += future[:count, :count]
        torch.softmax(scores, -1, out=scores)
        weights = scores.view(kv_heads, -1, seen).to(values.dtype)
        outs.append(torch.bmm(weights, values[:, :seen]).view(heads, count, head_dim))
    return torch.cat(outs, 1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, the gate copied in bfloat16: PyTorch's silu is slow there on rows that are not contiguous."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate.contiguous() if gate.dtype == torch.bfloat16 else gate) * up


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """With `renormalize`, the softmax over the k largest logits: equal to all experts' softmax renormalized."""
    logits = _wide(router_logits)
    if renormalize:
        logits, expert_ids = logits.topk(top_k, dim=-1)
        weights = logits.softmax(-1)
    else:
        weights, expert_ids = logits.softmax(-1).topk(top_k, dim=-1)
    return weights.to(router_logits.dtype), expert_ids


def moe_experts(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """Each expert on its own rows, gathered from those of its tokens.

    Small experts that are hit about equally often get rows of padding, so that one batched product computes all.
    """
    (tokens, top_k), experts = expert_ids.shape, gate_up.shape[0]
    gate_up_weight, down_weight = gate_up.dequantize(), down.dequantize()
    if tokens == 0:
        return torch.empty_like(x)
    if tokens == 1:
        hit = expert_ids[0].tolist()
        hidden = swiglu(_row_products(x.expand(top_k, -1), gate_up_weight, hit))
        return weights @ _row_products(hidden, down_weight, hit)
    # Up to each token, the number of tokens that chose an expert: the token's place among the rows of the expert.
    places = expert_ids.new_zeros(tokens, experts).scatter_(1, expert_ids, 1).cumsum(0)
    counts = places[-1].tolist()
    most = max(counts)
    padded = gate_up_weight.numel() <= _MAX_PADDED_WEIGHTS and most <= 32 + 1.25 * tokens * top_k / experts
    # The first row of each token's experts, plus the token's place among them.
    starts = expert_ids * most if padded else torch.tensor([0, *accumulate(counts)], device=x.device)[expert_ids]
    pairs = starts + places.gather(1, expert_ids) - 1
    token_of_row = expert_ids.new_zeros(experts * most if padded else sum(counts))
    token_of_row[pairs] = torch.arange(tokens, device=x.device)[:, None]
    rows = torch.embedding(x, token_of_row)
    if padded:
        hidden = swiglu(torch.bmm(rows.view(experts, most, -1), gate_up_weight.mT))
        out = torch.bmm(hidden, down_weight.mT).flatten(0, 1)
    else:
        hidden = swiglu(_products(rows, gate_up_weight, counts))
        out = _products(hidden, down_weight, counts)
    if tokens * top_k > 512:
        # Gathered and summed in one pass.
        return F.embedding_bag(pairs, out, per_sample_weights=weights, mode="sum")
    return torch.bmm(weights[:, None], torch.embedding(out, pairs))[:, 0]


def _products(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    """Rows sorted by expert, counts[e] of expert e, times the matrices of their experts.

    rows [R, K], weight [E, N, K], counts of E experts, R together -> [R, N].
    """
    if len(rows) <= 512:
        return torch.cat([_product(part, weight[e]) for e, part in enumerate(rows.split(counts)) if len(part)])
    out = rows.new_empty(len(rows), weight.shape[1])
    for part, target, matrix in zip(rows.split(counts), out.split(counts), weight):
        if len(part):
            torch.mm(part, matrix.t(), out=target)
    return out


def _row_products(rows: Tensor, weight: Tensor, experts: list[int]) -> Tensor:
    """Row i times the matrix of experts[i]. rows [k, K], weight [E, N, K] -> [k, N]."""
    if rows.dtype == torch.float32:
        size, length = weight.shape[1:]
        halves = _halves(size)
        matrices = weight.view(-1, halves, size // halves, length)
        columns = rows[:, None, None].mT.expand(-1, halves, -1, -1).unbind()
        out = torch.cat([torch.bmm(matrices[expert], column) for expert, column in zip(experts, columns)])
        return out.view(len(experts), size)
    with _WithoutOneDNN():
        return torch.stack([torch.mv(weight[expert], row) for expert, row in zip(experts, rows.unbind())])


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """Ranks only as many tokens as the largest top-k, and none if all rows are greedy."""
    # The largest of a row with NaN is NaN.
    best, best_ids = logits.max(-1, keepdim=True)
    best_ids = torch.where(best.isfinite(), best_ids, NO_TOKEN)[:, 0]
    if not bool(temperature.any()):
        return best_ids
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature)[:, None]
    scaled = logits / divisor
    threshold = best / divisor + min_p[:, None].log()
    limit = min(int(top_k.max()), logits.shape[1])
    if bool(((top_k < logits.shape[1]) | (top_p < 1)).any()):
        ranked = scaled.topk(limit, dim=-1).values
        threshold = torch.maximum(threshold, ranked.gather(1, top_k.clamp(max=limit)[:, None] - 1))
        masked = ranked.masked_fill(torch.arange(limit, device=logits.device) >= top_k[:, None], float("-inf"))
        probabilities = masked.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        inside = (before < top_p[:, None]) | (top_p[:, None] >= 1)
        last = inside.sum(-1, keepdim=True).clamp(min=1) - 1
        threshold = torch.maximum(threshold, ranked.gather(1, torch.minimum(last, top_k[:, None] - 1)))
    cumulative = scaled.masked_fill(scaled < threshold, float("-inf")).softmax(-1).cumsum(-1)
    sampled = uniform(seeds, positions)[:, None] * cumulative[:, -1:]
    tokens = (cumulative > sampled).to(torch.uint8).argmax(-1)
    return torch.where(greedy | (best_ids == NO_TOKEN), best_ids, tokens)
