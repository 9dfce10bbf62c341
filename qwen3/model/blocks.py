"""The blocks of a Qwen3 decoder layer; each owns the norm before it and calls the ops of a backend."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from qwen3_kernels.ops import Ops
from qwen3_kernels.paged_cache import PagedCache

from ..config.model import ModelConfig
from .forward_batch import ForwardBatch, LogitRows
from .modules import Experts, Linear, Norm


class Routing(NamedTuple):
    """What the router of one layer decided for T tokens."""

    router_logits: Tensor  # [T, E]
    expert_ids: Tensor  # [T, k] int64


class Attention(nn.Module):
    """Grouped-query attention with per-head q/k RMSNorm and RoPE; q, k and v come from one matmul."""

    def __init__(self, config: ModelConfig, name: str, rope_table: Tensor, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops, self.eps, self.scale = ops, config.rms_norm_eps, config.head_dim**-0.5
        self.rope_table, self.q_size = rope_table, config.q_size
        self.norm = Norm(f"{name}.input_layernorm", config.hidden_size, dtype)
        sizes = {"q": config.q_size, "k": config.kv_size, "v": config.kv_size}
        parts = {f"{name}.self_attn.{part}_proj": size for part, size in sizes.items()}
        bias = config.attention_bias
        kind = config.weight_kind
        self.qkv = Linear(parts, config.hidden_size, dtype, bias=bias, cut="rows", kind=kind)
        self.q_norm = Norm(f"{name}.self_attn.q_norm", config.head_dim, dtype)
        self.k_norm = Norm(f"{name}.self_attn.k_norm", config.head_dim, dtype)
        out = {f"{name}.self_attn.o_proj": config.hidden_size}
        self.o = Linear(out, config.q_size, dtype, bias=bias, cut="columns", kind=kind)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        batch: ForwardBatch,
        cache: PagedCache,
        logit_rows: LogitRows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (attention of norm(residual + x), residual + x), [R, H] each if logit_rows are given.

        Writes K and V of all T tokens into the cache, then reads each sequence's context.
        """
        ops, eps = self.ops, self.eps
        qkv, residual, _ = ops.add_norm_linear(x, residual, self.norm.weight, eps, self.qkv.weight, self.qkv.bias)
        q = ops.qk_norm_rope_cache(
            qkv,
            self.q_norm.weight,
            self.k_norm.weight,
            eps,
            batch.positions,
            self.rope_table,
            batch.slot_mapping,
            cache,
        )
        if logit_rows is not None:
            rows, block_tables, seq_lens = logit_rows
            residual = residual[rows]
            out = ops.decode_attention(q[rows], cache, block_tables, seq_lens, self.scale)
        else:
            out = self._attend(q, batch, cache)
        return ops.linear(out.reshape(len(out), self.q_size), self.o.weight, self.o.bias), residual

    def _attend(self, q: Tensor, batch: ForwardBatch, cache: PagedCache) -> Tensor:
        """q [T, Hq, D]: the decodes, then the prefills -> [T, Hq, D]."""
        d, outs = batch.num_decodes, []
        if d:
            outs.append(self.ops.decode_attention(q[:d], cache, *batch.decodes, self.scale))
        if d < len(q):
            outs.append(self.ops.prefill_attention(q[d:], cache, *batch.prefills, self.scale))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class DenseMLP(nn.Module):
    """SwiGLU feed-forward; gate and up come from one matmul."""

    def __init__(self, config: ModelConfig, name: str, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops, self.eps = ops, config.rms_norm_eps
        size, hidden = config.intermediate_size, config.hidden_size
        self.norm = Norm(f"{name}.post_attention_layernorm", hidden, dtype)
        parts = {f"{name}.mlp.gate_proj": size, f"{name}.mlp.up_proj": size}
        self.gate_up = Linear(parts, hidden, dtype, cut="rows", kind=config.weight_kind)
        down = {f"{name}.mlp.down_proj": hidden}
        self.down = Linear(down, size, dtype, cut="columns", kind=config.weight_kind)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, None]:
        """x, residual [T, H] -> (MLP of norm(residual + x), residual + x, no routing)."""
        ops = self.ops
        gate_up, residual, _ = ops.add_norm_linear(x, residual, self.norm.weight, self.eps, self.gate_up.weight)
        return ops.linear(ops.swiglu(gate_up), self.down.weight), residual, None


class SparseMoE(nn.Module):
    """Mixture of experts: the router sends each token to its top-k experts (Shazeer et al., 2017)."""

    def __init__(self, config: ModelConfig, name: str, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops, self.eps = ops, config.rms_norm_eps
        self.top_k, self.renormalize = config.top_k, config.norm_topk_prob
        hidden, experts = config.hidden_size, config.num_experts
        self.norm = Norm(f"{name}.post_attention_layernorm", hidden, dtype)
        self.router = Linear({f"{name}.mlp.gate": experts}, hidden, dtype)
        size, kind = config.moe_intermediate_size, config.weight_kind
        self.experts = Experts(f"{name}.mlp.experts", experts, hidden, size, dtype, kind=kind)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor, Routing]:
        """x, residual [T, H] -> (weighted sum of each token's experts on norm(residual + x), residual + x, routing)."""
        ops, experts = self.ops, self.experts
        router_logits, residual, x = ops.add_norm_linear(x, residual, self.norm.weight, self.eps, self.router.weight)
        weights, expert_ids = ops.route(router_logits, self.top_k, self.renormalize)
        out = ops.moe_experts(x, experts.gate_up, experts.down, weights, expert_ids)
        return out, residual, Routing(router_logits, expert_ids)


class DecoderLayer(nn.Module):
    """Attention, then MLP or experts."""

    def __init__(self, config: ModelConfig, layer: int, rope_table: Tensor, ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        name = f"model.layers.{layer}"
        self.attention = Attention(config, name, rope_table, ops, dtype)
        self.mlp = (SparseMoE if config.is_moe_layer(layer) else DenseMLP)(config, name, ops, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        batch: ForwardBatch,
        cache: PagedCache,
        logit_rows: LogitRows | None = None,
    ) -> tuple[Tensor, Tensor, Routing | None]:
        """x, residual [T, H] (None before the first layer) -> (x, residual, routing): x + residual is the output.

        logit_rows: only these R rows of the output are wanted -> x, residual [R, H].
        """
        x, residual = self.attention(x, residual, batch, cache, logit_rows)
        return self.mlp(x, residual)
