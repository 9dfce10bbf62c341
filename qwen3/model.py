"""The forward pass of Qwen3, top to bottom."""

import math
from types import ModuleType

import torch
from torch import Tensor, nn

from .config.model import ModelConfig
from .kv_cache import KVCache
from .layers import DecoderLayer, empty_parameter
from .step import Step


class Qwen3(nn.Module):
    """Decoder-only transformer over a paged KV cache (Qwen3 technical report, 2025).

    Made with empty parameters of `dtype` on `device`: fill them with `checkpoint.load_weights` or `random_weights`, or
    train them. The rotary table has `max_model_len` rows, the longest context in tokens.
    """

    def __init__(self, config: ModelConfig, ops: ModuleType, max_model_len: int, dtype=torch.float32, device="cpu"):
        super().__init__()
        self.config, self.ops = config, ops
        with torch.device(device):
            self.embed_tokens = empty_parameter(config.vocab_size, config.hidden_size, dtype=dtype)
            self.layers = nn.ModuleList(DecoderLayer(config, i, ops, dtype) for i in range(config.num_layers))
            self.norm = empty_parameter(config.hidden_size, dtype=dtype)
            tied = config.tie_word_embeddings
            self.lm_head = None if tied else empty_parameter(config.vocab_size, config.hidden_size, dtype=dtype)
            self.register_buffer("rope_table", rope_table(config, max_model_len), persistent=False)

    def forward(self, step: Step, cache: KVCache, last_only: bool = False) -> Tensor:
        """Hidden states [T, H] after the last norm; K and V of the step's tokens are in the cache afterwards.

        last_only: those of each sequence's last token alone, [S, H]; the last layer computes no others.
        """
        x, residual = self.ops.embedding(step.token_ids, self.embed_tokens), None
        rope_table, rows = self.rope_table, [None] * len(self.layers)
        if last_only and len(step.last_rows) < len(step.token_ids):
            rows[-1] = step.last_rows
        for layer, layer_cache, wanted in zip(self.layers, cache.layers, rows):
            x, residual = layer(x, residual, rope_table, layer_cache, step, wanted)
        return self.ops.add_rms_norm(x, residual, self.norm, self.config.rms_norm_eps)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, H] -> float32 [N, V]."""
        return self.ops.linear(hidden, self.embed_tokens if self.lm_head is None else self.lm_head).float()


@torch.no_grad()
def random_weights(model: Qwen3) -> None:
    """Fills every parameter where it lies: norms with 1, the rest with normal numbers of deviation 0.02."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(std=0.02)


def rope_table(config: ModelConfig, length: int) -> Tensor:
    """Cosines then sines of every position, [length, head_dim] float32, YaRN's attention factor included."""
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse_frequencies(config)
    magnitude = config.yarn.magnitude if config.yarn else 1.0
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * magnitude


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotated pair, [head_dim / 2] float32.

    With YaRN (Peng et al., 2023, section 3.2) pairs that turn more than beta_fast times within the original context
    keep their frequency, those that turn less than beta_slow times are slowed by the factor, a ramp lies between.
    """
    dim, theta, yarn = config.head_dim, config.rope_theta, config.yarn
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return frequencies

    def pair_that_turns(times: float) -> float:
        return dim * math.log(yarn.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / yarn.factor * ramp
