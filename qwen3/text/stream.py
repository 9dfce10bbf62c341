"""Streamed text: incremental decoding and stop strings."""

import codecs

from .tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes token by token; the pieces are whole characters and add up to `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Returns the text that this token completes; holds back up to three bytes of an incomplete character."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special_tokens))

    def finish(self) -> str:
        """Returns U+FFFD if an incomplete character was held back, else an empty string."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Finds stop strings in text that arrives in pieces; holds back what may be the start of one."""

    def __init__(self, stops: tuple[str, ...]):
        self.stops, self.held = stops, ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Returns the text that no stop string can include any more, and the stop string that followed it."""
        self.held += text
        found = [(at, i) for i, stop in enumerate(self.stops) if (at := self.held.find(stop)) >= 0]
        if found:
            at, i = min(found)
            out, self.held = self.held[:at], ""
            return out, self.stops[i]
        keep = max((_overlap(self.held, stop) for stop in self.stops), default=0)
        cut = len(self.held) - keep
        out, self.held = self.held[:cut], self.held[cut:]
        return out, None

    def finish(self) -> str:
        """Returns the text held back, now that no stop string can follow."""
        out, self.held = self.held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class TextStream:
    """The text of one answer, token by token: decoded, and ended before the first stop string.

    decoder: None for a model without a tokenizer, whose answers have no text.
    """

    def __init__(self, decoder: IncrementalDecoder | None, stops: tuple[str, ...] = ()) -> None:
        self._decoder, self._stops = decoder, StopStrings(stops)

    def push(self, token_id: int, finish_reason: str | None) -> tuple[str, str | None]:
        """The text that this token makes certain, and the stop string that ended it.

        finish_reason: why the answer ends with this token, None if it goes on; a stop token ("stop") adds no text, and
        an "error" has no token.
        """
        if self._decoder is None:
            return "", None
        silent = finish_reason in ("stop", "error")
        text, stop = self._stops.push("" if silent else self._decoder.push(token_id))
        if finish_reason and stop is None:
            rest, stop = self._stops.push(self._decoder.finish())
            text += rest if stop is not None else rest + self._stops.finish()
        return text, stop
