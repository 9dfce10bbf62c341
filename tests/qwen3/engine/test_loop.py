"""The engine's thread: submitting and cancelling wait for no step, and no caller waits forever."""

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from operator import attrgetter

import pytest

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.engine.streams import Stream

TIMEOUT = 60  # seconds that end a hang
ENDLESS = SamplingParams(max_new_tokens=200, temperature=0, ignore_eos=True)
SHORT = SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True)


class HeldStep:
    """Holds up the next step of an LLM until `release`."""

    def __init__(self, llm, monkeypatch):
        self.entered, self._released = threading.Event(), threading.Event()
        forward = llm.model.layers[0].forward

        def held(*arguments):
            self.entered.set()
            assert self._released.wait(TIMEOUT)
            return forward(*arguments)

        monkeypatch.setattr(llm.model.layers[0], "forward", held)

    def release(self):
        self._released.set()


@pytest.fixture
def llm(small):
    llm = LLM(small, device="cpu", dtype="float32")
    yield llm
    llm.close()


@pytest.fixture
def held(llm, monkeypatch):
    held = HeldStep(llm, monkeypatch)
    yield held
    held.release()


def in_thread(function):
    """Starts `function`; returns a function that waits for its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def result():
        thread.join(TIMEOUT)
        assert not thread.is_alive(), "hangs"
        return results[0]

    return result


def test_submit_and_cancel_return_while_a_step_runs(llm, held):
    first = in_thread(lambda: llm.generate("one", SHORT))
    assert held.entered.wait(TIMEOUT)

    async def come_and_go():
        """A stream is submitted and cancelled; the step is released only after both have returned."""
        stream = llm.stream_async("two", ENDLESS)
        pending = asyncio.ensure_future(anext(stream))
        while len(llm.loop._handles) + llm.loop._inbox.qsize() < 2:
            await asyncio.sleep(0)
        pending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pending
        assert llm.loop._inbox.qsize() == 2, "the step that is held up has read neither message"
        return llm.stats.prefill.steps

    assert asyncio.run(asyncio.wait_for(come_and_go(), TIMEOUT)) == 0, "no step has ended"
    held.release()
    assert len(first()[0].token_ids) == 3
    assert llm.loop.call(lambda: llm.engine.scheduler.idle)


def test_requests_of_one_call_share_their_first_step(llm):
    llm.generate([[1, 2], [3], [4, 5, 6]], SHORT)
    assert (llm.stats.prefill.steps, llm.stats.prefill.tokens, llm.stats.decode.steps) == (1, 6, 2)


def test_closing_ends_streams_that_are_open(llm, held):
    stream = llm.stream("one", ENDLESS)
    rest = in_thread(lambda: error_of(lambda: list(stream)))
    assert held.entered.wait(TIMEOUT)
    closed = in_thread(llm.close)
    held.release()
    assert closed() is None
    assert "closed before the answer ended" in str(rest())
    assert "this LLM is closed" in str(error_of(lambda: llm.logits([1, 2])))


def test_closing_breaks_off_a_long_step_at_its_next_layer(llm, held, monkeypatch):
    """Ctrl-C in a long prefill must not wait for its end."""
    last = llm.model.layers[-1]
    computed, forward = [], last.forward
    monkeypatch.setattr(last, "forward", lambda *arguments: computed.append(1) or forward(*arguments))
    rest = in_thread(lambda: error_of(lambda: llm.generate("one", ENDLESS)))
    assert held.entered.wait(TIMEOUT)
    closed = in_thread(llm.close)
    while not llm.model.layers[1]._forward_pre_hooks:
        pass
    held.release()
    assert closed() is None and computed == []
    error = rest()
    assert type(error) is Qwen3Error and "closed before the answer ended" in str(error)
    assert not any(layer._forward_pre_hooks for layer in llm.model.layers), "the model stays as it was"


def error_of(function, kind=Qwen3Error):
    with pytest.raises(kind) as caught:
        function()
    return caught.value


def broken(*arguments):
    raise ZeroDivisionError("a defect")


@pytest.mark.parametrize(
    "owner, name", [("engine.scheduler", "schedule"), ("engine.scheduler", "add"), ("loop", "_step")]
)
def test_a_defect_of_the_engine_ends_all_waiting_and_the_thread_goes_on(llm, monkeypatch, owner, name):
    expected = llm.generate("one", SHORT)[0].token_ids
    with monkeypatch.context() as patched:
        patched.setattr(attrgetter(owner)(llm), name, broken)
        for _ in range(3):
            waits = in_thread(lambda: error_of(lambda: llm.generate(["one", "two"], SHORT), ZeroDivisionError))
            assert "a defect" in str(waits())
    assert in_thread(lambda: llm.generate("one", SHORT))()[0].token_ids == expected
    assert llm.loop.call(lambda: llm.engine.scheduler.idle)


def test_a_thread_that_only_fails_ends_and_says_so(llm, monkeypatch, caplog):
    """A defect that is met again at once must not keep a core busy for ever."""
    monkeypatch.setattr(llm.loop, "_turn", broken)
    assert "a defect" in str(in_thread(lambda: error_of(lambda: llm.generate("one", SHORT), ZeroDivisionError))())
    llm.loop._thread.join(TIMEOUT)
    assert not llm.loop._thread.is_alive() and "errors in a row: ZeroDivisionError: a defect" in caplog.text
    assert "this LLM is closed" in str(error_of(lambda: llm.generate("one", SHORT)))


def test_an_event_loop_that_has_ended_stops_no_other_request(llm):
    async def leave():
        stream = llm.stream_async("one", ENDLESS)
        await anext(stream)
        return stream

    stream = asyncio.run(leave())
    assert len(llm.generate("two", SHORT)[0].token_ids) == 3
    del stream
    while not llm.loop.call(lambda: llm.engine.scheduler.idle):
        llm.generate("two", SHORT)


def test_an_llm_that_nobody_uses_ends_its_thread(small):
    llm = LLM(small, device="cpu", dtype="float32")
    llm.generate("one", SHORT)
    thread = llm.loop._thread
    del llm
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_request_is_answered_once_and_another_try_harms_nobody(llm):
    request = llm.prepare("one", SHORT)
    stream = llm.stream("two", ENDLESS)
    next(stream)
    assert len(dict(llm.complete([request]))[0].token_ids) == 3
    for again in ([request], [request, request], [llm.prepare("three", SHORT)] * 2):
        assert "answered once" in str(error_of(lambda again=again: list(llm.complete(again))))
    running = llm.prepare("four", ENDLESS)
    pieces = Stream(llm.loop, running)
    next(pieces)
    assert "answered once" in str(error_of(lambda: list(llm.complete([running]))))
    in_thread(lambda: list(pieces))()
    assert len(running.sequence.token_ids) == 4 + 200, "the refused try does not cancel the first"
    assert "".join(stream)


def test_logits_keep_neither_the_llm_nor_their_result(small):
    llm = LLM(small, device="cpu", dtype="float32")
    result = weakref.ref(llm.logits([1, 2, 3]))
    thread, gone = llm.loop._thread, weakref.ref(llm)
    ended = time.monotonic() + TIMEOUT
    while result() is not None:  # no other message follows, which would drop it anyway
        assert time.monotonic() < ended, "the thread keeps the result"
        time.sleep(0.001)
    del llm
    gc.collect()
    assert gone() is None
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_garbage_collection_may_cancel_while_a_message_is_sent(llm):
    """A stream in a reference cycle is closed wherever the collector runs, in the middle of another call too."""
    llm.generate("one", SHORT)
    handles = []

    def cancel_inside():
        with llm.loop._sending:
            llm.loop.cancel(handles)
            return llm.loop._inbox.qsize() >= 0

    assert in_thread(cancel_inside)()
    assert len(llm.generate("two", SHORT)[0].token_ids) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_told_to_make_its_own(llm):
    """The engine's thread is not in it: a call would wait for ever."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(TIMEOUT)
        refused = 0
        try:
            for call in (llm.generate, lambda prompt: list(llm.stream(prompt)), llm.logits):
                try:
                    call([5])
                except Qwen3Error as error:
                    refused += "forked" in str(error)
            llm.close()
        finally:
            os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert len(llm.generate([5], SHORT)[0].token_ids) == 3
