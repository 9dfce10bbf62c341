"""The thread that owns an engine: an inbox in, deltas out."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from torch import OutOfMemoryError

from ..errors import Qwen3Error, one_line
from ..text.stream import TextStream
from .engine import Engine, Sampled, StepFailed, as_exception
from .openmp import release_threads
from .request import Completion, Delta
from .sequence import Sequence

T = TypeVar("T")

log = logging.getLogger("qwen3")

MOST_FAILURES = 10  # consecutive failed turns after which the thread ends

_CLOSED = "this LLM was closed before the answer ended"


def _break_off(*arguments: object) -> None:
    raise Qwen3Error(_CLOSED)


class Request(NamedTuple):
    """A checked prompt as the engine takes it, and the stream that makes its text; to be submitted once."""

    sequence: Sequence
    stream: TextStream


class Handle:
    """A request on its way through the engine.

    deliver: called in the engine's thread with each delta, or once with the error that ended the request. It must
    return at once.
    """

    def __init__(self, request: Request, deliver: Callable[[Delta | Exception], object]) -> None:
        self.sequence, self.stream = request
        self.deliver = deliver
        self.finish_reason: str | None = None
        self.stop_string: str | None = None
        self._text: list[str] = []

    def push(self, sampled: Sampled) -> Delta:
        """Turns a sampled token, or the error in its place, into a delta; sets finish_reason with the last one."""
        text, stop = self.stream.push(sampled.token_id, self.sequence.finish_reason)
        self._text.append(text)
        error = self.sequence.error
        if error is not None:
            self.finish_reason = "error"
            return Delta(text, None, None, "error", error)
        self.finish_reason = "stop" if stop is not None else self.sequence.finish_reason
        self.stop_string = stop
        return Delta(text, sampled.token_id, sampled.logprob, self.finish_reason)

    def completion(self) -> Completion:
        """The whole answer, once finish_reason is set."""
        assert self.finish_reason is not None, "the answer has not ended yet"
        return self.sequence.completion("".join(self._text), self.finish_reason, self.stop_string)

    def broken_off(self, error: Exception) -> Completion:
        """Returns the part of an answer that was made before it ended with an error instead of a delta."""
        self.finish_reason = "error"
        return replace(self.completion(), error=str(error))


class _Message(NamedTuple):
    """A call that the engine's thread runs between two steps, and another for when the first fails."""

    run: Callable[[], object]
    fail: Callable[[Exception], object]


