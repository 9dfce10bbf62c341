"""One request on its way: its tokens, its pages, its text so far, and the reason why it ended."""

import time
from collections import deque
from dataclasses import dataclass, field

import torch

from .sampling import SamplingParams, TokenLogprob
from .text.stream import IncrementalDecoder, StopStrings


@dataclass(frozen=True)
class Metrics:
    """Counts and seconds of one request; times count from when it was handed in.

    cached_prompt_tokens were found in the KV cache when the request was admitted, computed_prompt_tokens were computed,
    those twice that a preemption took away. inter_token_p50 and inter_token_p99 are percentiles of the time from one
    token to the next, 0 for an answer of one token.
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
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    metrics: Metrics


@dataclass(eq=False)
class Sequence:
    """A request while it runs; `params` has no None left (see SamplingParams.with_defaults).

    The scheduler keeps blocks, digests (of its full blocks), published (how many of them others may share) and
    computed (how many of its tokens are in the cache). pieces: text that nobody has taken yet.
    """

    token_ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    max_length: int
    decoder: IncrementalDecoder | None = None
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    published: int = 0
    computed: int = 0
    cached_prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    preemptions: int = 0
    admitted: float | None = None
    finish_reason: str | None = None
    text: str = ""
    pieces: deque[str] = field(default_factory=deque)
    token_times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self):
        self.prompt_length = len(self.token_ids)
        self.max_length = min(self.max_length, self.prompt_length + self.params.max_new_tokens)
        self.stops = StopStrings(self.params.stop)
        self.started = time.perf_counter()

    def append(self, token: int, logprob: TokenLogprob | None) -> str:
        """Takes a drawn token; returns the text that became certain, and sets finish_reason when it was the last."""
        self.token_times.append(time.perf_counter())
        self.token_ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if token in self.stop_ids:
            self.finish_reason = "stop"
            text, stopped = self.stops.push(self.decoder.finish())
        else:
            text, stopped = self.stops.push(self.decoder.push(token))
            if not stopped and len(self.token_ids) >= self.max_length:
                self.finish_reason = "length"
                rest, stopped = self.stops.push(self.decoder.finish())
                text += rest
        if stopped:
            self.finish_reason = "stop"
        elif self.finish_reason:
            text += self.stops.finish()
        self.text += text
        if text:
            self.pieces.append(text)
        return text

    def completion(self) -> Completion:
        prompt, answer = self.token_ids[: self.prompt_length], self.token_ids[self.prompt_length :]
        times = self.token_times
        gaps = [later - earlier for earlier, later in zip(times, times[1:])]
        metrics = Metrics(
            prompt_tokens=len(prompt),
            cached_prompt_tokens=self.cached_prompt_tokens,
            computed_prompt_tokens=self.computed_prompt_tokens,
            generated_tokens=len(answer),
            preemptions=self.preemptions,
            queue_seconds=self.admitted - self.started,
            time_to_first_token=times[0] - self.started,
            inter_token_p50=percentile(gaps, 50),
            inter_token_p99=percentile(gaps, 99),
            total_seconds=times[-1] - self.started,
        )
        logprobs = None if self.params.logprobs is None else self.logprobs
        return Completion(prompt, answer, self.text, self.finish_reason, logprobs, metrics)


def percentile(values: list[float], percent: float) -> float:
    """Linear between the two nearest values; 0 when there are none."""
    return torch.tensor(values, dtype=torch.float64).quantile(percent / 100).item() if values else 0.0
