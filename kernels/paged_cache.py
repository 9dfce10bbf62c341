"""Paged KV cache of one layer."""

from typing import NamedTuple

from torch import Tensor


class PagedCache(NamedTuple):
    """Keys and values in blocks: slot s is at offset s % block_size of block s // block_size."""

    keys: Tensor  # [num_blocks, Hkv, block_size, D]
    values: Tensor  # [num_blocks, Hkv, block_size, D]
