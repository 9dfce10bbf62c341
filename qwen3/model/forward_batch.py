"""The input of one forward pass, as a value of device tensors."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor


class LogitRows(NamedTuple):
    """R rows of a forward batch whose logits are wanted; in the last layer each is a query token of its own."""

    rows: Tensor  # [R] int64, places among the batch's tokens
    block_tables: Tensor  # [R, max_blocks] int64, those of each row's sequence
    seq_lens: Tensor  # [R] int64, tokens that the row attends to, its own included


@dataclass(frozen=True)
class ForwardBatch:
    """T tokens of S sequences: first `num_decodes` sequences of one query token each, then the prefills.

    All tensors lie on the model's device.
    """

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64, each token's place in its sequence
    slot_mapping: Tensor  # [T] int64, where each token's K and V go; -1 writes nothing
    num_decodes: int
    block_tables: Tensor  # [S, max_blocks] int64, the blocks of each sequence in reading order
    seq_lens: Tensor  # [S] int64, tokens of each sequence after this step
    query_start_loc: Tensor  # [S - num_decodes + 1] int64, first row of each prefill, counted from the first prefill
    logit_rows: LogitRows | None = None  # None: the logits of all rows are wanted

    @property
    def is_decode(self) -> bool:
        """Whether every sequence has one query token, so that a recorded step can run the batch."""
        return self.num_decodes == len(self.seq_lens)

    @cached_property
    def decodes(self) -> tuple[Tensor, Tensor]:
        """Block tables and sequence lengths of the decodes."""
        return self.block_tables[: self.num_decodes], self.seq_lens[: self.num_decodes]

    @cached_property
    def prefills(self) -> tuple[Tensor, Tensor, Tensor]:
        """Block tables, first rows and sequence lengths of the prefills."""
        return self.block_tables[self.num_decodes :], self.query_start_loc, self.seq_lens[self.num_decodes :]
