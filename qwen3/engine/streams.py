"""The pieces of one answer's text, for a thread and for an event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from queue import SimpleQueue

from ..errors import Qwen3Error
from .loop import EngineLoop, Handle, Request
from .request import Completion, Delta


class Stream:
    """Iterates over the pieces of a text. `completion` is the whole answer once it has ended, None before.

    A stream that is closed, or whose reader breaks off and drops it, ends and gives back its memory.
    """

    def __init__(self, loop: EngineLoop, request: Request) -> None:
        arrived: SimpleQueue[Delta | Exception] = SimpleQueue()
        self._handle = Handle(request, arrived.put)
        # The generator holds no reference to this object, so dropping this object closes it.
        self._pieces = _pieces(loop, self._handle, arrived)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        self._pieces.close()

    @property
    def completion(self) -> Completion | None:
        return _completion(self._handle)


class AsyncStream:
    """The same for an event loop, which it never blocks.

    prepare: makes the request when the first piece is asked for, in a thread of its own.
    """

    def __init__(self, loop: EngineLoop, prepare: Callable[[], Request]) -> None:
        self._handles: list[Handle] = []
        self._pieces = _async_pieces(loop, prepare, self._handles)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        return await anext(self._pieces)

    async def aclose(self) -> None:
        await self._pieces.aclose()

    @property
    def completion(self) -> Completion | None:
        return _completion(self._handles[0]) if self._handles else None


def _raised(item: Delta | Exception) -> Delta:
    """Returns a delta; raises an error that came instead of one."""
    if isinstance(item, Exception):
        raise item
    return item


def _completion(handle: Handle) -> Completion | None:
    return None if handle.finish_reason is None else handle.completion()


def _pieces(loop: EngineLoop, handle: Handle, arrived: SimpleQueue[Delta | Exception]):
    try:
        loop.submit([handle])
        delta = None
        while delta is None or delta.finish_reason is None:
            delta = _raised(arrived.get())
            if delta.text:
                yield delta.text
        if delta.error is not None:
            raise Qwen3Error(delta.error)
    finally:
        loop.cancel([handle])


async def _async_pieces(loop: EngineLoop, prepare: Callable[[], Request], handles: list[Handle]):
    request = await asyncio.to_thread(prepare)
    event_loop, arrived = asyncio.get_running_loop(), asyncio.Queue[Delta | Exception]()

    def deliver(item: Delta | Exception) -> None:
        event_loop.call_soon_threadsafe(arrived.put_nowait, item)

    handles.append(Handle(request, deliver))
    try:
        loop.submit(handles)
        delta = None
        while delta is None or delta.finish_reason is None:
            delta = _raised(await arrived.get())
            if delta.text:
                yield delta.text
        if delta.error is not None:
            raise Qwen3Error(delta.error)
    finally:
        loop.cancel(handles)
