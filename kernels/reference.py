"""Every hot operation of Qwen3 in plain PyTorch: the ground truth of the tests and the path that runs on any CPU.

Rounding follows Hugging Face transformers' Qwen3-MoE: what is said to happen "wide" happens in float32 (float64 when
the inputs are float64, so the same functions also give the exact values that the tests compare with), everything
else in the dtype of the input. All functions are differentiable except where they write the KV cache; the embedded
model was trained through them.

Shapes use T tokens, S sequences, H hidden size, D head_dim, Hq query heads, Hkv key/value heads, E experts, k experts
per token, I intermediate size, V vocabulary. The KV cache of one layer is two tensors [num_blocks, Hkv, block_size, D];
slot s lives in block s // block_size at offset s % block_size.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu import causal_attention, product, products, row_products
from .paged_cache import PagedCache
from .philox import uniform
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
]  # fmt: skip


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def embedding(token_ids: Tensor, weight: Weight) -> Tensor:
    """Rows of the table. token_ids [T] int64, weight [V, H] -> [T, H]."""
    return F.embedding(token_ids, weight.data)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. x [T, H], weight [N, H], bias [N] -> [T, N]."""
    return product(x, weight.data, bias).contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich, 2019): normalised wide, rounded, then times weight.

    x [..., H], weight [H] -> [..., H] in x's dtype.
    """
    if x.dim() == 2 and x.shape[0] == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
        # A decode of one sequence: its sum of squares in one operation, the rest in Python's numbers.
        row = _wide(x)[0]
        return (row * (float(row.dot(row)) / x.shape[1] + eps) ** -0.5).to(x.dtype)[None] * weight
    return torch.rms_norm(x, x.shape[-1:], None, eps) * weight


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual add and the norm that follows it. x, residual [T, H] -> (rms_norm(residual + x), residual + x).

    Use the residual that is returned: a kernel may write it over the one passed in.
    """
    residual = residual + x
    return rms_norm(residual, weight, eps), residual


