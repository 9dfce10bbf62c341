"""Sampling of one token for each sequence of a step."""

from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3_kernels.ops import Ops

from .inputs import to_device
from .params import Sampling
from .request import TokenLogprob
from .scheduler import Work
from .sequence import Sequence

# Below it temperature is greedy: scores divided by it may not be finite in float32.
LEAST_TEMPERATURE = 1e-5


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
        temperatures = [p.temperature if p.temperature >= LEAST_TEMPERATURE else 0.0 for p in sampling]
        floats = [temperatures, [p.top_p for p in sampling], [p.min_p for p in sampling]]
        ks = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in sampling]
        temperature, top_p, min_p = to_device(floats, device, torch.float32)
        top_k, seeds, positions = to_device([ks, [p.seed for p in sampling], [item.stop for item in work]], device)
        return cls(temperature, top_k, top_p, min_p, seeds, positions)


class Sampler:
    """Samples through a backend's `sample`; nothing here waits for a GPU but `logprobs`."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops

    def __call__(self, logits: Tensor, batch: SamplingBatch, sequences: list[Sequence]) -> Tensor:
        """logits float32 [S, V], row i for sequences[i] -> token ids or NO_TOKEN [S] int64, on the device."""
        return self.ops.sample(adjusted(logits, sequences), *batch)

    def logprobs(self, logits: Tensor, sequences: list[Sequence], token_ids: list[int]) -> list[TokenLogprob | None]:
        """The log-probabilities that each sequence asked for, None for those that asked for none."""
        counts = [sequence.num_logprobs for sequence in sequences]
        return [
            None if count is None else _logprob(logits[row], token, count)
            for row, (count, token) in enumerate(zip(counts, token_ids))
        ]

    @staticmethod
    def error(logits: Tensor, sequence: Sequence) -> str:
        """Explains why no token could be sampled from the scores logits [V]. Waits for the device."""
        count = len(sequence.token_ids) - sequence.prompt_length + 1
        if bool(logits.isfinite().all()):
            return (
                f"no token may be sampled as token {count} of the answer: bad_words, no_repeat_ngram_size, min_tokens, "
                "logit_bias or penalties leave none"
            )
        return (
            f"the scores of token {count} of the answer are not finite: try bfloat16 or float32 where the dtype is "
            "float16, else the checkpoint is damaged, download it again"
        )


def _logprob(logits: Tensor, token: int, count: int) -> TokenLogprob:
    values = logits.log_softmax(-1)
    top = values.topk(min(count, len(values)))
    return TokenLogprob(token, values[token].item(), tuple(zip(top.indices.tolist(), top.values.tolist())))


def adjusted(logits: Tensor, sequences: list[Sequence]) -> Tensor:
    """Adjusts the scores in the order of transformers: biases, penalties, then -inf for banned tokens.

    logits [S, V] -> [S, V], a copy if any row changes.
    """
    out = logits
    rows: list[int] = []
    banned: list[int] = []
    for row, sequence in enumerate(sequences):
        p = sequence.sampling
        if p.logit_bias or p.penalizes:
            out = out.clone() if out is logits else out
            _bias(out[row], p)
            _penalize(out[row], sequence)
        ids = [i for i in banned_ids(sequence) if 0 <= i < logits.shape[1]]
        rows += [row] * len(ids)
        banned += ids
    if banned:
        out = out.clone() if out is logits else out
        index = to_device([rows, banned], logits.device)
        # A value already on the device: copying one there would wait for the device.
        out.index_put_((index[0], index[1]), out.new_full((), float("-inf")))
    return out


def banned_ids(sequence: Sequence) -> set[int]:
    """Returns the ids that may not be sampled after this prompt and answer."""
    p, ids = sequence.sampling, sequence.token_ids
    banned = set(sequence.stop_ids) if len(ids) - sequence.prompt_length < p.min_tokens else set()
    banned.update(word[-1] for word in p.bad_words if word and _ends_with(ids, word[:-1]))
    size = p.no_repeat_ngram_size
    if 0 < size <= len(ids):
        banned |= _followers(ids, ids[len(ids) - size + 1 :])
    return banned


def _ends_with(ids: list[int], end: tuple[int, ...]) -> bool:
    return len(end) <= len(ids) and tuple(ids[len(ids) - len(end) :]) == end


def _followers(ids: list[int], start: list[int]) -> set[int]:
    """Returns the ids that follow `start` anywhere in `ids`."""
    if not start:
        return set(ids)
    found: set[int] = set()
    # list.index is many times as fast as a comparison at every place.
    with suppress(ValueError):
        at = -1
        while True:
            at = ids.index(start[0], at + 1, len(ids) - len(start))
            if ids[at : at + len(start)] == start:
                found.add(ids[at + len(start)])
    return found


def _bias(row: Tensor, p: Sampling) -> None:
    """Adds p.logit_bias to the scores row [V]."""
    bias = {i: value for i, value in p.logit_bias if 0 <= i < len(row)}
    if bias:
        row[to_device(list(bias), row.device)] += to_device(list(bias.values()), row.device, torch.float32)


def _penalize(row: Tensor, sequence: Sequence) -> None:
    """Applies the repetition penalty, then presence and frequency penalties, to the scores row [V]."""
    p = sequence.sampling
    # A token that occurs twice is read and written twice, with the same value.
    if p.repetition_penalty != 1:
        seen = to_device(sequence.token_ids, row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    answer = sequence.token_ids[sequence.prompt_length :]
    if answer and (p.presence_penalty or p.frequency_penalty):
        counts = Counter(answer)
        ids = to_device(list(counts), row.device)
        counted = to_device(list(counts.values()), row.device)
        row[ids] -= p.presence_penalty + p.frequency_penalty * counted
