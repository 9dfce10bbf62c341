"""One request on its way: its tokens, its pages, its text so far, and the reason why it ended."""

import time
from dataclasses import dataclass, field

from .sampling import SamplingParams, TokenLogprob
from .tokenizer import IncrementalDecoder


@dataclass(frozen=True)
class Metrics:
    """Counts and seconds of one request; times count from when it was handed in."""

    prompt_tokens: int
    generated_tokens: int
    time_to_first_token: float
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


class StopStrings:
    """Finds stop strings in text that arrives in pieces; holds back what may be the start of one."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops, self.held = stops, ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that is certain now, and whether a stop string followed it."""
        self.held += text
        found = [at for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:
            out, self.held = self.held[: min(found)], ""
            return out, True
        keep = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        out, self.held = self.held[:cut], self.held[cut:]
        return out, False

    def finish(self) -> str:
        """What was held back and came to nothing."""
        out, self.held = self.held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Sequence:
    """A request while it runs; `params` has no None left (see SamplingParams.with_defaults)."""

    token_ids: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    max_length: int
    decoder: IncrementalDecoder | None = None
    blocks: list[int] = field(default_factory=list)
    computed: int = 0
    finish_reason: str | None = None
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def __post_init__(self):
        self.prompt_length = len(self.token_ids)
        self.max_length = min(self.max_length, self.prompt_length + self.params.max_new_tokens)
        self.stops = StopStrings(self.params.stop)
        self.started = time.perf_counter()
        self.first_token = self.ended = self.started

    def append(self, token: int, logprob: TokenLogprob | None) -> str:
        """Takes a drawn token; returns the text that became certain, and sets finish_reason when it was the last."""
        self.ended = time.perf_counter()
        if len(self.token_ids) == self.prompt_length:
            self.first_token = self.ended
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
        return text

    def completion(self) -> Completion:
        prompt, answer = self.token_ids[: self.prompt_length], self.token_ids[self.prompt_length :]
        metrics = Metrics(len(prompt), len(answer), self.first_token - self.started, self.ended - self.started)
        logprobs = None if self.params.logprobs is None else self.logprobs
        return Completion(prompt, answer, self.text, self.finish_reason, logprobs, metrics)
