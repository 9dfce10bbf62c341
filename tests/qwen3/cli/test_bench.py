"""`qwen3 bench`: what it counts, by hand; what it prints."""

import argparse
import json
from types import SimpleNamespace

import pytest

from qwen3 import LLM, Qwen3Error
from qwen3.cli import bench, model, speed
from qwen3.measure import roofline
from qwen3.measure.stats import Phase

# All four experts are hit by every token, so that the bytes are known.
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "vocab_size": 32, "hidden_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "num_experts": 4,
    "num_experts_per_tok": 4, "moe_intermediate_size": 8, "intermediate_size": 24, "norm_topk_prob": True,
    "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "torch_dtype": "float32",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command on a device that copies 1 GB/s -> the lines that it prints."""
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda device: 1e9)

    def run(*arguments):
        parser = argparse.ArgumentParser()
        bench.add_arguments(parser)
        fast = ("--device", "cpu", "--batch", "1,2", "--context", "8,20", "--new-tokens", "3", "--rounds", "2")
        assert bench.run(parser.parse_args([*fast, *map(str, arguments)])) == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_bytes_of_a_step_by_hand(folder):
    llm = LLM(folder, random_weights=True, device="cpu", max_num_seqs=2, max_model_len=speed.room_for(5, 4))
    prompts = speed.random_prompts(32, 2, 5)
    speed.prefill_seconds(llm, prompts)
    # q, k, v; output; norms of q and k; two norms; router; experts.
    layer = (16 + 8 + 8) * 16 + 16 * 16 + 2 * 8 + 2 * 16 + 4 * 16 + 4 * 3 * 16 * 8
    weights = 2 * layer + 16 + 32 * 16
    # Keys and values of two layers; three steps, with 6, 7 and 8 tokens in each of two contexts.
    cache = 2 * (2 * 8) * 2 * (6 + 7 + 8) / 3
    assert speed.bytes_per_step(llm, prompts, 4) == pytest.approx(4 * (weights + cache))
    assert llm.stats.experts is None


def test_every_decode_step_has_the_whole_batch():
    tokens = speed.room_for(40, 4)
    # The prefill takes four steps.
    llm = LLM("tiny", device="cpu", max_num_seqs=3, max_num_batched_tokens=32, max_model_len=tokens)
    speed.require_room(llm, 3)
    prompts = speed.random_prompts(4096, 3, 40)
    assert len({tuple(prompt) for prompt in prompts}) == 3 and prompts == speed.random_prompts(4096, 3, 40)
    for _ in range(3):
        llm.stats.prefill = Phase()
        assert speed.prefill_seconds(llm, prompts) > 0
        assert llm.stats.prefill.tokens == 3 * 40
    for _ in range(2):
        assert speed.decode_seconds(llm, prompts, 4) > 0
        assert (llm.stats.decode.steps, llm.stats.decode.tokens) == (3, 9)


def known(seconds):
    """An LLM whose answers took known times, each (to the first token, in all)."""
    metrics = [SimpleNamespace(time_to_first_token=first, total_seconds=total) for first, total in seconds]
    answers = [SimpleNamespace(metrics=m) for m in metrics]
    return SimpleNamespace(
        generate=lambda *a: answers, reset_prefix_cache=lambda: None, stats=SimpleNamespace(decode=None)
    )


def test_a_prefill_ends_with_its_last_prompt():
    assert speed.prefill_seconds(known([(1.0, 1.0), (3.0, 3.0), (2.0, 2.0)]), [[1]] * 3) == 3.0


def test_a_decode_step_is_the_time_after_the_last_first_token_over_the_steps():
    # Five tokens take four steps after the first; the latest prompt began to decode after 2 s and ended after 10 s.
    assert speed.decode_seconds(known([(1.0, 9.0), (2.0, 10.0)]), [[1]] * 2, 5) == 2.0


