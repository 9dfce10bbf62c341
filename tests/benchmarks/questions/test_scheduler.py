"""scheduler, end to end at its smallest: every step that is timed decodes all sequences."""

import argparse
from types import SimpleNamespace

import pytest

from benchmarks.questions import scheduler


def test_a_row_for_each_number_of_sequences(capsys):
    parser = argparse.ArgumentParser()
    scheduler.add_arguments(parser)
    answer = scheduler.run(parser.parse_args(["--sequences", "3", "100", "--rounds", "4"]))
    assert [row["sequences"] for row in answer.figures] == [3, 100]
    for row in answer.figures:
        assert row["min_us"] <= row["median_us"] <= row["max_us"]
        assert row["us_per_sequence"] == pytest.approx(row["median_us"] / row["sequences"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_step_is_timed_as_a_whole(monkeypatch):
    clock = SimpleNamespace(now=0.0)

    def commit(scheduled):
        clock.now += 6.0
        return SimpleNamespace(work=[None] * 3, is_decode=True)

    step = scheduler.decode_step(3, rounds=1)
    monkeypatch.setattr(scheduler.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(scheduler, "commit", commit)
    assert step() == 6.0


def test_a_step_without_all_sequences_is_refused():
    step = scheduler.decode_step(3, rounds=1)
    for _ in range(2):
        step()
    with pytest.raises(RuntimeError, match="0 of 3 sequences"):
        step()
