"""generate, end to end on a small checkpoint, both ways; its gate finds one changed weight."""

import argparse

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from benchmarks.questions import generate
from tests.qwen3.conftest import write_checkpoint

SIZES = ["--prefill", "9", "--batch", "1", "3", "--context", "6", "--new-tokens", "3", "--rounds", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    # Every token takes all eight experts, so that no choice depends on rounding.
    write_checkpoint(path, num_hidden_layers=2, num_experts_per_tok=8)
    return path


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(generate, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(generate, "TRIAL_TOKENS", 2)


def run(folder, *arguments):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args(["--model", str(folder), *SIZES, "--device", "cpu", *arguments]))


@pytest.mark.parametrize(
    ("together", "dtypes"),
    [(True, ["float32", "bfloat16"]), (False, ["bfloat16"])],
    ids=["both sides loaded", "one after the other"],
)
def test_a_row_for_each_cell(monkeypatch, folder, together, dtypes):
    monkeypatch.setattr(generate, "fits_twice", lambda *model: together)
    answer = run(folder, "--dtypes", *dtypes)
    assert answer.name == f"generate_{folder.name}"
    assert answer.settings["both_sides_loaded"] == ("together" if together else "one after the other")
    cells = [("decode", 1, 6), ("decode", 3, 6), ("prefill", 1, 9)]
    assert [(r["dtype"], r["phase"], r["batch"], r["context"]) for r in answer.figures] == [
        (dtype, *cell) for dtype in dtypes for cell in cells
    ]
    for row in answer.figures:
        assert row["within"] and row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
        tokens = row["batch"] * (row["context"] if row["phase"] == "prefill" else 1)
        assert row["ours_tokens_per_second"] == pytest.approx(tokens / row["ours_ms"] * 1e3)
        if row["phase"] == "decode":
            limit = row["bytes_per_step"] / 1e9
            assert row["fraction_of_copy"] == pytest.approx(limit / row["ours_ms"] * 1e3, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_changed_weight_is_found(folder, dtype, phase):
    settings = {"prefill": [6], "batch": [2], "context": [6], "new_tokens": 3}
    cpu, cell = torch.device("cpu"), generate.Cell(phase, 2, 6)
    ours, theirs = generate.Ours(folder, dtype, cpu, settings), generate.Theirs(folder, dtype, cpu)
    assert theirs.gate(cell, ours.answers(cell))["within"]
    ours.llm.model.layers[1].attention.o.weight.data[0] += 0.5
    with pytest.raises(RuntimeError, match=f"{phase}.*{dtype}"):
        theirs.gate(cell, ours.answers(cell))


def test_float32_of_the_same_weights(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    wide = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        before = model(tokens).logits
        with generate.in_float32(model):
            torch.testing.assert_close(model(tokens).logits, wide(tokens).logits)
        assert torch.equal(model(tokens).logits, before) and model.lm_head.weight.dtype == torch.bfloat16


def test_a_decode_turn_leaves_the_cache_as_it_was(folder):
    theirs = generate.Theirs(folder, "float32", torch.device("cpu"))
    tokens = torch.tensor([[5, 6, 7]])
    cache, first = theirs.prompt(tokens)
    for _ in range(2):
        assert theirs.decode(cache, first, 4) > 0
        assert cache.get_seq_length() == 3


def test_a_shape_of_configs_is_written_as_a_checkpoint():
    cpu = torch.device("cpu")
    with generate.checkpoint("tiny-shape", torch.bfloat16, cpu) as folder:
        settings = {"prefill": [4], "batch": [1], "context": [4], "new_tokens": 2}
        ours = generate.Ours(folder, "bfloat16", cpu, settings)
        assert ours.llm.config.num_experts == 16 and not ours.llm.random_weights
        answers = ours.answers(generate.Cell("decode", 1, 4))
        assert [len(answer.token_ids) for answer in answers] == [generate.GATE_TOKENS] * generate.GATE_SEQUENCES
        assert [answers[0].prompt_token_ids] == ours.prompts(generate.Cell("decode", 1, 4))
    assert not folder.exists()


def test_both_sides_are_held_where_they_fit(monkeypatch, folder):
    weights = generate.planned_footprint(generate.model_config(folder), torch.bfloat16).nbytes
    for free, fits in ((3 * weights, True), (2 * weights, False)):
        monkeypatch.setattr(generate, "available_bytes", lambda device, free=free: free)
        assert generate.fits_twice(folder, torch.bfloat16, torch.device("cpu")) is fits
