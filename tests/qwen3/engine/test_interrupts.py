"""An interrupt at any line leaves no wrong block in the prefix cache, no block allocated, and no caller waiting."""

import os
import random
import sys
import threading
import time
from collections import Counter

import pytest

import qwen3
from qwen3 import LLM, SamplingParams
from qwen3.engine.blocks import BlockPool
from qwen3.engine.scheduler import Scheduler

from .test_scheduler import Blocks, alone, sequence

PACKAGE = os.path.dirname(qwen3.__file__)
BOOKS = ("engine/scheduler.py", "engine/blocks.py")
TIMEOUT = 60  # seconds that end a hang


class Interrupter:
    """A trace function that raises at the `at`-th line that `files` of the package run; counts them all with at=0."""

    def __init__(self, at, files):
        self.at, self.files = at, tuple(os.path.join(PACKAGE, file) for file in files)  # beginnings of paths
        self.lines = []  # (file, line) of each

    def __call__(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(self.files) else None

    def line(self, frame, event, argument):
        if event == "line":
            self.lines.append((os.path.relpath(frame.f_code.co_filename, PACKAGE), frame.f_lineno))
            if len(self.lines) == self.at:
                raise KeyboardInterrupt
        return self.line

    @property
    def interrupted(self):
        return 0 < self.at <= len(self.lines)


def places(lines, *shares):
    """For each distinct line, the occurrences at these shares of all of its own, as numbers from 1."""
    found = {}
    for at, line in enumerate(lines, 1):
        found.setdefault(line, []).append(at)
    return sorted({own[int(len(own) * share)] for own in found.values() for share in shares})


# The scheduler and its pool alone.


def serve(interrupter):
    """Seven requests, three of which begin alike, in a pool for few of them; the interrupt costs the step's own.

    Returns why each ended.
    """
    pool = BlockPool(9, 2)
    scheduler, blocks = Scheduler(pool, 4, 7), Blocks(pool)
    shared = [1, 2, 3, 4, 5]
    prompts = [[*shared, 6], [7], [*shared, 8], [2, 2, 2], [*shared, 1, 1], [3], [4, 4]]
    requests = [sequence(prompt, 6) for prompt in prompts]
    left, at_risk = list(requests), []

    def work():
        step = 0
        while left or not scheduler.idle:
            while left:
                at_risk[:] = [left.pop(0)]
                scheduler.add(*at_risk)
            if step == 2:
                at_risk[:] = requests[6:]
                scheduler.finish(requests[6], "cancelled")
            at_risk.clear()
            scheduled = scheduler.schedule()
            at_risk[:] = [item.sequence for item in scheduled.work]
            scheduler.predict(scheduled)
            blocks.run(scheduler, scheduled)
            at_risk.clear()
            step += 1
            assert step < 1000, "somebody waits for ever"

    sys.settrace(interrupter)
    try:
        work()
    except KeyboardInterrupt:
        sys.settrace(None)
        blocks.memory.clear()
        scheduler.recover()
        for request in at_risk:
            scheduler.finish(request, "error")
        work()
    finally:
        sys.settrace(None)
    assert not scheduler.live and pool.num_free == pool.num_blocks
    for request, prompt in zip(requests, prompts):
        if request.finish_reason in ("stop", "length"):
            assert request.token_ids == alone(prompt, 6)
    return [request.finish_reason for request in requests]


def test_an_interrupt_at_every_line_of_scheduler_and_pool():
    counter = Interrupter(0, BOOKS)
    assert "error" not in serve(counter)
    ended, lines = Counter(), set()
    for at in places(counter.lines, 0.6):
        interrupter = Interrupter(at, BOOKS)
        ended.update(serve(interrupter))
        assert interrupter.interrupted
        lines.add(interrupter.lines[-1])
    print(f"{len(lines)} lines of scheduler and pool, {dict(ended)}")
    assert len(lines) > 100 and ended["stop"] + ended["length"] > ended["error"]


# The engine in its thread, and the caller that waits for it.

GREEDY = SamplingParams(temperature=0, max_new_tokens=6, ignore_eos=True)


@pytest.fixture
def traced(small):
    """An LLM whose thread is traced, in which few blocks are free; and a function that sets the trace function."""
    current = [None]
    threading.settrace(lambda *arguments: current[0] and current[0](*arguments))
    try:
        options = {"num_kv_blocks": 15, "kv_block_size": 4, "max_num_batched_tokens": 24}
        llm = LLM(small, device="cpu", dtype="float32", **options)
    finally:
        threading.settrace(None)

    def trace(interrupter):
        # An interrupt ends the tracing of its thread.
        current[0] = interrupter
        llm.loop.call(lambda: sys.settrace(interrupter))

    yield llm, trace
    llm.close()


def batch():
    """Three prompts that begin alike, so that blocks are shared within a step and between requests."""
    generator = random.Random(0)
    start = [generator.randrange(5, 300) for _ in range(40)]
    return [[*start, 7], [*start[:36], 9, 8], [*start, 11]]


def tokens(llm):
    return [completion.token_ids for completion in llm.generate(batch(), GREEDY)]


def in_thread(function):
    """The result of `function`, or what it raises; fails where it hangs."""
    results = []

    def run():
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive(), "hangs"
    return results[0]


def assert_nothing_is_left(llm, expected, where):
    """The same prompts give the same tokens, in a cache that the interrupted ones have filled; all blocks are free."""
    assert in_thread(lambda: tokens(llm)) == expected, where
    scheduler, ended = llm.engine.scheduler, time.monotonic() + TIMEOUT
    # An interrupt in the line that cancels lets its requests run to their ends.
    while not llm.loop.call(lambda: scheduler.idle):
        assert time.monotonic() < ended, where
    assert scheduler.pool.num_free == scheduler.pool.num_blocks and not llm.loop._handles, where


@pytest.mark.slow
def test_an_interrupt_at_every_line_of_the_engines_thread(traced):
    llm, trace = traced
    expected = tokens(llm)
    assert any(completion.metrics.preemptions for completion in llm.generate(batch(), GREEDY))
    llm.reset_prefix_cache()
    counter = Interrupter(0, ("engine", "model", "text/stream.py", "llm.py"))
    trace(counter)
    assert tokens(llm) == expected
    raised, hit, ended = 0, set(), Counter()
    for at in places(counter.lines, 0, 0.6):
        llm.reset_prefix_cache()
        interrupter = Interrupter(at, counter.files)
        trace(interrupter)
        result = in_thread(lambda: tokens(llm))
        # The thread's turns differ in number from run to run: a line that did not come must not come in a later call.
        at, interrupter.at = interrupter.at, 0
        trace(None)
        ended[type(result).__name__] += 1
        if len(interrupter.lines) >= at:
            raised += 1
            hit.add(interrupter.lines[at - 1])
        assert_nothing_is_left(llm, expected, interrupter.lines[:at][-1:])
    books = [line for line in hit if line[0] in BOOKS]
    print(f"{raised} interrupts at {len(hit)} lines, {len(books)} of scheduler and pool; callers got {dict(ended)}")
    assert len(books) > 100


@pytest.mark.slow
def test_an_interrupt_at_every_line_of_the_waiting_caller(traced):
    llm, _ = traced
    expected = tokens(llm)
    files = ("llm.py", "engine/loop.py", "engine/openmp.py", "engine/sequence.py", "engine/params.py")

    def call(interrupter):
        """What a caller gets that is interrupted; its thread ends with it."""

        def run():
            sys.settrace(interrupter)
            try:
                return tokens(llm)
            finally:
                sys.settrace(None)

        return in_thread(run)

    counter = Interrupter(0, files)
    assert call(counter) == expected
    hit = set()
    for at in places(counter.lines, 0, 0.6):
        llm.reset_prefix_cache()
        interrupter = Interrupter(at, files)
        result = call(interrupter)
        if interrupter.interrupted:
            hit.add(interrupter.lines[-1])
            assert isinstance(result, KeyboardInterrupt), interrupter.lines[-1]
        assert_nothing_is_left(llm, expected, interrupter.lines[-1])
    print(f"{len(hit)} lines of the caller")
    assert len(hit) > 40
