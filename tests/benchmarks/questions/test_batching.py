"""The comparison of whole runs: the gate on tokens, the ratios, and static groups that wait for each other."""

from types import SimpleNamespace

import pytest

from benchmarks.questions import batching
from benchmarks.questions.batching import Requests, Result


def test_a_side_with_other_tokens_is_refused_before_timing():
    calls = []

    def side(ids):
        calls.append(ids)
        return Result([[1, 2], ids], [0.1, 0.2], 1.0)

    with pytest.raises(RuntimeError, match=r"continuous .* \[1\]"):
        batching.batching_figures({"continuous": lambda: side([9]), "static": lambda: side([3])}, rounds=5)
    assert len(calls) == 2


def test_ratios_and_percentiles_are_those_of_the_runs():
    ids = [[1] * 30, [2] * 10]
    sides = {
        "continuous": lambda: Result(ids, [0.1, 0.3], 2.0),
        "static": lambda: Result(ids, [0.1, 1.1], 4.0),
    }
    continuous, static = batching.batching_figures(sides, rounds=3)
    assert (continuous["side"], static["side"]) == ("continuous", "static")
    assert continuous["tokens_per_second"] == 20
    assert continuous["speed_of_static"] == 2 and static["speed_of_static"] == 1
    assert static["first_token_p50_ms"] == pytest.approx(600) and static["first_token_p99_ms"] == pytest.approx(1100)


def test_a_static_group_waits_for_the_one_before(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock.now)

    class Engine:
        def generate(self, prompts, params):
            clock.now += 10 * len(prompts)
            metrics = SimpleNamespace(time_to_first_token=1.0)
            answers = [prompt + [wanted.max_new_tokens] for prompt, wanted in zip(prompts, params)]
            return [SimpleNamespace(token_ids=answer, metrics=metrics) for answer in answers]

    requests = Requests([[1], [2], [3]], [5, 6, 7])
    result = batching.static(Engine(), requests, 2)
    assert result.token_ids == [[1, 5], [2, 6], [3, 7]] and result.tokens == 6
    assert result.first_token_seconds == [1.0, 1.0, 21.0] and result.total_seconds == 30


def test_requests_are_seeded_and_within_their_bounds():
    from qwen3 import LLM

    llm = LLM("tiny", device="cpu")
    first, second = batching.make_requests(llm, 20, 1), batching.make_requests(llm, 20, 1)
    assert first == second and first != batching.make_requests(llm, 20, 2)
    assert all(16 <= len(p) <= 256 for p in first.prompts) and all(16 <= n <= 128 for n in first.new_tokens)
