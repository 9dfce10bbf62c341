"""What one step of the model needs to know, as one value that is passed down."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .kv_cache import slots

if TYPE_CHECKING:
    from .sequence import Sequence


@dataclass
class Step:
    """T tokens of S sequences: first `num_decodes` sequences of one query token each, then the prefills.

    All tensors lie on the model's device.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its sequence
    slot_mapping: Tensor  # [T] int64, where each token's K and V go; -1 writes nothing
    num_decodes: int
    block_tables: Tensor  # [S, max_blocks] int64, the pages of each sequence in reading order
    context_lengths: Tensor  # [S] int64, tokens of each sequence after this step
    query_starts: (
        Tensor  # [S - num_decodes + 1] int64, rows where each prefill's tokens start, counted after the decodes
    )
    last_rows: Tensor  # [S] int64, the row of each sequence's last token in this step
    routing: list[tuple[Tensor, Tensor]] | None = None  # a list collects (router_logits, expert_ids) layer by layer

    @cached_property
    def decodes(self) -> tuple[Tensor, Tensor]:
        """Block tables and context lengths of the decodes."""
        return self.block_tables[: self.num_decodes], self.context_lengths[: self.num_decodes]

    @cached_property
    def prefills(self) -> tuple[Tensor, Tensor, Tensor]:
        """Block tables, query starts and context lengths of the prefills."""
        return self.block_tables[self.num_decodes :], self.query_starts, self.context_lengths[self.num_decodes :]

    @classmethod
    def of(cls, work: list[tuple["Sequence", int]], block_size: int, device: torch.device | str) -> "Step":
        """The step that computes the next `count` tokens of each (sequence, count), in this order.

        A sequence is a decode when one token is left of it and something is cached; decodes must come first. A token
        that is still being drawn is 0 here: fill it in before the step runs.
        """
        token_ids, positions, slot_mapping, ends = [], [], [], [0]
        num_decodes = sum(count == 1 and sequence.computed > 0 for sequence, count in work)
        for sequence, count in work:
            start, stop = sequence.computed, sequence.computed + count
            known = sequence.token_ids[start:stop]
            token_ids += known or [0]
            positions += range(start, stop)
            slot_mapping += slots(sequence.blocks, block_size, start, stop)
            ends.append(ends[-1] + count)
        lengths = [sequence.computed + count for sequence, count in work]
        used = [-(-length // block_size) for length in lengths]
        widest = max(used)
        tables = [sequence.blocks[:n] + [0] * (widest - n) for (sequence, _), n in zip(work, used)]
        token_ids, positions, slot_mapping = to_device([token_ids, positions, slot_mapping], device)
        lengths, last_rows = to_device([lengths, [end - 1 for end in ends[1:]]], device)
        return cls(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            num_decodes=num_decodes,
            block_tables=to_device(tables, device),
            context_lengths=lengths,
            query_starts=to_device([end - num_decodes for end in ends[num_decodes:]], device),
            last_rows=last_rows,
        )


def to_device(values: list, device: torch.device | str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Nested lists as a tensor, copied to a GPU without waiting for what it is doing."""
    if torch.device(device).type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
