"""kv_cache, end to end at its smallest, and its gate."""

import argparse
from types import SimpleNamespace

import pytest

from benchmarks import kv_cache
from qwen3 import Qwen3Error


def run(monkeypatch, *arguments):
    saved = {}
    monkeypatch.setattr(
        kv_cache, "save", lambda *record: saved.update(zip(("name", "question", "settings", "figures"), record))
    )
    parser = argparse.ArgumentParser()
    kv_cache.add_arguments(parser)
    kv_cache.run(parser.parse_args([*arguments, "--device", "cpu", "--rounds", "2"]))
    return saved


def test_a_row_for_each_length(monkeypatch, capsys):
    saved = run(monkeypatch, "--lengths", "4", "150", "--new-tokens", "3")
    short, long = saved["figures"]
    assert (short["context"], long["context"]) == (4, 150) and saved["name"] == "kv_cache"
    for row in saved["figures"]:
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


def test_one_token_has_nothing_to_compare(monkeypatch):
    with pytest.raises(Qwen3Error, match="--new-tokens"):
        run(monkeypatch, "--new-tokens", "1")