def add_norm_linear(
    x: Tensor, residual: Tensor | None, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The residual add, the norm and the projection that follows: add_rms_norm, then linear.

    x [T, H], residual [T, H] or None (before the first layer: nothing to add), norm_weight [H], weight [N, H],
    bias [N] -> (projection [T, N], residual + x [T, H], the normalised rows [T, H]).
    """
    if residual is None:
        normed, residual = rms_norm(x, norm_weight, eps), x
    else:
        normed, residual = add_rms_norm(x, residual, norm_weight, eps)
    return linear(normed, weight, bias), residual, normed


def rope(x: Tensor, positions: Tensor, rope_table: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout (Su et al., 2021), computed wide.

    x [T, heads, D], positions [T] int64, rope_table [max_positions, D] float32 = cosines then sines, D/2 each;
    YaRN's attention factor is already in the table. -> [T, heads, D].
    """
    cos, sin = _wide(torch.embedding(rope_table, positions[:, None])).chunk(2, dim=-1)
    first, second = _wide(x).chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


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
    """Per-head RMSNorm of q and k, RoPE on both, K and V written to their slots; V is untouched.

    qkv [T, (Hq + 2 Hkv) D] from the fused projection, q_weight and k_weight [D], positions [T], slot_mapping [T]
    int64 (-1 writes nothing), caches [num_blocks, Hkv, block_size, D] -> q [T, Hq, D].
    """
    key_cache, value_cache = cache
    _, kv_heads, block_size, head_dim = key_cache.shape
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    q_heads = heads.shape[1] - 2 * kv_heads
    qk, v = heads.split_with_sizes((q_heads + kv_heads, kv_heads), dim=1)
    # One norm and one rotation for q and k together: fewer, larger operations.
    weight = torch.cat((q_weight.expand(q_heads, -1), k_weight.expand(kv_heads, -1)))
    q, k = rope(rms_norm(qk, weight, eps), positions, rope_table).split_with_sizes((q_heads, kv_heads), dim=1)
    slots = slot_mapping.tolist()
    if len(slots) == 1 and slots[0] >= 0:
        block, offset = divmod(slots[0], block_size)
        key_cache[block, :, offset], value_cache[block, :, offset] = k[0], v[0]
        return q
    if min(slots, default=0) < 0:
        kept = slot_mapping >= 0
        slot_mapping, k, v = slot_mapping[kept], k[kept], v[kept]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    key_cache.transpose(1, 2)[block, offset] = k
    value_cache.transpose(1, 2)[block, offset] = v
    return q


def _gather(caches: PagedCache, block_tables: Tensor, length: int) -> tuple[Tensor, ...]:
    """The first `length` slots of each table: two of [num_blocks, Hkv, block_size, D] -> two of [S, Hkv, length, D]."""
    num_blocks, kv_heads, block_size, head_dim = caches[0].shape
    blocks = block_tables[:, None, : -(-length // block_size)]
    rows = torch.add(torch.arange(kv_heads, device=blocks.device)[:, None], blocks, alpha=kv_heads)
    pages = (torch.embedding(cache.view(num_blocks * kv_heads, -1), rows) for cache in caches)
    return tuple(p.view(len(blocks), kv_heads, -1, head_dim)[:, :, :length] for p in pages)


def decode_attention(q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float) -> Tensor:
    """Grouped-query attention of one query token per sequence over its pages (PagedAttention, Kwon et al., 2023).

    q [S, Hq, D], caches [num_blocks, Hkv, block_size, D], block_tables [S, max_blocks], seq_lens [S] including
    the query token; length 0 gives zeros -> [S, Hq, D]. Query head h reads key/value head h // (Hq / Hkv).
    """
    sequences, q_heads, head_dim = q.shape
    kv_heads = cache.keys.shape[1]
    lengths = seq_lens.tolist()
    longest = max(lengths, default=0)
    if longest == 0:
        return torch.zeros_like(q)
    keys, values = _gather(cache, block_tables, longest)
    mask = None
    if min(lengths) < longest:
        mask = torch.arange(longest, device=q.device) < seq_lens[:, None]
        # A slot that was never written may hold NaN, and 0 * NaN is NaN.
        unused = ~mask[:, None, :, None]
        keys, values = keys.masked_fill(unused, 0), values.masked_fill(unused, 0)
        mask = mask[:, None, None, :]
    # The heads of a group are the rows of one small query matrix: no key is repeated.
    grouped = q.view(sequences, kv_heads, q_heads // kv_heads, head_dim)
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
    if min(lengths) == 0:
        out = out.masked_fill(seq_lens.view(-1, 1, 1, 1) == 0, 0)
    return out.reshape(sequences, q_heads, head_dim)


def prefill_attention(
    q: Tensor,
    cache: PagedCache,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> Tensor:
    """Causal grouped-query attention of several query tokens per sequence over its pages.

    q [T, Hq, D]: the queries of sequence s are rows query_start_loc[s] to query_start_loc[s + 1], the last of
    its seq_lens[s] tokens. query_start_loc [S + 1], block_tables [S, max_blocks] -> [T, Hq, D].
    """
    kv_heads = cache.keys.shape[1]
    starts = query_start_loc.tolist()
    by_block = q.device.type == "cpu" and q.dtype != torch.float64 and not torch.is_grad_enabled()
    outs = []
    for s, length in enumerate(seq_lens.tolist()):
        queries = q[starts[s] : starts[s + 1]].transpose(0, 1)
        n = queries.shape[1]
        keys, values = _gather(cache, block_tables[s : s + 1], length)
        if by_block and n > 128:
            outs.append(causal_attention(queries, keys[0], values[0], scale).transpose(0, 1))
            continue
        mask = None
        if n < length:
            mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
        out = F.scaled_dot_product_attention(
            queries[None], keys, values, mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != kv_heads
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020). gate_up [..., 2 I], the gate first -> [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    # PyTorch's silu in bfloat16 is slow where rows are not contiguous.
    return F.silu(gate.contiguous() if gate.dtype == torch.bfloat16 else gate) * up


def route(router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """The experts of each token and their weights. router_logits [T, E] -> (weights [T, k], expert_ids [T, k] int64).

    Softmax wide over all experts, top-k, weights divided by their sum when `renormalize`, rounded to the dtype of the
    logits last.
    """
    logits = _wide(router_logits)
    if renormalize:
        # The softmax over the k largest: what all experts' softmax, divided by its sum over these, comes to.
        logits, expert_ids = logits.topk(top_k, dim=-1)
        weights = logits.softmax(-1)
    else:
        weights, expert_ids = logits.softmax(-1).topk(top_k, dim=-1)
    return weights.to(router_logits.dtype), expert_ids


def moe_experts(x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
    """The weighted sum of each token's experts: sum over k of weight * down(swiglu(gate_up(x))).

    x [T, H], gate_up_weight [E, 2 I, H], down_weight [E, H, I], weights and expert_ids [T, k] -> [T, H]. The rows of
    an expert lie together; small experts whose load is even get rows of padding, so that one batched product does them.
    """
    tokens, top_k = expert_ids.shape
    gate_up_weight, down_weight = gate_up.data, down.data
    if tokens == 1:
        # Nothing to gather.
        hit = expert_ids[0].tolist()
        hidden = swiglu(row_products(x.expand(top_k, -1), gate_up_weight, hit))
        return weights @ row_products(hidden, down_weight, hit)
    experts = gate_up_weight.shape[0]
    # How many tokens up to each one chose an expert: the token's place among the rows of the expert.
    places = expert_ids.new_zeros(tokens, experts).scatter_(1, expert_ids, 1).cumsum(0)
    counts = places[-1].tolist()
    most = max(counts)
    padded = gate_up_weight.numel() <= 2**20 and most <= 32 + 1.25 * tokens * top_k / experts
    # Where the rows of a token's experts begin, plus its place among them.
    if padded:
        starts = expert_ids * most
    else:
        starts = torch.tensor([0, *accumulate(counts)][:-1], device=x.device)[expert_ids]
    pairs = starts + places.gather(1, expert_ids) - 1
    token_of_row = expert_ids.new_zeros(experts * most if padded else sum(counts))
    token_of_row[pairs] = torch.arange(tokens, device=x.device)[:, None]
    rows = torch.embedding(x, token_of_row)
    if padded:
        hidden = swiglu(torch.bmm(rows.view(experts, most, -1), gate_up_weight.mT))
        out = torch.bmm(hidden, down_weight.mT).flatten(0, 1)
    else:
        hidden = swiglu(products(rows, gate_up_weight, counts))
        out = products(hidden, down_weight, counts)
    if tokens * top_k > 512:
        # Gathered and summed wide in one pass.
        return F.embedding_bag(pairs, out, per_sample_weights=weights, mode="sum")
    # A row of weights times a matrix of k rows for each token: one pass, summed wide, rounded once.
    return torch.bmm(weights[:, None], torch.embedding(out, pairs))[:, 0]


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """One token id per row, a function of its logits, its parameters and (seed, position) alone.

    logits [S, V] float32; temperature [S], 0 is greedy; top_k [S] int64, V keeps all; top_p [S], 1 keeps all;
    min_p [S], 0 keeps all; seeds [S] int64; positions [S] int64 of the token to be drawn -> [S] int64. The order is
    transformers': temperature, top-k, top-p (the token that crosses top_p stays), min-p relative to the most likely.
    Each filter is a threshold on the logits, so tokens of equal logits stay or go together.
    """
    if not bool(temperature.any()):
        return logits.argmax(-1)
    greedy = temperature == 0
    best, best_ids = logits.max(-1, keepdim=True)
    divisor = torch.where(greedy, 1.0, temperature)[:, None]
    scaled = logits / divisor
    threshold = best / divisor + min_p[:, None].log()
    limit = min(int(top_k.max()), logits.shape[1])
    if limit < logits.shape[1] or bool((top_p < 1).any()):
        ranked = scaled.topk(limit, dim=-1).values
        threshold = torch.maximum(threshold, ranked.gather(1, top_k.clamp(max=limit)[:, None] - 1))
        masked = ranked.masked_fill(torch.arange(limit, device=logits.device) >= top_k[:, None], float("-inf"))
        probabilities = masked.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        last = (before < top_p[:, None]).sum(-1, keepdim=True).clamp(min=1) - 1
        threshold = torch.maximum(threshold, ranked.gather(1, torch.minimum(last, top_k[:, None] - 1)))
    cumulative = scaled.masked_fill(scaled < threshold, float("-inf")).softmax(-1).cumsum(-1)
    drawn = uniform(seeds, positions)[:, None] * cumulative[:, -1:]
    tokens = (cumulative > drawn).to(torch.uint8).argmax(-1)
    return torch.where(greedy, best_ids[:, 0], tokens)
