"""What a caller gets back from a request: deltas while it runs, a completion at its end."""

from dataclasses import dataclass
from typing import NamedTuple


class TokenLogprob(NamedTuple):
    """The log-probability of a sampled token, and the most likely tokens with theirs, most likely first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Metrics:
    """Counts and seconds of one request; times count from when it was submitted.

    cached_prompt_tokens: found in the KV cache when the request was admitted.
    computed_prompt_tokens: computed, twice where a preemption took them away.
    inter_token_p50, inter_token_p99: percentiles of the time from one token to the next, 0 for an answer of one token.
    """

    prompt_tokens: int
    cached_prompt_tokens: int
    computed_prompt_tokens: int
    generated_tokens: int
    preemptions: int
    queue_seconds: float
    time_to_first_token: float
    inter_token_p50: float
    inter_token_p99: float
    total_seconds: float


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt. token_ids ends with the stop token if one ended it; text does not hold it."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str  # "stop" or "length"
    logprobs: list[TokenLogprob] | None
    metrics: Metrics


class Delta(NamedTuple):
    """One token of an answer and the text that it made certain, which may be empty."""

    text: str
    token_id: int
    logprob: TokenLogprob | None
    finish_reason: str | None  # set in the last delta
