"""The standard streams of a command: closed, full or narrow ones, and text that would steer a terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from ..errors import Qwen3Error, shown

# Control characters and those that turn the direction of text, as a terminal shows them; C1 begins escapes as ESC does.
_VISIBLE = {i: f"^{chr(i ^ 64)}" for i in (*range(32), 127)} | {
    i: chr(i).encode("unicode_escape").decode()
    for i in (*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
_ON_A_TERMINAL = {i: shown for i, shown in _VISIBLE.items() if chr(i) not in "\n\t"}
# A progress bar goes back to the beginning of its line.
_IN_MESSAGES = {i: shown for i, shown in _ON_A_TERMINAL.items() if chr(i) != "\r"}


class StreamError(Qwen3Error):
    """stdout cannot be written, which ends the command."""


def _attribute(stream: TextIO | None, name: str) -> Any:
    """Returns another attribute of a stream; a closed one has an encoding, which libraries read."""
    if stream is None and name == "encoding":
        return "utf-8"
    return getattr(stream, name)


class Output:
    """stdout: shows control characters on a terminal, and fails in one line.

    A pipe and a file get every character as it is; one that their encoding lacks becomes a question mark.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream
        self._terminal = stream is not None and stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return _attribute(self._stream, name)

    @property
    def coloured(self) -> bool:
        """Tells whether `style` writes: on a terminal with colours, unless NO_COLOR is set (no-color.org)."""
        return self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        return self._open().fileno()

    def require(self) -> None:
        if self._stream is None:
            raise StreamError("stdout is closed: nothing can be written there")

    def write(self, text: str) -> int:
        with self._errors():
            self._open().write(text.translate(_ON_A_TERMINAL) if self._terminal else text)
        return len(text)

    def style(self, escape: str) -> None:
        """Writes an escape sequence of our own."""
        if self.coloured:
            with self._errors():
                self._open().write(escape)

    def flush(self) -> None:
        if self._stream is not None:
            with self._errors():
                self._stream.flush()

    def _open(self) -> TextIO:
        self.require()
        assert self._stream is not None
        return self._stream

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise StreamError(f"stdout cannot be written ({error.strerror})") from None


class Messages:
    """stderr: shows control characters, and never fails: without it, the exit code says what happened."""

    def __init__(self, stream: TextIO | None):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return _attribute(self._stream, name)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError("stderr is closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(text.translate(_IN_MESSAGES))
            except (OSError, ValueError):
                discard(self._stream)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                discard(self._stream)


@contextmanager
def guarded() -> Iterator[Output]:
    """Replaces stdout and stderr by Output and Messages; leaves nothing to be written at exit."""
    kept = sys.stdout, sys.stderr
    output = Output(kept[0])
    errors = getattr(kept[0], "errors", None)
    if hasattr(kept[0], "reconfigure"):
        kept[0].reconfigure(errors="replace")
    sys.stdout, sys.stderr = output, Messages(kept[1])  # type: ignore[assignment]
    try:
        yield output
    finally:
        for stream in kept:
            flush_or_discard(stream)
        sys.stdout, sys.stderr = kept
        if hasattr(kept[0], "reconfigure"):
            kept[0].reconfigure(errors=errors)


def say(text: str) -> None:
    """Prints one line to stderr, whatever is in it."""
    if sys.stderr is not None:
        print(shown(text, 100_000), file=sys.stderr)


def require_stdout() -> None:
    """Raises Qwen3Error where stdout is closed, before any work is done for it."""
    if isinstance(sys.stdout, Output):
        sys.stdout.require()


def style(escape: str) -> None:
    """Writes an escape sequence of our own to a terminal that wants it; text of a model never holds one."""
    if isinstance(sys.stdout, Output):
        sys.stdout.style(escape)


def flush_or_discard(stream: TextIO | None) -> None:
    if stream is not None:
        try:
            stream.flush()
        except (OSError, ValueError):
            discard(stream)


def discard(stream: TextIO | None) -> None:
    """Points a stream that cannot be written at /dev/null, so that the interpreter's flush at exit does not fail."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
