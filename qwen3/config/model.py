"""The shape of a Qwen3 model."""

import math
from dataclasses import dataclass, field

import torch

from qwen3_kernels.weights import Dense, Weight

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (Peng et al., 2023): stretches rotary frequencies by up to `factor`, scales attention."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        """The factor of cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Qwen3 model, dense (num_experts 0) or mixture of experts; sizes in elements."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float
    max_positions: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool = False
    num_experts: int = 0
    top_k: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    dense_layers: frozenset[int] = frozenset()
    yarn: Yarn | None = None
    dtype: torch.dtype | None = None
    weight_kind: type[Weight] = Dense  # the format of projections and experts; all else is dense
    eos_token_ids: tuple[int, ...] = ()
    source: str = field(default="config", compare=False)

    def is_moe_layer(self, layer: int) -> bool:
        return self.num_experts > 0 and layer not in self.dense_layers

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def max_context(self) -> int:
        """The longest context in tokens that the rotary embedding supports, YaRN included."""
        if self.yarn is None:
            return self.max_positions
        return max(self.max_positions, round(self.yarn.factor * self.yarn.original_max_positions))

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.kv_size * dtype.itemsize
