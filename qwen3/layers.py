"""The parts of a Qwen3 decoder layer; each calls the ops of a backend and nothing else."""

from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from .config.model import ModelConfig
from .kv_cache import LayerCache
from .step import Step


def empty_parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class Attention(nn.Module):
    """Grouped-query attention with per-head q/k RMSNorm; q, k and v come from one matmul."""

    def __init__(self, config: ModelConfig, ops: ModuleType, dtype: torch.dtype):
        super().__init__()
        parameter = partial(empty_parameter, dtype=dtype)
        self.ops, self.eps, self.scale = ops, config.rms_norm_eps, config.head_dim**-0.5
        qkv_size = config.q_size + 2 * config.kv_size
        self.qkv_weight = parameter(qkv_size, config.hidden_size)
        self.o_weight = parameter(config.hidden_size, config.q_size)
        self.qkv_bias = parameter(qkv_size) if config.attention_bias else None
        self.o_bias = parameter(config.hidden_size) if config.attention_bias else None
        self.q_norm = parameter(config.head_dim)
        self.k_norm = parameter(config.head_dim)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: Tensor,
        rope_table: Tensor,
        cache: LayerCache,
        step: Step,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (attention of norm(residual + x), residual + x), of the last row of each sequence if
        those are given as rows [S].

        Writes the step's K and V into the cache, then reads each sequence's whole context.
        """
        ops = self.ops
        qkv, residual, _ = ops.add_norm_linear(x, residual, norm, self.eps, self.qkv_weight, self.qkv_bias)
        q = ops.qk_norm_rope_cache(
            qkv, self.q_norm, self.k_norm, self.eps, step.positions, rope_table, step.slot_mapping, *cache
        )
        if rows is not None:
            # One query token for each sequence, as in a decode.
            q, residual = q[rows], residual[rows]
            out = ops.decode_attention(q, *cache, step.block_tables, step.context_lengths, self.scale)
        else:
            out = self._attend(q, cache, step)
        return ops.linear(out.reshape(len(out), -1), self.o_weight, self.o_bias), residual

    def _attend(self, q: Tensor, cache: LayerCache, step: Step) -> Tensor:
        """q [T, Hq, D]: the decodes, then the prefills -> [T, Hq, D]."""
        d, outs = step.num_decodes, []
        if d:
            outs.append(self.ops.decode_attention(q[:d], *cache, *step.decodes, self.scale))
        if d < len(q):
            outs.append(self.ops.prefill_attention(q[d:], *cache, *step.prefills, self.scale))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


class DenseMLP(nn.Module):
    """SwiGLU feed-forward; gate and up come from one matmul."""

    def __init__(self, config: ModelConfig, ops: ModuleType, dtype: torch.dtype):
        super().__init__()
        parameter = partial(empty_parameter, dtype=dtype)
        self.ops, self.eps = ops, config.rms_norm_eps
        self.gate_up_weight = parameter(2 * config.intermediate_size, config.hidden_size)
        self.down_weight = parameter(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, residual: Tensor, norm: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (MLP of norm(residual + x), residual + x)."""
        gate_up, residual, _ = self.ops.add_norm_linear(x, residual, norm, self.eps, self.gate_up_weight)
        return self.ops.linear(self.ops.swiglu(gate_up), self.down_weight), residual


class SparseMoE(nn.Module):
    """Each token goes to its top-k experts; the router decides from the token alone."""

    def __init__(self, config: ModelConfig, ops: ModuleType, dtype: torch.dtype):
        super().__init__()
        parameter = partial(empty_parameter, dtype=dtype)
        self.ops, self.eps = ops, config.rms_norm_eps
        self.top_k, self.renormalise = config.top_k, config.norm_topk_prob
        hidden, size, experts = config.hidden_size, config.moe_intermediate_size, config.num_experts
        self.router_weight = parameter(experts, hidden)
        self.gate_up_weight = parameter(experts, 2 * size, hidden)
        self.down_weight = parameter(experts, hidden, size)

    def forward(self, x: Tensor, residual: Tensor, norm: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] -> (weighted sum of each token's experts on norm(residual + x), residual + x)."""
        ops = self.ops
        router_logits, residual, x = ops.add_norm_linear(x, residual, norm, self.eps, self.router_weight)
        weights, expert_ids = ops.route(router_logits, self.top_k, self.renormalise)
        if step.routing is not None:
            step.routing.append((router_logits, expert_ids))
        return ops.moe_experts(x, self.gate_up_weight, self.down_weight, weights, expert_ids), residual


class DecoderLayer(nn.Module):
    """Attention, then MLP or experts; each adds what came before it to the residual and normalises the sum."""

    def __init__(self, config: ModelConfig, layer: int, ops: ModuleType, dtype: torch.dtype):
        super().__init__()
        parameter = partial(empty_parameter, dtype=dtype)
        self.input_norm = parameter(config.hidden_size)
        self.attention = Attention(config, ops, dtype)
        self.post_attention_norm = parameter(config.hidden_size)
        self.mlp = (SparseMoE if config.is_moe_layer(layer) else DenseMLP)(config, ops, dtype)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        rope_table: Tensor,
        cache: LayerCache,
        step: Step,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x, residual [T, H] (None before the first layer) -> (x, residual): their sum is the layer's output.

        rows [S]: only the output of these is wanted, each sequence's last -> [S, H].
        """
        x, residual = self.attention(x, residual, self.input_norm, rope_table, cache, step, rows)
        return self.mlp(x, residual, self.post_attention_norm, step)
