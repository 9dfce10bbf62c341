"""The 13 operations of a Qwen3 model: signatures and contracts, which every backend module has in common.

Shapes use T tokens, S sequences, H hidden size, D head_dim, Hq query heads, Hkv key/value heads, E experts, k experts
per token, I intermediate size, V vocabulary size, N outputs. All ops accept zero rows.

Numbers: float32, float16 or bfloat16, one dtype for all floating-point arguments of a call unless it says otherwise.
Rounding follows Hugging Face transformers' Qwen3-MoE: what is computed "in float32" is rounded to the dtype of the
inputs at the end. The reference also takes float64 and then computes everything in float64.

Errors: the Triton ops raise ValueError for a shape, dtype, device or stride that they do not support, and name the
argument, what is needed and what was given. Values on the device, such as ids, are never checked.
"""

from typing import Protocol

from torch import Tensor

from .paged_cache import PagedCache
from .weights import Weight

NO_TOKEN = -1  # what `sample` gives for a row from which nothing can be sampled


class Ops(Protocol):
    """The type of a backend module."""

    def embedding(self, token_ids: Tensor, weight: Weight) -> Tensor:
        """Rows of a table. token_ids [T] int64, weight [V, H] -> [T, H]."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """x Wᵀ + b. x [T, H], weight [N, H], bias [N] -> [T, N]."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x²) + eps) * weight (Zhang and Sennrich, 2019).

        Normalized in float32, rounded, then multiplied by the weight. x [..., H], weight [H] -> [..., H].
        """

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Residual add and the norm after it: (rms_norm(residual + x), residual + x).

        x and residual [T, H]. The sum is rounded before the norm. Use the residual that is returned: a backend may
        write the sum over the one passed in.
        """

    def add_norm_linear(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm_weight: Tensor,
        eps: float,
        weight: Weight,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Residual add, RMSNorm and projection: add_rms_norm, then linear.

        x [T, H], residual [T, H] or None before the first layer, norm_weight [H], weight [N, H], bias [N] ->
        (projection [T, N], residual + x [T, H], normalized rows [T, H]). A backend may write the sum over the residual
        passed in.
        """

    def rope(self, x: Tensor, positions: Tensor, rope_table: Tensor) -> Tensor:
        """Rotary position embedding, half-split layout, in float32 (Su et al., 2021).

        x [T, heads, D], D even, positions [T] int64, rope_table [max_positions, D] float32: D/2 cosines, then D/2
        sines, with YaRN's attention factor already in them -> [T, heads, D].
        """

    def qk_norm_rope_cache(
        self,
        qkv: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        eps: float,
        positions: Tensor,
        rope_table: Tensor,
        slot_mapping: Tensor,
        cache: PagedCache,
    ) -> Tensor:
        """RMSNorm of each q and k head, then RoPE; writes K and V to their slots and returns q. V is copied.

        qkv [T, (Hq + 2 Hkv) D] from the fused projection, q_weight and k_weight [D], positions [T] int64, slot_mapping
        [T] int64, distinct, where -1 writes nothing -> q [T, Hq, D].
        """

    def decode_attention(
        self, q: Tensor, cache: PagedCache, block_tables: Tensor, seq_lens: Tensor, scale: float
    ) -> Tensor:
        """Grouped-query attention of one query token per sequence over its blocks (PagedAttention, Kwon et al., 2023).

        q [S, Hq, D], block_tables [S, max_blocks], seq_lens [S] tokens of each sequence, the query's included; length
        0 gives zeros -> [S, Hq, D]. Query head h reads key/value head h // (Hq / Hkv). Softmax in float32.
        """

    def prefill_attention(
        self,
        q: Tensor,
        cache: PagedCache,
        block_tables: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        scale: float,
    ) -> Tensor:
        """Causal grouped-query attention of several query tokens per sequence over its blocks.

        q [T, Hq, D]: the queries of sequence s are rows query_start_loc[s] to query_start_loc[s + 1], and they are the
        last of its seq_lens[s] tokens. query_start_loc [S + 1], from 0 to T; block_tables [S, max_blocks] ->
        [T, Hq, D]. Softmax in float32.
        """

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up (Shazeer, 2020). gate_up [T, 2 I], the gate first -> [T, I]. silu(gate) is rounded first."""

    def route(self, router_logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
        """Experts of each token and their weights (Shazeer et al., 2017).

        router_logits [T, E] -> (weights [T, k], expert_ids [T, k] int64), the most likely expert first. Softmax in
        float32 over all experts, top-k, weights divided by their sum with `renormalize`, rounded last.
        """

    def moe_experts(self, x: Tensor, gate_up: Weight, down: Weight, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """Weighted sum of each token's experts: sum over k of weight * down(swiglu(gate_up(x))) (Shazeer et al., 2017).

        x [T, H], gate_up [E, 2 I, H] (gate rows, then up rows), down [E, H, I], weights [T, k], expert_ids [T, k]
        int64 -> [T, H]. The sum over k is in float32 and rounded once.
        """

    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seeds: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """One token id per row, a function of its logits, its parameters and (seed, position) alone.

        NO_TOKEN for a row that has NaN or +inf, or nothing above -inf; a logit of -inf is never sampled beside others.
        logits [S, V] float32; temperature [S] float32, 0 is greedy and takes the first of the largest logits; top_k
        [S] int64, V keeps all; top_p [S] float32, 1 keeps all; min_p [S] float32, 0 keeps all; seeds [S] int64;
        positions [S] int64 of the sampled token -> [S] int64. In the order of transformers: temperature, top-k, top-p
        (the token that crosses top_p stays), min-p relative to the most likely token. Each filter is a threshold on
        the logits, so tokens of equal logits stay or go together. One uniform number of Philox (Salmon et al., 2011)
        then picks from the running sum of the probabilities in the order of the ids.
        """
