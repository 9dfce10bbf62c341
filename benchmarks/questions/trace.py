"""Intermediate results of a forward pass, ours and transformers': hidden states, router logits and chosen experts."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen3 import LLM
from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence
from qwen3.model.kv_cache import KVCache


@dataclass(frozen=True)
class Trace:
    """One forward pass over T tokens of one sequence."""

    hidden: list[Tensor]  # each layer's output, [T, H]
    logits: Tensor  # [T, V] float32
    # By layer number; dense layers have none.
    router_logits: dict[int, Tensor] = field(default_factory=dict)  # [T, E]
    expert_ids: dict[int, Tensor] = field(default_factory=dict)  # [T, k]


@torch.inference_mode()
def trace_ours(llm: LLM, token_ids: list[int]) -> Trace:
    """One prefill of all tokens through `llm`'s own model, with an empty cache."""
    block_size = 16
    num_blocks = -(-len(token_ids) // block_size)
    sequence = Sequence(token_ids, Sampling(), frozenset(), len(token_ids), blocks=list(range(num_blocks)))
    scheduled = Scheduled((Work(sequence, 0, len(token_ids), samples=False),))
    batch = forward_batch(scheduled, block_size, llm.device, all_logits=True)
    hidden: list[Tensor] = []
    # A kernel may write over the residual that it gets: the sum is taken before the next layer runs.
    hooks = [layer.register_forward_hook(lambda *call: hidden.append(sum(call[2][:2]))) for layer in llm.model.layers]
    try:
        cache = KVCache(llm.config, num_blocks, block_size, llm.dtype, llm.device)
        states, routing = llm.model(batch, cache, keep_routing=True)
    finally:
        for hook in hooks:
            hook.remove()
    moe_layers = [layer for layer in range(llm.config.num_layers) if llm.config.is_moe_layer(layer)]
    by_layer = dict(zip(moe_layers, routing, strict=True))
    router_logits = {layer: found.router_logits for layer, found in by_layer.items()}
    expert_ids = {layer: found.expert_ids for layer, found in by_layer.items()}
    return Trace(hidden, llm.model.logits(states), router_logits, expert_ids)


@torch.inference_mode()
def trace_transformers(model: nn.Module, token_ids: list[int], chosen: dict[int, Tensor] | None = None) -> Trace:
    """The same from a Qwen3 or Qwen3-MoE model of transformers; `chosen` replaces its routers' choice."""
    trace = Trace([], torch.empty(0))
    hooks = []

    def route(layer: int, gate: nn.Module, inputs: tuple, output: tuple) -> tuple | None:
        """The router's output is a tuple whose last two items are the weights and the ids of the experts, [T, k]."""
        *others, weights, ids = output
        logits = F.linear(inputs[0].flatten(0, -2), gate.weight)
        trace.router_logits[layer] = logits
        trace.expert_ids[layer] = ids = ids if chosen is None else chosen[layer].to(ids)
        if chosen is None:
            return None
        forced = logits.softmax(-1, dtype=torch.float32).gather(-1, ids)
        if model.config.norm_topk_prob:
            forced = forced / forced.sum(-1, keepdim=True)
        return *others, forced.to(weights.dtype), ids

    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(lambda *call: trace.hidden.append(call[2][0])))
        if hasattr(layer.mlp, "gate"):
            hooks.append(layer.mlp.gate.register_forward_hook(partial(route, i)))
    try:
        logits = model(torch.tensor([token_ids], device=model.device), use_cache=False).logits[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    return replace(trace, logits=logits)
