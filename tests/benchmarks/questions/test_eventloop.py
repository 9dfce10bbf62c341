"""eventloop, end to end at its smallest; its delays on a loop that is blocked on purpose."""

import argparse
import asyncio
import time

import pytest

from benchmarks.questions import eventloop
from qwen3 import LLM


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


def test_what_blocks_the_loop_is_measured():
    async def block():
        await asyncio.sleep(0)
        time.sleep(0.05)

    assert asyncio.run(eventloop.longest_delay(block())) >= 0.04


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
