"""Counts of experts on routings made by hand, and the bytes of a step by hand."""

import argparse
import math
from dataclasses import replace

import pytest
import torch

from benchmarks.questions import experts
from qwen3.config.model import ModelConfig

CONFIG = ModelConfig(
    vocab_size=100, hidden_size=8, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=20,
    rope_theta=1e4, max_positions=64, rms_norm_eps=1e-6, tie_word_embeddings=False, num_experts=4, top_k=2,
    moe_intermediate_size=6, dense_layers=frozenset({0}), dtype=torch.bfloat16,
)  # fmt: skip


def test_formula_for_experts_at_random():
    assert experts.uniform_distinct(128, 8, 1) == pytest.approx(8)
    assert experts.uniform_distinct(4, 2, 2) == pytest.approx(3)  # 2 of the first token, half of the other 2
    assert experts.uniform_distinct(128, 8, 10_000) == pytest.approx(128)


def test_formula_against_random_routing():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(500, 16, 32, generator=generator)
    counts = [experts.distinct(row.topk(4).indices) for row in scores]
    assert sum(counts) / len(counts) == pytest.approx(experts.uniform_distinct(32, 4, 16), rel=0.02)


def test_distinct_counts_each_expert_once():
    assert experts.distinct(torch.tensor([[0, 3], [3, 1], [0, 1]])) == 3


def test_neighbours_stay_within_a_window_and_hit_fewer_experts_than_unrelated_tokens():
    # Window w of 10 tokens goes to experts 2w and 2w + 1 alone.
    ids = torch.tensor([[2 * (t // 10), 2 * (t // 10) + 1] for t in range(80)])
    args = argparse.Namespace(batches=[4], window_tokens=10, samples=50, seed=0)
    config = replace(CONFIG, num_experts=16)
    unrelated, neighbours = experts.distinct_figures(1, ids, config, args)
    assert (unrelated["batch"], neighbours["batch"]) == experts.KINDS
    assert neighbours["mean"] == neighbours["median"] == 2
    assert unrelated["mean"] > 4 and unrelated["p20"] <= unrelated["median"] <= unrelated["p80"] <= 8


def test_neighbours_of_every_window_are_sampled():
    # The first window goes to two experts, the others to four.
    ids = torch.tensor([[2 * (t % 2), 2 * (t % 2) + 1] if t >= 10 else [0, 1] for t in range(40)])
    args = argparse.Namespace(batches=[4], window_tokens=10, samples=200, seed=0)
    assert experts.distinct_figures(1, ids, CONFIG, args)[1]["mean"] == pytest.approx(3.5, abs=0.2)


def test_marks_of_known_counts(monkeypatch):
    counts = iter([*range(11), *range(11)])
    monkeypatch.setattr(experts, "distinct", lambda ids: next(counts))
    args = argparse.Namespace(batches=[1], window_tokens=4, samples=11, seed=0)
    for row in experts.distinct_figures(1, torch.zeros(8, 2, dtype=torch.int64), CONFIG, args):
        assert [row[mark] for mark in ("p20", "median", "p80", "mean")] == pytest.approx([2, 5, 8, 5])


def test_load_of_a_known_routing():
    load = experts.load_figures(0, torch.tensor([[0, 1], [0, 1], [0, 2], [0, 2]]), 4)
    assert load["tokens_per_expert"] == [4, 2, 2, 0] and load["unused_experts"] == 1
    assert load["entropy_bits"] == pytest.approx(1.5) and load["uniform_entropy_bits"] == pytest.approx(2)
    assert load["max_over_mean"] == pytest.approx(2)
    assert experts.load_figures(0, torch.tensor([[0], [0], [1], [0], [0]]), 4)["max_over_mean"] == pytest.approx(3.2)


def test_bytes_of_a_step_by_hand():
    attention = 8 * 8 + 2 * 4 * 8 + 8 * 8 + 2 * 4 + 2 * 8  # q, k and v, o, norms of q and k, two norms
    dense = attention + 3 * 8 * 20
    sparse = attention + 4 * 8 + 3 * (3 * 8 * 6)  # the router, three experts hit
    values = dense + 2 * sparse + 8 + 100 * 8  # the last norm, the output layer; not the table of the embedding
    row = experts.step_figures("x", CONFIG, 2, 3.0, "computed")
    assert row["weight_bytes"] == 2 * values and row["weight_bytes_per_token"] == values
    tied = experts.step_figures("x", replace(CONFIG, tie_word_embeddings=True), 2, 3.0, "computed")
    assert tied["weight_bytes"] == row["weight_bytes"]


def test_the_whole_question_on_tiny():
    parser = argparse.ArgumentParser()
    experts.add_arguments(parser)
    answer = experts.run(
        parser.parse_args(["--windows", "2", "--window-tokens", "64", "--batches", "1", "8", "--samples", "5"])
    )
    figures = answer.figures
    assert answer.settings["windows"] == 2
    single = [f for f in figures if f["figure"] == "distinct" and f["tokens"] == 1]
    assert len(single) == 10 and all(f["mean"] == 4 for f in single)
    assert all(sum(f["tokens_per_expert"]) == 2 * 64 * 4 for f in figures if f["figure"] == "load")
    assert math.isclose(
        next(f["experts_hit"] for f in figures if f.get("model") == "Qwen3-30B-A3B" and f["tokens"] == 8),
        128 * (1 - (15 / 16) ** 8),
    )
