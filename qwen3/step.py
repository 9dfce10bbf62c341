"""What one step of the model needs to know, as one value that is passed down."""

from dataclasses import dataclass
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
    query_starts: Tensor  # [S - num_decodes + 1] int64, rows where each prefill's tokens start, counted after the decodes
    last_rows: Tensor  # [S] int64, the row of each sequence's last token in this step
    routing: list[tuple[Tensor, Tensor]] | None = None  # a list collects (router_logits, expert_ids) layer by layer

    @classmethod
    def of(cls, work: list[tuple["Sequence", int]], block_size: int, device: torch.device | str) -> "Step":
        """The step that computes the next `count` tokens of each (sequence, count), in this order.

        A sequence is a decode when one token is left of it and something is cached; decodes must come first.
        """
        token_ids, positions, slot_mapping, ends = [], [], [], [0]
        num_decodes = sum(count == 1 and sequence.computed > 0 for sequence, count in work)
        for sequence, count in work:
            start, stop = sequence.computed, sequence.computed + count
            token_ids += sequence.token_ids[start:stop]
            positions += range(start, stop)
            slot_mapping += slots(sequence.blocks, block_size, start, stop)
            ends.append(ends[-1] + count)
        used = [-(-(sequence.computed + count) // block_size) for sequence, count in work]
        widest = max(used)
        tables = [sequence.blocks[:n] + [0] * (widest - n) for (sequence, _), n in zip(work, used)]
        ints = torch.tensor([token_ids, positions, slot_mapping], device=device)
        return cls(
            token_ids=ints[0],
            positions=ints[1],
            slot_mapping=ints[2],
            num_decodes=num_decodes,
            block_tables=torch.tensor(tables, device=device),
            context_lengths=torch.tensor([sequence.computed + count for sequence, count in work], device=device),
            query_starts=torch.tensor(ends[num_decodes:], device=device) - num_decodes,
            last_rows=torch.tensor(ends[1:], device=device) - 1,
        )
