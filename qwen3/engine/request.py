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
    """Counts and seconds of one request; times count from its submission and are 0 if there was no token.

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
    """The answer to one prompt. token_ids ends with the stop token if one ended it; text does not hold it.

    finish_reason: "stop", "length", or "error" for an answer that broke off.
    stop_reason: the stop string or the id of the stop token that ended it; None for the model's own end of text.
    error: why it broke off.
    """

    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    metrics: Metrics
    stop_reason: int | str | None = None
    error: str | None = None


class Delta(NamedTuple):
    """One token of an answer and the text that it made certain, which may be empty.

    The delta of an error has no token: it ends the answer before one.
    """

    text: str
    token_id: int | None
    logprob: TokenLogprob | None
    finish_reason: str | None  # set in the last delta
    error: str | None = None  # set where finish_reason is "error"
