"""What a model computes on its way: hidden states and chosen experts of every layer, ours and transformers'."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from qwen3 import LLM
from qwen3.kv_cache import KVCache
from qwen3.step import Step


@dataclass(frozen=True)
class Trace:
    """One forward pass over T tokens of one sequence."""

    hidden: list[Tensor]  # each layer's output, [T, H]
    expert_ids: dict[int, Tensor]  # by layer number, [T, k]; dense layers have none
    logits: Tensor  # [T, V] float32


@torch.inference_mode()
def trace_ours(llm: LLM, token_ids: list[int]) -> Trace:
    """One prefill of all tokens through `llm`'s own model, with nothing in the cache before."""
    block_size = 16
    num_blocks = -(-len(token_ids) // block_size)
    sequence = SimpleNamespace(token_ids=token_ids, computed=0, blocks=list(range(num_blocks)))
    step = Step.of([(sequence, len(token_ids))], block_size, llm.device)
    step.routing = []
    hidden: list[Tensor] = []
    # A kernel may write over the residual that it was given: the sum is taken before the next layer runs.
    hooks = [layer.register_forward_hook(lambda *call: hidden.append(sum(call[2]))) for layer in llm.model.layers]
    try:
        last = llm.model(step, KVCache(llm.config, num_blocks, block_size, llm.dtype, llm.device))
    finally:
        for hook in hooks:
            hook.remove()
    moe_layers = [layer for layer in range(llm.config.num_layers) if llm.config.is_moe_layer(layer)]
    expert_ids = dict(zip(moe_layers, (ids for _, ids in step.routing), strict=True))
    return Trace(hidden, expert_ids, llm.model.logits(last))


@torch.inference_mode()
def trace_transformers(model: nn.Module, token_ids: list[int]) -> Trace:
    """The same from a Qwen3 or Qwen3-MoE model of transformers."""
    hidden: list[Tensor] = []
    expert_ids: dict[int, Tensor] = {}
    hooks = []

    def keep(layer: int, gate: nn.Module, inputs: tuple, output: tuple) -> None:
        expert_ids[layer] = output[-1]

    for i, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(lambda *call: hidden.append(call[2][0])))
        if hasattr(layer.mlp, "gate"):
            hooks.append(layer.mlp.gate.register_forward_hook(partial(keep, i)))
    try:
        logits = model(torch.tensor([token_ids], device=model.device), use_cache=False).logits[0].float()
    finally:
        for hook in hooks:
            hook.remove()
    return Trace(hidden, expert_ids, logits)
