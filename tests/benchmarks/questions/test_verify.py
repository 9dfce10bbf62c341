"""verify names the first layer that differs, and nothing where none does."""

import argparse

import pytest
import torch

from benchmarks.questions import verify
from benchmarks.questions.trace import Trace
from qwen3 import LLM

pytest.importorskip("transformers")


def run(monkeypatch, change=lambda llm: None, dtype="float32"):
    """verify's answer for `tiny`, whose model was changed on our side only."""

    def changed(*args, **options):
        llm = LLM(*args, **options)
        change(llm)
        return llm

    monkeypatch.setattr(verify, "LLM", changed)
    monkeypatch.setattr(verify, "triton_runs", lambda device: False)
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    return verify.run(parser.parse_args(["tiny", "--tokens", "40", "--device", "cpu", "--dtypes", dtype]))


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
        llm.model.layers[2].attention.o_weight[5, 7] += 0.5

    answer = run(monkeypatch, change)
    assert not answer.within and verify.first_outside(answer.figures) == "layer 2"
    assert "layer 2 is the first outside the contract" in capsys.readouterr().out


def test_one_router_weight_changes_the_experts_of_its_layer(monkeypatch):
    def change(llm):
        llm.model.layers[3].mlp.router_weight[0] += 1.0

    answer = run(monkeypatch, change)
    assert not answer.within and verify.first_outside(answer.figures) == "layer 3"
    rows = answer.figures
    assert rows[2]["same_experts"] == 1 and rows[3]["same_experts"] < 1


def test_bfloat16_is_measured_from_float32_of_the_same_weights():
    exact = torch.zeros(2, 3)
    own, three_times = exact + 0.01, exact - 0.03
    inside = verify.errors(own, own, exact, "bfloat16", 1.0)
    outside = verify.errors(three_times, own, exact, "bfloat16", 1.0)
    assert inside["within"] and not outside["within"]
    assert outside["rms_error"] == pytest.approx(0.03) and outside["transformers_rms_error"] == pytest.approx(0.01)


def test_nan_is_outside():
    bad = torch.tensor([1.0, float("nan")])
    assert not verify.errors(bad, torch.ones(2), torch.ones(2), "float32", 1.0)["within"]
    assert not verify.errors(bad, torch.zeros(2), torch.ones(2), "bfloat16", 1.0)["within"]


def test_experts_are_compared_as_sets():
    ours = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert verify.same_experts(ours, torch.tensor([[2, 1], [3, 4], [5, 7]])) == pytest.approx(2 / 3)


def test_kl_divergence_of_two_known_distributions():
    ours, theirs = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    peer = verify.Peer(Trace([], {}, theirs), Trace([], {}, theirs))
    row = verify.compare(Trace([], {}, ours), peer, "float32")[-1]
    expected = 0.25 * torch.tensor(0.5).log() + 0.75 * torch.tensor(1.5).log()
    assert row["kl_divergence_nats"] == pytest.approx(expected.item(), rel=1e-5) and not row["within"]