def test_turns_are_measured_after_one_that_warms_up_and_counts(monkeypatch):
    calls, seconds = [], iter([(99.0, 0), (3.0, 0.3), (1.0, 0.5), (2.0, 0.1)])

    def prefill(llm, prompts):
        calls.append("prefill")
        prefill.turn = next(seconds)
        return prefill.turn[0]

    monkeypatch.setattr(speed, "prefill_seconds", prefill)
    monkeypatch.setattr(speed, "bytes_per_step", lambda llm, prompts, steps: calls.append(f"bytes {steps}") or 5.0)
    monkeypatch.setattr(speed, "decode_seconds", lambda *a: calls.append("decode") or prefill.turn[1])
    measured = speed.measure(SimpleNamespace(config=SimpleNamespace(vocab_size=9)), 2, 4, 7, 3)
    # The bytes are those of prompts that are cached.
    assert calls == ["prefill", "bytes 7", *["prefill", "decode"] * 3]
    assert measured == speed.Speed(2, 4, speed.Timing(2.0, 1.0, 3.0), speed.Timing(0.3, 0.1, 0.5), 5.0)


def test_one_row_for_each_batch_and_context(run):
    lines = run("--repo_id", "tiny")
    assert "8.0 M parameters (3.5 M active)" in lines[0] and "a copy moves 1.0 GB/s" in lines[1]
    assert {len(line) for line in lines[3:]} == {len(lines[3])}
    rows = [line.replace(",", "").replace("%", "").split() for line in lines[4:]]
    assert [(row[0], row[1]) for row in rows] == [("1", "8"), ("1", "20"), ("2", "8"), ("2", "20")]
    for row in rows:
        low, high = map(float, row.pop(5).split("-"))
        assert low <= float(row[4]) <= high and all(float(cell) > 0 for cell in row[:6])


def test_a_row_of_known_measurements():
    known = speed.Speed(8, 1024, speed.Timing(2.0, 1.9, 2.1), speed.Timing(0.004, 0.0035, 0.005), 6.2e9)
    row = "8 1024 4,096.0 2,000.0 4.00 3.50-5.00 6.2000 1,550.0 50%"
    assert speed.table_row(known, 3.1e12).split() == row.split()


def test_what_the_peak_of_memory_counts(monkeypatch, capsys):
    """Resident memory on a CPU, on a GPU what PyTorch has reserved there."""
    monkeypatch.setattr(model, "peak_bytes", lambda device: 5e9)
    monkeypatch.setattr(model, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(model, "roofline_lines", lambda *a: [])
    stats = SimpleNamespace(experts=None, first_token_seconds=0.25)
    for kind, said in (("cpu", "resident"), ("cuda", "reserved on the GPU")):
        llm = SimpleNamespace(stats=stats, device=SimpleNamespace(type=kind), model=None)
        model.print_statistics(SimpleNamespace(expert_stats=None, stats=True), llm)
        assert capsys.readouterr().err == f"time to first token: 0.250 s · peak memory: 5.0 GB {said}\n"


def test_random_weights_need_only_a_config(run, folder):
    lines = run("--random-weights", folder / "config.json")
    assert lines[0].endswith("random weights") and str(folder) in lines[0] and len(lines) == 8


def test_errors_that_the_user_can_fix(run, folder):
    for arguments in (("--new-tokens", 1), ("--rounds", 0), ("--random-weights", folder / "no")):
        with pytest.raises(Qwen3Error):
            run(*arguments)
    for text in ("0", "1,x", "", "1,-2"):
        with pytest.raises(argparse.ArgumentTypeError):
            bench.whole_numbers(text)
    assert bench.whole_numbers("1, 8") == [1, 8]


def test_a_batch_that_does_not_fit_is_refused():
    llm = LLM("tiny", device="cpu", max_num_seqs=2, max_model_len=64)
    speed.require_room(llm, 2)
    with pytest.raises(Qwen3Error, match="lower --batch or --context"):
        speed.require_room(llm, 3)


def test_marks_of_known_values():
    assert speed.Timing.of([5.0, 1.0, 3.0, 2.0, 9.0]) == speed.Timing(3.0, 1.0, 9.0)
    assert speed.Timing.of([2.0]) == speed.Timing(2.0, 2.0, 2.0)
