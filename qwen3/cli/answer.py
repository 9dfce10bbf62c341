"""One answer on stdout, piece by piece, and what is said about it on stderr."""

import logging
import sys
from collections.abc import Iterator
from queue import SimpleQueue

from ..engine.loop import Handle
from ..engine.params import SamplingParams
from ..engine.request import Completion, Delta
from ..errors import Qwen3Error, brief
from ..llm import LLM

log = logging.getLogger("qwen3")


class Answer:
    """Iterates over the pieces of one answer; `completion` is there after the last."""

    def __init__(self, llm: LLM, token_ids: list[int], params: SamplingParams):
        self._llm, self._params = llm, params
        self._request = llm.prepare(token_ids, params)
        self.completion: Completion | None = None

    def __iter__(self) -> Iterator[str]:
        arrived: SimpleQueue[Delta | Exception] = SimpleQueue()
        handle = Handle(self._request, arrived.put)
        try:
            self._llm.loop.submit([handle])
            while self.completion is None:
                delta = arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                if delta.text:
                    yield delta.text
                if delta.finish_reason is not None:
                    self.completion = handle.completion()
        finally:
            self._llm.loop.cancel([handle])
        if self.completion.error is not None:
            raise Qwen3Error(self.completion.error)

    def report(self) -> None:
        """Says on stderr if the answer was cut, the log-probabilities that were asked for, and with -v the speed."""
        done = self.completion
        if done is None:
            return
        for entry in done.logprobs or ():
            top = "  ".join(f"{self._shown(i)} {logprob:.4f}" for i, logprob in entry.top)
            print(f"{entry.logprob:9.4f}  {self._shown(entry.token_id)}{'  of  ' * bool(top)}{top}", file=sys.stderr)
        if done.finish_reason == "length":
            count = len(done.token_ids)
            limited = count == self._params.max_new_tokens
            why = "--max-new-tokens allows no more" if limited else "the context has no more room"
            print(f"stopped after {count} token{'s' * (count > 1)}, not at an end: {why}", file=sys.stderr)
        seconds, tokens = done.metrics.total_seconds, done.metrics.generated_tokens
        first = done.metrics.time_to_first_token
        speed = f"{(tokens - 1) / (seconds - first):,.1f} tokens/s" if tokens > 1 and seconds > first else "one token"
        log.info(
            "%d tokens after %d of the prompt, the first after %.2f s, then %s",
            tokens,
            done.metrics.prompt_tokens,
            first,
            speed,
        )

    def _shown(self, token_id: int) -> str:
        return f"{token_id} {brief(self._llm.tokenizer.decode([token_id]))}"
