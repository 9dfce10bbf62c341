"""Streamed text: incremental decoding and stop strings."""

import codecs
from collections.abc import Mapping

from .tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes token by token; the pieces are whole characters and add up to `Tokenizer.decode`."""

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, marks: Mapping[int, str] | None = None
    ) -> None:
        """marks: token ids that one character stands for, in place of their text."""
        self._tokenizer, self._skip_special_tokens, self._marks = tokenizer, skip_special_tokens, marks or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Returns the text that this token completes; holds back up to three bytes of an incomplete character."""
        if token_id in self._marks:
            return self._marks[token_id]
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
    """The text of one answer, token by token: decoded, and ended by the first stop string.

    tokenizer: None for a model without one, whose answers have no text.
    stops: texts that end the answer. The name of a special token in them stands for that token, also where
        skip_special_tokens leaves it out of the text.
    min_tokens: stop strings are not looked for in the text of so many tokens.
    include_stop: the text holds the stop string or the stop token that ended it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stops: tuple[str, ...] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        names = tokenizer.special_tokens if tokenizer is not None and stops and skip_special_tokens else {}
        marks, self._marked_stops = _mark(stops, names)
        self._decoder = None if tokenizer is None else IncrementalDecoder(tokenizer, skip_special_tokens, marks)
        self._hidden = dict.fromkeys(map(ord, marks.values()))
        self._marked, self._plain = StopStrings(tuple(self._marked_stops)), StopStrings(stops)
        self._unsearched, self._include_stop = min_tokens, include_stop

    def push(self, token_id: int, finish_reason: str | None) -> tuple[str, str | None]:
        """The text that this token makes certain, and the stop string that ended it.

        finish_reason: why the answer ends with this token, None if it goes on; a stop token ("stop") adds no text
        unless include_stop, and an "error" has no token.
        """
        if self._decoder is None:
            return "", None
        silent = finish_reason == "error" or (finish_reason == "stop" and not self._include_stop)
        piece = "" if silent else self._decoder.push(token_id)
        if self._unsearched:
            self._unsearched -= 1
            text, stop = piece.translate(self._hidden), None
        else:
            text, stop = self._search(piece)
        if finish_reason and stop is None:
            rest, stop = self._search(self._decoder.finish())
            text += rest if stop is not None else rest + self._rest()
        return (text + stop if stop is not None and self._include_stop else text), stop

    def _search(self, piece: str) -> tuple[str, str | None]:
        """The text that no stop string can include any more, and the stop string that followed it."""
        if not self._marked.stops:
            return self._plain.push(piece)
        piece, marked = self._marked.push(piece)
        text, stop = self._plain.push(piece.translate(self._hidden))
        if stop is not None or marked is None:
            return text, stop
        return text + self._plain.finish(), self._marked_stops[marked]

    def _rest(self) -> str:
        """The text held back, now that no stop string can follow."""
        text, _ = self._plain.push(self._marked.finish().translate(self._hidden))
        return text + self._plain.finish()


def _mark(stops: tuple[str, ...], names: dict[str, int]) -> tuple[dict[int, str], dict[str, str]]:
    """The character that stands for each special token in a stop string, and these stop strings so written.

    A lone surrogate, which no text holds. names: the id of each special token.
    """
    found = sorted((name for name in names if name and any(name in stop for stop in stops)), key=len, reverse=True)
    marks = {name: chr(0xD800 + i) for i, name in enumerate(found[:2048])}
    marked = {}
    for stop in stops:
        written = stop
        for name, mark in marks.items():
            written = written.replace(name, mark)
        if written != stop:
            marked[written] = stop
    return {names[name]: mark for name, mark in marks.items()}, marked
