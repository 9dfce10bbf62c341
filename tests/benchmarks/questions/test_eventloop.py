"""eventloop, end to end at its smallest; its delays on a loop that is blocked on purpose."""

import argparse
import asyncio
from types import SimpleNamespace

import pytest

from benchmarks.questions import eventloop
from qwen3 import LLM

from .jumping import jumping_loop


def arguments(*more):
    parser = argparse.ArgumentParser()
    eventloop.add_arguments(parser)
    sizes = ["--prompt-tokens", "40", "--new-tokens", "2", "--streams", "2", "--interval-ms", "1", "--rounds", "2"]
    return parser.parse_args([*sizes, "--device", "cpu", *more])


def test_a_row_for_each_situation(monkeypatch, capsys):
    monkeypatch.setattr(eventloop, "IDLE_SECONDS", 0.01)
    answer = eventloop.run(arguments())
    situations = ["nothing runs", "one stream", "streams arrive", "a stream is closed"]
    assert [row["situation"] for row in answer.figures] == situations
    for row in answer.figures:
        assert set(row) == {"situation", "delay_ms", "delay_min_ms", "delay_max_ms"}
        assert 0 <= row["delay_min_ms"] <= row["delay_ms"] <= row["delay_max_ms"]
    assert answer.settings["prompt_tokens"] == 40 and answer.settings["device"] == "cpu"
    assert len(capsys.readouterr().out.splitlines()) == len(situations)


@pytest.fixture
def jumping(monkeypatch):
    """The clock of an event loop whose sleeps take no time, and a function that runs a coroutine in it."""
    with jumping_loop(monkeypatch, eventloop) as found:
        yield found


def test_the_delay_is_the_longest_beyond_a_tick(jumping):
    clock, run = jumping

    async def work():
        for blocked in (0.02, 0.05, 0.01):
            await asyncio.sleep(0.01)
            clock.now += blocked
        await asyncio.sleep(0.01)

    # The first sleep of a round ends when the work does; the time that it was to take anyway is no delay.
    assert run(eventloop.longest_delay(work())) == pytest.approx(0.05, abs=eventloop.TICK / 4)
    assert run(eventloop.longest_delay(asyncio.sleep(0.1))) == pytest.approx(0, abs=1e-9)


def test_streams_arrive_one_after_the_other_and_one_is_closed_before_the_other_ends(jumping):
    _, run = jumping
    calls = []

    class Stream:
        async def __anext__(self):
            calls.append("begun")

        async def aclose(self):
            calls.append("closed")

    class Recorder(eventloop.Load):
        def __init__(self):
            self.llm = SimpleNamespace(max_model_len=64, stream_async=lambda prompt, params: Stream())
            self.interval, self.prompts = 0.02, [[1] * 40, [2] * 40, [3] * 40]

        async def read(self, number, delay=0.0):
            calls.append((number, delay))
            await asyncio.sleep(1)
            calls.append("read")

    run(Recorder().arrivals())
    assert calls == [(0, 0.0), (1, 0.02), (2, 0.04), *["read"] * 3]
    calls.clear()
    run(Recorder().closing())
    assert calls == ["begun", (-1, 0.0), "closed", "read"]


def test_an_error_of_the_work_is_raised():
    async def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(eventloop.longest_delay(fail()))


def test_another_text_is_refused():
    load = eventloop.Load(LLM("tiny", device="cpu", dtype="float32", max_model_len=64), arguments())
    load.expected[1] += "!"
    with pytest.raises(RuntimeError, match="stream 1 gives another text"):
        asyncio.run(load.arrivals())
