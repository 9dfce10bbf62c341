"""An event loop whose sleeps take no time, and the clock that they would have moved."""

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace


class JumpingClock(selectors.SelectSelector):
    """An event loop's selector that does not wait: its time is over at once."""

    now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0
        return super().select(0)


@contextmanager
def jumping_loop(monkeypatch, module: ModuleType) -> Iterator[tuple]:
    """Yields the clock that `module` then reads, and a function that runs a coroutine in the loop."""
    clock = JumpingClock()
    loop = asyncio.SelectorEventLoop(clock)
    monkeypatch.setattr(loop, "time", lambda: clock.now)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    try:
        yield clock, loop.run_until_complete
    finally:
        loop.close()
