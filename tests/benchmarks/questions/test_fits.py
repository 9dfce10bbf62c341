"""fits by hand for one model and every card."""

import argparse

from benchmarks.questions import fits


def run(*arguments):
    parser = argparse.ArgumentParser()
    fits.add_arguments(parser)
    return fits.run(parser.parse_args(list(arguments)))


def test_tokens_are_what_the_weights_leave_of_the_share_in_decimal_gigabytes():
    answer = run("--models", "Qwen3-0.6B", "--memory-utilization", "0.5")
    assert answer.settings["memory_utilization"] == 0.5
    weights = 2 * 596_049_920
    # 28 layers, 8 key and value heads of 128, two bytes each.
    per_token = 2 * 28 * 8 * 128 * 2
    for row in answer.figures:
        assert (row["weight_bytes"], row["kv_bytes_per_token"]) == (weights, per_token)
        assert row["tokens"] == int((row["memory_gb"] * 10**9 // 2 - weights) // per_token)
    assert {row["card"]: row["memory_gb"] for row in answer.figures}["H200"] == 141


def test_a_model_that_does_not_fit_has_no_tokens():
    rows = {row["card"]: row["tokens"] for row in run("--models", "Qwen3-30B-A3B").figures}
    assert rows["RTX 4090"] == 0 and rows["A100 or H100"] > 0
