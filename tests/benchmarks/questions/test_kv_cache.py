"""kv_cache, end to end at its smallest, and its gate."""

import argparse
from types import SimpleNamespace

import pytest

from benchmarks.questions import kv_cache
from qwen3 import Qwen3Error

NEW_TOKENS = 5


def run(*arguments):
    parser = argparse.ArgumentParser()
    kv_cache.add_arguments(parser)
    return kv_cache.run(parser.parse_args([*arguments, "--device", "cpu", "--rounds", "2"]))


def fake(token, seconds_per_token):
    """An engine whose every token takes as long."""

    def generate(prompts, params):
        metrics = SimpleNamespace(time_to_first_token=7.0, total_seconds=7.0 + seconds_per_token * (NEW_TOKENS - 1))
        return [SimpleNamespace(token_ids=[token] * NEW_TOKENS, metrics=metrics)]

    return SimpleNamespace(generate=generate)


def test_a_row_for_each_length(capsys):
    figures = run("--lengths", "4", "150", "--new-tokens", "3").figures
    assert [row["context"] for row in figures] == [4, 150]
    for row in figures:
        assert row["ratio"] == pytest.approx(row["without_ms"] / row["with_ms"])
        assert row["with_min_ms"] <= row["with_ms"] <= row["with_max_ms"]
        assert row["with_tokens_per_second"] == pytest.approx(1e3 / row["with_ms"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_first_token_is_not_counted():
    row = kv_cache.compare({"with": fake(1, 0.01), "without": fake(1, 0.04)}, [1, 2], NEW_TOKENS, 1)
    assert row["with_ms"] == pytest.approx(10) and row["without_ms"] == pytest.approx(40)
    assert row["context"] == 2 and row["ratio"] == pytest.approx(4)


def test_other_tokens_are_refused():
    with pytest.raises(RuntimeError, match="changes what is generated"):
        kv_cache.compare({"with": fake(1, 1.0), "without": fake(2, 1.0)}, [1, 2], NEW_TOKENS, 1)


def test_one_token_has_nothing_to_compare():
    with pytest.raises(Qwen3Error, match="--new-tokens"):
        run("--new-tokens", "1")
