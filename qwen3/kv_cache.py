"""The paged KV cache: a pool of blocks, each holding the K and V of `block_size` tokens in every layer."""

from typing import NamedTuple

import torch
from torch import Tensor

from .config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's keys and values, each [num_blocks, num_kv_heads, block_size, head_dim]."""

    keys: Tensor
    values: Tensor


class KVCache:
    """The blocks of all layers; which of them belong to which sequence is the allocator's business."""

    def __init__(self, config: ModelConfig, num_blocks: int, block_size: int, dtype: torch.dtype, device="cpu"):
        shape = (num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.block_size, self.num_blocks = block_size, num_blocks
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(config.num_layers)
        ]


class BlockAllocator:
    """A free list of block ids."""

    def __init__(self, num_blocks: int):
        self._free = list(range(num_blocks - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` block ids; raises MemoryError, and takes none, when fewer are free."""
        if count > len(self._free):
            raise MemoryError(f"{count} KV blocks are needed and {len(self._free)} are free")
        return [self._free.pop() for _ in range(count)]

    def give_back(self, blocks: list[int]) -> None:
        self._free.extend(reversed(blocks))


def slots(blocks: list[int], block_size: int, start: int, stop: int) -> list[int]:
    """Slot ids of the tokens start to stop - 1 of a sequence that owns `blocks`."""
    return [blocks[i // block_size] * block_size + i % block_size for i in range(start, stop)]
