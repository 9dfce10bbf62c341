"""kv_cache, end to end at its smallest, and its gate."""

import argparse
from types import SimpleNamespace

import pytest

from benchmarks.questions import kv_cache
from qwen3 import Qwen3Error


def run(*arguments):
    parser = argparse.ArgumentParser()
    kv_cache.add_arguments(parser)
    return kv_cache.run(parser.parse_args([*arguments, "--device", "cpu", "--rounds", "2"]))


def test_a_row_for_each_length(capsys):
    figures = run("--lengths", "4", "150", "--new-tokens", "3").figures
    short, long = figures
    assert (short["context"], long["context"]) == (4, 150)
    for row in figures:
        assert row["ratio"] == pytest.approx(row["without_ms"] / row["with_ms"])
        assert row["with_p20_ms"] <= row["with_ms"] <= row["with_p80_ms"]
        assert row["with_tokens_per_second"] == pytest.approx(1e3 / row["with_ms"])
    # 150 tokens are computed for each token, or one.
    assert long["ratio"] > 2
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_other_tokens_are_refused():
    def fake(token):
        return SimpleNamespace(generate=lambda prompts, params: [SimpleNamespace(token_ids=[token])])

    with pytest.raises(RuntimeError, match="changes what is generated"):
        kv_cache.compare({"with": fake(1), "without": fake(2)}, [1, 2], 2, 1)


def test_one_token_has_nothing_to_compare():
    with pytest.raises(Qwen3Error, match="--new-tokens"):
        run("--new-tokens", "1")
