"""The waits of a fake engine whose delays are known, on a clock that jumps, and the gate on its answers."""

import asyncio
from types import SimpleNamespace

import pytest

from benchmarks.questions import serve

from .jumping import jumping_loop

TEXTS = [list(range(i, i + 512)) for i in range(4)]


@pytest.fixture
def run(monkeypatch):
    """Runs a coroutine whose sleeps take no time; serve sees the time that they would have taken."""
    with jumping_loop(monkeypatch, serve) as (_, run):
        yield run


class FakeEngine:
    """Three pieces an answer, each after `delay` seconds."""

    def __init__(self, delay):
        self.delay, self.running, self.most = delay, 0, 0

    async def stream_async(self, prompt, params):
        self.running += 1
        self.most = max(self.most, self.running)
        for piece in ("a", "b", str(prompt[0])):
            await asyncio.sleep(self.delay)
            yield piece
        self.running -= 1


def test_requests_run_together_and_their_waits_are_the_engines_delays(run):
    requests = serve.make_trace(TEXTS, 8, 100.0, seed=0)
    engine = FakeEngine(0.05)
    run(serve.play(engine, requests))
    assert engine.most > 1 and engine.running == 0
    serve.check(requests, [f"ab{request.prompt[0]}" for request in requests])
    for request in requests:
        assert request.time_to_first_piece == pytest.approx(0.05) and request.gaps == pytest.approx([0.05, 0.05])


def test_a_wrong_answer_is_refused():
    requests = [SimpleNamespace(text="right"), SimpleNamespace(text="wrong")]
    with pytest.raises(RuntimeError, match=r"\[1\]"):
        serve.check(requests, ["right", "right"])


def test_arrivals_come_at_the_rate_and_prompts_do_not_depend_on_it():
    slow, fast = (serve.make_trace(TEXTS, 400, rate, seed=3) for rate in (2.0, 20.0))
    assert [r.prompt for r in slow] == [r.prompt for r in fast] and [r.params for r in slow] == [r.params for r in fast]
    assert slow[0].arrival == 0 and slow[-1].arrival / 399 == pytest.approx(0.5, rel=0.2)
    assert slow[-1].arrival == pytest.approx(10 * fast[-1].arrival)
    low, high = serve.PROMPT_TOKENS
    assert all(low <= len(r.prompt) <= high for r in slow) and len({len(r.prompt) for r in slow}) > 50


def test_summary_of_known_moments():
    requests = [
        serve.Request(0.0, [1], None, moments=[1.0, 1.5, 6.0]),
        serve.Request(2.0, [1], None, moments=[4.0, 5.0]),
    ]
    row = serve.summary(4.0, requests, tokens=12)
    assert row["duration_seconds"] == 6.0 and row["tokens_per_second"] == 2.0
    assert not any(key.endswith("_ms") for key in row)
    many = [serve.Request(i, [1], None, moments=[i + 0.25, i + 0.25 + i / 100]) for i in range(101)]
    row = serve.summary(4.0, many, tokens=202)
    assert row["first_piece_p50_ms"] == row["first_piece_p90_ms"] == pytest.approx(250)
    assert row["inter_piece_p50_ms"] == pytest.approx(500) and row["inter_piece_p90_ms"] == pytest.approx(900)