class EngineLoop:
    """Runs an engine in a thread of its own. Every method may be called from any thread.

    An error or interrupt at any line of that thread ends the requests that wait, and the thread goes on.

    `submit` and `cancel` return at once, also while a step runs: they only put a message into the inbox, which the
    thread empties between two steps.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inbox: SimpleQueue[_Message | None] = SimpleQueue()
        self._message: _Message | None = None  # the message that is being handled
        self._handles: dict[Sequence, Handle] = {}
        # Held for an instant, never during a step. Reentrant: garbage collection may close a stream while it is held.
        self._sending = threading.RLock()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="qwen3-engine", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, handles: list[Handle]) -> None:
        """Queues requests, all before the next step."""
        self._send(_Message(lambda: self._add(handles), lambda error: self._tell(handles, error)))

    def cancel(self, handles: Iterable[Handle]) -> None:
        """Ends requests before the next step and frees their blocks; does nothing to those that have ended."""
        with suppress(Qwen3Error):  # a loop that is closed has ended them
            self._send(_Message(lambda: self._drop(handles), lambda error: None))

    def call(self, function: Callable[[], T]) -> T:
        """Runs `function` in the engine's thread between two steps; waits for its result."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                if not isinstance(error, (Qwen3Error, OutOfMemoryError)):
                    self._engine.recover()  # it may have broken off anywhere in the scheduler
                fail(error)
            else:
                future.set_result(result)

        def fail(error: BaseException) -> None:
            if not future.done():
                future.set_exception(error)

        self._send(_Message(run, fail))
        return future.result()

    def close(self) -> None:
        """Ends the thread; the step that it runs breaks off at its next layer, and all requests get an error."""
        if os.getpid() != self._process:
            return  # a fork has no thread
        with self._sending:
            self._closed = True
            self._inbox.put(None)
        if self._thread is threading.current_thread():
            return
        # Hooks cost nothing until they are there, unlike a flag that every layer would read.
        hooks = [layer.register_forward_pre_hook(_break_off) for layer in self._engine.runner.model.layers]
        try:
            self._thread.join()
        finally:
            for hook in hooks:
                hook.remove()

    def _send(self, message: "_Message") -> None:
        if os.getpid() != self._process:
            raise Qwen3Error("this LLM was made before this process was forked: make one in the process that uses it")
        with self._sending:
            if self._closed:
                raise Qwen3Error("this LLM is closed: make a new one")
            self._inbox.put(message)
        # The caller most likely waits now.
        release_threads()

    def _run(self) -> None:
        reason: Exception = Qwen3Error(_CLOSED)
        try:
            failures = 0
            while failures < MOST_FAILURES:
                try:
                    if not self._turn():
                        break
                    failures = 0
                except BaseException as error:
                    failures += 1
                    self._break_off(as_exception(error))
                    if failures == MOST_FAILURES:
                        reason = as_exception(error)
                        log.error("the engine ends after %d errors in a row: %s", failures, one_line(error))
        finally:
            with self._sending:
                self._closed = True
            while not self._inbox.empty():
                if (message := self._inbox.get()) is not None:
                    message.fail(reason)
            self._break_off(reason)

    def _turn(self) -> bool:
        """Handles all messages, then runs a step; False when the loop must end."""
        if not self._read_inbox():
            return False
        self._step()
        return True

    def _break_off(self, reason: Exception) -> None:
        """Rebuilds the engine's state after an error or interrupt at any line, and ends the waiting requests."""
        self._engine.abandon()
        message, self._message = self._message, None
        if message is not None:
            message.fail(reason)
        self._tell(list(self._handles.values()), reason)
        self._handles.clear()

    def _read_inbox(self) -> bool:
        """Handles all messages, and waits for one if the engine has nothing to do; False when the loop must end."""
        while True:
            idle = self._engine.scheduler.idle
            if idle and self._inbox.empty():
                release_threads()
            try:
                # Not only in a local variable: an error would lose it.
                self._message = self._inbox.get(block=idle)
            except Empty:
                return True
            if self._message is None:
                return False
            self._message.run()
            # Kept until the next message, it would keep what its caller holds.
            self._message = None

    def _step(self) -> None:
        try:
            sampled = self._engine.step()
        except StepFailed as failure:
            for sequence in failure.sequences:
                self._deliver(self._handles[sequence], failure.cause)
                self._handles.pop(sequence, None)
            return
        for item in sampled:
            handle = self._handles[item.sequence]
            delta = handle.push(item)
            if delta.finish_reason is not None:
                self._engine.scheduler.finish(item.sequence, delta.finish_reason)
            # Until it is delivered an error in this thread would reach the handle.
            self._deliver(handle, delta)
            if delta.finish_reason is not None:
                self._handles.pop(item.sequence, None)

    def _add(self, handles: list[Handle]) -> None:
        for handle in handles:
            try:
                self._engine.scheduler.add(handle.sequence)
            except Qwen3Error as error:
                self._deliver(handle, error)
            else:
                self._handles[handle.sequence] = handle

    def _drop(self, handles: Iterable[Handle]) -> None:
        for handle in handles:
            if self._handles.get(handle.sequence) is handle:
                del self._handles[handle.sequence]
                self._engine.scheduler.finish(handle.sequence, "cancelled")

    def _tell(self, handles: list[Handle], reason: Exception) -> None:
        for handle in handles:
            self._deliver(handle, reason)

    def _deliver(self, handle: Handle, item: Delta | Exception) -> None:
        try:
            handle.deliver(item)
        except RuntimeError:
            # The reader's event loop is closed, so the answer has no reader.
            self._drop([handle])
