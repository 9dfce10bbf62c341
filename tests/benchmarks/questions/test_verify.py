"""verify names the first layer that differs, if there is one."""

import argparse
from dataclasses import replace

import pytest
import torch

from benchmarks.questions import verify
from benchmarks.questions.trace import Trace
from qwen3 import LLM

pytest.importorskip("transformers")


def run(monkeypatch, change=lambda llm: None, dtype="float32", seed=0):
    """verify's answer for `tiny`, whose model was changed on our side only."""

    def changed(*args, **options):
        llm = LLM(*args, **options)
        change(llm)
        return llm

    monkeypatch.setattr(verify, "LLM", changed)
    monkeypatch.setattr(verify, "runs", lambda name, device: False)
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return verify.run(
        parser.parse_args(["tiny", "--tokens", "40", "--device", "cpu", "--dtypes", dtype, "--seed", str(seed)])
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_are_within_the_contract(monkeypatch, dtype):
    answer = run(monkeypatch, dtype=dtype)
    rows = answer.figures
    assert answer.within and verify.first_outside(rows) is None
    assert [row["place"] for row in rows] == [f"layer {i}" for i in range(5)] + ["logits"]
    if dtype == "float32":
        assert all(row["same_experts"] == 1 for row in rows[:-1]) and rows[-1]["same_argmax"] == 1
        assert 0 <= rows[-1]["kl_divergence_nats"] < 1e-8
    else:
        assert all(0 < row["rms_error"] <= 2 * row["transformers_rms_error"] for row in rows)


def test_one_weight_of_one_layer_is_found(monkeypatch, capsys):
    def change(llm):
        llm.model.layers[2].attention.o.weight.data[5, 7] += 0.5

    answer = run(monkeypatch, change)
    assert not answer.within and verify.first_outside(answer.figures) == "layer 2"
    assert "layer 2 is the first outside the contract" in capsys.readouterr().out


def test_each_backend_is_compared_with_its_own_outputs(monkeypatch):
    """A weight changed on one backend's side is reported for that backend alone."""

    def changed(*args, backend, **options):
        llm = LLM(*args, backend=backend, **options)
        if backend == "cpu":
            llm.model.layers[2].attention.o.weight.data[5, 7] += 0.5
        return llm

    monkeypatch.setattr(verify, "LLM", changed)
    monkeypatch.setattr(verify, "runs", lambda name, device: name == "cpu")
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    arguments = ["tiny", "--tokens", "24", "--device", "cpu", "--dtypes", "float32"]
    answer = verify.run(parser.parse_args(arguments))
    rows = {name: [f for f in answer.figures if f["backend"] == name] for name in ("reference", "cpu")}
    assert verify.first_outside(rows["reference"]) is None and verify.first_outside(rows["cpu"]) == "layer 2"
    assert not answer.within


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_router_weight_changes_the_experts_of_its_layer(monkeypatch, dtype):
    def change(llm):
        llm.model.layers[3].mlp.router.weight.data[0] += 1.0

    answer = run(monkeypatch, change, dtype)
    assert not answer.within and verify.first_outside(answer.figures) == "layer 3"
    rows = answer.figures
    assert rows[2]["same_experts"] > 0.9 and rows[3]["same_experts"] < 0.9


@pytest.mark.parametrize("seed", [0, 3])
def test_bfloat16_does_not_depend_on_which_experts_rounding_chooses(monkeypatch, seed):
    """Measured from a float32 pass that chooses its own experts, the ratio is 0.5 to 2.3 for texts of this length."""
    rows = run(monkeypatch, dtype="bfloat16", seed=seed).figures
    assert all(0.5 < row["rms_error"] / row["transformers_rms_error"] < 1.5 for row in rows)


def test_chosen_experts_are_the_largest_up_to_ties():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    assert verify.are_largest(logits, torch.tensor([[2, 0]])) and verify.are_largest(logits, torch.tensor([[0, 3]]))
    assert not verify.are_largest(logits, torch.tensor([[0, 1]]))
    assert not verify.are_largest(logits, torch.tensor([[2, 3]]))
    assert not verify.are_largest(torch.ones(1, 4), torch.tensor([[2, 2]]))


def test_wrong_experts_are_outside_even_where_the_hidden_states_agree():
    logits, hidden = torch.tensor([[3.0, 1.0, 2.0]]), [torch.ones(1, 4)]
    right = Trace(hidden, torch.ones(1, 2), {0: logits}, {0: torch.tensor([[0, 2]])})
    wrong = replace(right, expert_ids={0: torch.tensor([[0, 1]])})
    for trace, within in ((right, True), (wrong, False)):
        row = verify.compare(verify.Pass(trace, right), verify.Pass(right, right), "float32")[0]
        assert row["within"] is within


def test_experts_are_compared_as_sets():
    ours = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert verify.same_experts(ours, torch.tensor([[2, 1], [3, 4], [5, 7]])) == pytest.approx(2 / 3)


def test_transformers_computes_without_kernels_of_its_own():
    peer = verify.Peer("tiny", torch.device("cpu"), "bfloat16", [1, 2, 3])
    config = peer.model.config
    assert config._attn_implementation == config._experts_implementation == "eager"
    assert peer.model.dtype == torch.float32 and not peer.model.training


def test_a_layer_is_held_to_its_own_size_and_the_logits_to_one():
    """1e-4 of the root mean square of a layer's output, which is at least 1."""
    for size, error, within in ((0.5, 0.9e-4, True), (0.5, 1.1e-4, False), (50, 4.9e-3, True), (50, 5.1e-3, False)):
        right = Trace([torch.full((4, 8), size).double()], torch.zeros(4, 2), {}, {})
        actual = replace(right, hidden=[right.hidden[0] + error])
        layer, logits = verify.compare(verify.Pass(actual, right), verify.Pass(right, right), "float32")
        assert layer["within"] is within and logits["within"]
    for error, within in ((0.9e-4, True), (1.1e-4, False)):
        right = Trace([], torch.full((4, 2), 50.0).double(), {}, {})
        actual = replace(right, logits=right.logits + error)
        [logits] = verify.compare(verify.Pass(actual, right), verify.Pass(right, right), "float32")
        assert logits["within"] is within


def test_the_share_of_equal_next_tokens():
    ours, theirs = (
        Trace([], torch.tensor(x), {}, {}) for x in ([[1.0, 2], [3, 1], [4, 1]], [[2.0, 1], [3, 1], [5, 1]])
    )
    row = verify.compare(verify.Pass(ours, theirs), verify.Pass(theirs, theirs), "float32")[-1]
    assert row["same_argmax"] == pytest.approx(2 / 3)


def test_kl_divergence_of_two_known_distributions():
    ours, theirs = (Trace([], torch.tensor([values]).log()) for values in ([0.5, 0.5], [0.25, 0.75]))
    row = verify.compare(verify.Pass(ours, theirs), verify.Pass(theirs, theirs), "float32")[-1]
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert row["kl_divergence_nats"] == pytest.approx(expected.item(), rel=1e-5) and not row["within"]
