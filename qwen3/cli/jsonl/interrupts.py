"""Ctrl-C, SIGTERM and SIGHUP during a batch: none of them comes in the middle of a record."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# SIGHUP comes when a terminal or a connection is closed; Windows has none.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupts:
    """A context in which signals end the program through its `finally` clauses, with exit code 128 + the signal.

    Signals that are ignored or handled already, such as SIGHUP under nohup, are left as they are.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._held = False
        self._pending: int | None = None

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Puts a signal off to the end of the block; a second one is for a block that cannot end, and breaks it off."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            pending, self._pending = self._pending, None
        if pending is not None:
            self._raise(pending)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._held and self._pending is None:
            self._pending = number
        else:
            self._raise(number)

    @staticmethod
    def _raise(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
