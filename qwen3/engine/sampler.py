"""Sampling of one token for each sequence of a step."""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3_kernels.ops import NO_TOKEN, Ops

from .inputs import to_device
from .request import TokenLogprob
from .scheduler import Work
from .sequence import Sequence


class SamplingBatch(NamedTuple):
    """What a backend's `sample` needs beside the logits of S sequences, on the device."""

    temperature: Tensor  # [S] float32
    top_k: Tensor  # [S] int64, the size of the vocabulary keeps all
    top_p: Tensor  # [S] float32
    min_p: Tensor  # [S] float32
    seeds: Tensor  # [S] int64
    positions: Tensor  # [S] int64, the place in its sequence of each token to be sampled

    @classmethod
    def from_work(cls, work: list[Work], vocab_size: int, device: torch.device | str) -> "SamplingBatch":
        """A row for each item of `work`, all of which sample."""
        sampling = [item.sequence.sampling for item in work]
        floats = [[p.temperature for p in sampling], [p.top_p for p in sampling], [p.min_p for p in sampling]]
        ks = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in sampling]
        temperature, top_p, min_p = to_device(floats, device, torch.float32)
        top_k, seeds, positions = to_device([ks, [p.seed for p in sampling], [item.stop for item in work]], device)
        return cls(temperature, top_k, top_p, min_p, seeds, positions)


class Sampler:
    """Samples through a backend's `sample`; nothing here waits for a GPU but `logprobs`."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def __call__(self, logits: Tensor, batch: SamplingBatch, sequences: list[Sequence]) -> Tensor:
        """logits float32 [S, V], row i for sequences[i] -> token ids [S] int64, on the device."""
        return self.ops.sample(penalized(logits, sequences), *batch)

    def logprobs(self, logits: Tensor, sequences: list[Sequence], token_ids: list[int]) -> list[TokenLogprob | None]:
        """The log-probabilities that each sequence asked for, None for those that asked for none."""
        counts = [sequence.num_logprobs for sequence in sequences]
        return [
            None if count is None or token == NO_TOKEN else _logprob(logits[row], token, count)
            for row, (count, token) in enumerate(zip(counts, token_ids))
        ]


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    values = logits.log_softmax(-1)
    top = values.topk(min(count, len(values)))
    return TokenLogprob(token, values[token].item(), tuple(zip(top.indices.tolist(), top.values.tolist())))


def penalized(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Applies the repetition penalty first, as in transformers, then presence and frequency penalties.

    logits [S, V] -> [S, V], a copy if any sequence has penalties.
    """
    out = logits
    for row, sequence in enumerate(sequences):
        p = sequence.sampling
        if not p.penalizes:
            continue
        out = out.clone() if out is logits else out
        # A token that occurs twice is read and written twice, with the same value.
        if p.repetition_penalty != 1:
            seen = to_device(sequence.token_ids, logits.device)
            values = out[row, seen]
            out[row, seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        answer = sequence.token_ids[sequence.prompt_length :]
        if answer:
            counts = Counter(answer)
            ids = to_device(list(counts), logits.device)
            counted = to_device(list(counts.values()), logits.device)
            out[row, ids] -= p.presence_penalty + p.frequency_penalty * counted
    return out
