"""From scheduled work to the tensors that a step reads."""

import torch
from torch import Tensor

from ..model.forward_batch import ForwardBatch, LogitRows
from .blocks import slots
from .scheduler import Scheduled


def forward_batch(
    scheduled: Scheduled,
    block_size: int,
    device: torch.device | str,
    token_ids: Tensor | None = None,
    all_logits: bool = False,
) -> ForwardBatch:
    """The forward batch of one step.

    token_ids [T]: those of a predicted step, whose ids are only on the device yet. all_logits: the logits of all rows
    are wanted, not only of those that sample.
    """
    known: list[int] = []
    positions: list[int] = []
    slot_mapping: list[int] = []
    ends = [0]
    for sequence, start, num_tokens, _ in scheduled.work:
        stop = start + num_tokens
        if token_ids is None:
            known += sequence.token_ids[start:stop]
        positions += range(start, stop)
        slot_mapping += slots(sequence.blocks, block_size, start, stop)
        ends.append(ends[-1] + num_tokens)
    seq_lens = [item.stop for item in scheduled.work]
    used = [-(-length // block_size) for length in seq_lens]
    widest = max(used)
    tables = [item.sequence.blocks[:n] + [0] * (widest - n) for item, n in zip(scheduled.work, used)]
    sampling = [i for i, item in enumerate(scheduled.work) if item.samples]
    rows = [ends[i + 1] - 1 for i in sampling]

    if token_ids is None:
        token_ids, device_positions, device_slots = to_device([known, positions, slot_mapping], device)
    else:
        device_positions, device_slots = to_device([positions, slot_mapping], device)
    block_tables, device_lens = to_device(tables, device), to_device(seq_lens, device)
    logit_rows = None
    if not all_logits and len(rows) < ends[-1]:
        device_rows, places = to_device([rows, sampling], device)
        logit_rows = LogitRows(device_rows, block_tables[places], device_lens[places])
    d = scheduled.num_decodes
    return ForwardBatch(
        token_ids=token_ids,
        positions=device_positions,
        slot_mapping=device_slots,
        num_decodes=d,
        block_tables=block_tables,
        seq_lens=device_lens,
        query_start_loc=to_device([end - d for end in ends[d:]], device),
        logit_rows=logit_rows,
    )


def to_device(values: list, device: torch.device | str, dtype: torch.dtype = torch.int64) -> Tensor:
    """Nested lists as a tensor, copied to a GPU without waiting for what it is doing."""
    if torch.device(device).type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
