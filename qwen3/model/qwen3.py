"""The forward pass of Qwen3, top to bottom."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qwen3_kernels.ops import Ops

from ..config.model import ModelConfig
from .blocks import DecoderLayer, Routing
from .forward_batch import ForwardBatch
from .kv_cache import KVCache
from .modules import Embedding, Experts, Linear, Norm, WeightModule
from .rope import rope_table


class Hidden(NamedTuple):
    """The output of the decoder layers."""

    states: Tensor  # [T, H], or [R, H] where the batch has logit rows; after the last norm
    routing: list[Routing]  # one for each layer with experts where it was asked for, else none


class Qwen3(nn.Module):
    """Decoder-only transformer over a paged KV cache (Qwen3 technical report, 2025).

    Made with uninitialized parameters of `dtype` on `device`: fill them with `load.loader.load_weights` or
    `random_weights`, or train them. The rotary table has `max_model_len` rows, the longest context in tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        ops: Ops,
        max_model_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.config, self.ops, self.dtype, self.device = config, ops, dtype, torch.device(device)
        with self.device:
            table = rope_table(config, max_model_len)
            self.embedding = Embedding("model.embed_tokens", config.vocab_size, config.hidden_size, dtype)
            self.layers = nn.ModuleList(DecoderLayer(config, i, table, ops, dtype) for i in range(config.num_layers))
            self.norm = Norm("model.norm", config.hidden_size, dtype)
            self.lm_head = None
            if not config.tie_word_embeddings:
                self.lm_head = Linear({"lm_head": config.vocab_size}, config.hidden_size, dtype, cut="rows")

    def forward(self, batch: ForwardBatch, cache: KVCache, keep_routing: bool = False) -> Hidden:
        """Runs all layers; K and V of the batch's tokens are in the cache afterwards.

        The last layer computes only the batch's logit rows after writing K and V.
        """
        ops, last = self.ops, len(self.layers) - 1
        routing: list[Routing] = []
        x = ops.embedding(batch.token_ids, self.embedding.weight)
        residual: Tensor | None = None
        for i, (layer, layer_cache) in enumerate(zip(self.layers, cache.layers)):
            logit_rows = batch.logit_rows if i == last else None
            x, residual, layer_routing = layer(x, residual, batch, layer_cache, logit_rows)
            if keep_routing and layer_routing is not None:
                routing.append(layer_routing)
        assert residual is not None, "a model has at least one layer"
        states, _ = ops.add_rms_norm(x, residual, self.norm.weight, self.config.rms_norm_eps)
        return Hidden(states, routing)

    def logits(self, states: Tensor) -> Tensor:
        """states [N, H] -> float32 [N, V]."""
        head = self.embedding if self.lm_head is None else self.lm_head
        return self.ops.linear(states, head.weight).float()

    def weight_modules(self) -> Iterator[WeightModule]:
        """Every module that owns weights."""
        return (module for module in self.modules() if isinstance(module, WeightModule))

    def published(self) -> dict[str, Tensor]:
        """All published tensors by name, each as the view of the parameter that holds it."""
        return {name: tensor for module in self.weight_modules() for name, tensor in module.published().items()}

    def stacked(self) -> dict[str, tuple[Tensor, list[str]]]:
        """The other names that files may use for the tensors of all experts of a layer; see Experts.stacked."""
        experts = (module for module in self.modules() if isinstance(module, Experts))
        return {name: entry for module in experts for name, entry in module.stacked().items()}


@torch.no_grad()
def random_weights(model: Qwen3) -> None:
    """Fills every parameter in place: norms and biases with 1, the rest with normal numbers of deviation 0.02."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)
