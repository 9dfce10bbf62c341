"""A request inside the engine: its token ids, its blocks, its progress. The engine knows no text."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from .params import Sampling
from .request import Completion, Metrics, TokenLogprob


@dataclass(eq=False, repr=False)
class Sequence:
    """The token ids of a prompt and of its answer so far. Only the scheduler and its block pool write here.

    token_ids: copied, so that the caller's list stays as it is.
    stop_ids: ids that end the answer.
    stop_reasons: what Completion.stop_reason says for those of them that it names.
    max_length: the most tokens that prompt and answer may have together.
    num_logprobs: how many likely tokens to report beside each sampled one, None for no log-probabilities.
    blocks, block_hashes: the blocks held, and the hashes of the full ones; the first num_cached_blocks are in the
        prefix cache.
    num_computed: tokens whose K and V are in the blocks.
    added: whether the scheduler has taken it; it does so once.
    error: why it broke off, where finish_reason is "error".
    """

    token_ids: list[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    max_length: int
    num_logprobs: int | None = None
    stop_reasons: Mapping[int, int | str] = field(default_factory=dict)
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_cached_blocks: int = 0
    num_computed: int = 0
    cached_prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    preemptions: int = 0
    added: bool = False
    admitted: float | None = None
    finish_reason: str | None = None
    error: str | None = None
    token_times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.token_ids = list(self.token_ids)
        self.prompt_length = len(self.token_ids)
        self.submitted = time.perf_counter()

    def completion(self, text: str, finish_reason: str, stop_string: str | None = None) -> Completion:
        """The answer with its text, once the last token is there. stop_string: the one that ended it."""
        prompt, answer = self.token_ids[: self.prompt_length], self.token_ids[self.prompt_length :]
        times = self.token_times
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert self.admitted is not None, "a completion was computed, so it was admitted"
        metrics = Metrics(
            prompt_tokens=len(prompt),
            cached_prompt_tokens=self.cached_prompt_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            generated_tokens=len(answer),
            preemptions=self.preemptions,
            queue_seconds=self.admitted - self.submitted,
            time_to_first_token=times[0] - self.submitted if times else 0.0,
            inter_token_p50=percentile(gaps, 50),
            inter_token_p99=percentile(gaps, 99),
            total_seconds=times[-1] - self.submitted if times else 0.0,
        )
        logprobs = None if self.num_logprobs is None else self.logprobs
        stop_reason: int | str | None = stop_string
        if finish_reason == "stop" and stop_string is None:
            stop_reason = self.stop_reasons.get(answer[-1])
        return Completion(prompt, answer, text, finish_reason, logprobs, metrics, stop_reason, self.error)


def percentile(values: list[float], percent: float) -> float:
    """Linear between the two nearest values; 0 when there are none."""
    return torch.tensor(values, dtype=torch.float64).quantile(percent / 100).item() if values else 0.0
