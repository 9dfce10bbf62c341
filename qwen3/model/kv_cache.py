"""Paged KV cache: the memory of all layers."""

import torch

from qwen3_kernels.paged_cache import PagedCache

from ..config.model import ModelConfig


class KVCache:
    """The blocks of every layer, not initialized; engine/blocks.py decides which sequence holds which."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.block_size, self.num_blocks = block_size, num_blocks
        self.layers = [
            PagedCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]
