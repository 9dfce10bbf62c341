"""Sequences in shuffled blocks for the attention tests; NaN, or a block that is not there, where no kernel may read."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.testing.contract import guarded

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NO_BLOCK = 2**31 - 1


@dataclass(frozen=True)
class AttentionCase:
    """The arguments of an attention op, and the same without NaN and missing blocks for the reference."""

    q: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    scale: float

    def decode_arguments(self) -> tuple:
        return self.q, PagedCache(self.key_cache, self.value_cache), self.block_tables, self.seq_lens, self.scale

    def prefill_arguments(self) -> tuple:
        *head, lengths, scale = self.decode_arguments()
        return *head, self.query_start_loc, lengths, scale

    def plain_tables(self) -> "AttentionCase":
        """The same with block 0 in place of missing ones."""
        return replace(self, block_tables=self.block_tables.masked_fill(self.block_tables == NO_BLOCK, 0))

    def plain(self, dtype: torch.dtype) -> "AttentionCase":
        """The same values in `dtype`, unused slots zero, block 0 in place of missing ones."""
        return replace(
            self.plain_tables(),
            q=self.q.to(dtype),
            key_cache=self.key_cache.nan_to_num().to(dtype),
            value_cache=self.value_cache.nan_to_num().to(dtype),
        )

    def chunk(self, sequence: int, start: int, stop: int) -> "AttentionCase":
        """One sequence alone, with its queries start to stop - 1 of those here and no later token in its context."""
        begin, end = self.query_start_loc[sequence : sequence + 2].tolist()
        return replace(
            self,
            q=self.q[begin + start : begin + stop].contiguous(),
            block_tables=self.block_tables[sequence : sequence + 1],
            query_start_loc=torch.tensor([0, stop - start], device=self.q.device),
            seq_lens=self.seq_lens[sequence : sequence + 1] - (end - begin - stop),
        )


def few_sums(out: Tensor) -> float:
    """The size of the terms of an output where there are so few that all may cancel, for `assert_contract`."""
    return 1.0 if out.numel() < 200 else 0.0


def attention_case(
    seq_lens: list[int],
    queries: list[int] | None = None,
    *,
    kv_heads: int = 2,
    group: int = 8,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    spare_blocks: int = 1,
    sharpness: float = 1.0,
    seed: int = 0,
) -> AttentionCase:
    """Random sequences of these lengths, with one query each or `queries`; tables `spare_blocks` wider than needed."""
    generator = torch.Generator().manual_seed(seed)
    queries = [1] * len(seq_lens) if queries is None else queries
    used = [-(-length // block_size) for length in seq_lens]
    blocks = torch.randperm(sum(used) + 2, generator=generator)
    tables = torch.full((len(used), max(used) + spare_blocks), NO_BLOCK)
    shape = (len(blocks), kv_heads, block_size, head_dim)
    key_cache, value_cache = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
    taken = 0
    for sequence, (length, count) in enumerate(zip(seq_lens, used)):
        tables[sequence, :count] = blocks[taken : taken + count]
        for slot in range(count):
            filled = min(block_size, length - slot * block_size)
            for cache in (key_cache, value_cache):
                cache[blocks[taken + slot], :, :filled] = torch.randn(kv_heads, filled, head_dim, generator=generator)
        taken += count
    q = sharpness * torch.randn(sum(queries), kv_heads * group, head_dim, generator=generator)
    starts = torch.tensor([0, *queries]).cumsum(0)
    tensors = (q.to(dtype), key_cache.to(dtype), value_cache.to(dtype), tables, starts, torch.tensor(seq_lens))
    return AttentionCase(*(guarded(tensor.to(DEVICE)) for tensor in tensors), head_dim**-0.5)
