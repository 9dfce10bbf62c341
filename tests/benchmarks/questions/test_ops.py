"""Every case of ops keeps the contract in every form, its bytes are those counted by hand, and the gate can fail."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common
from benchmarks.questions import ops, ops_cases
from qwen3.config.model import ModelConfig
from qwen3_kernels import reference
from qwen3_kernels.backend import backend
from qwen3_kernels.ops import Ops

MOE = ModelConfig(
    vocab_size=500, hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=48,
    rope_theta=1e4, max_positions=256, rms_norm_eps=1e-6, tie_word_embeddings=True, num_experts=8, top_k=2,
    moe_intermediate_size=24, norm_topk_prob=True,
)  # fmt: skip
DENSE = ModelConfig(
    vocab_size=500, hidden_size=64, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=48,
    rope_theta=1e4, max_positions=256, rms_norm_eps=1e-6, tie_word_embeddings=True,
)  # fmt: skip


def all_cases(config=MOE, dtype=torch.bfloat16, tokens=5, context=37, device="cpu"):
    return {case.op: case for case in ops_cases.cases(config, [tokens], [context], dtype, device)}


def check(case, function):
    exact, own = case.exact_outputs(), case.outputs(getattr(reference, case.op))
    return ops.gate(case, function, exact, own, "eager")


def test_every_op_but_the_lookup_has_a_case():
    ops_of_a_backend = {name for name in vars(Ops) if not name.startswith("_")}
    assert set(all_cases()) | set(all_cases(DENSE)) == ops_of_a_backend - {"embedding", "rope"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("op", all_cases())
def test_eager_forms_keep_the_contract(op, dtype):
    case = all_cases(dtype=dtype)[op]
    assert check(case, getattr(reference, op))["within"]
    if case.eager:
        assert check(case, case.eager) == {"within": True, "error_ratio": pytest.approx(1, abs=1.1)}


@pytest.mark.parametrize("op", all_cases())
def test_triton_keeps_the_contract(op):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert check(all_cases(device=device)[op], getattr(backend("triton", device), op))["within"]


@pytest.mark.parametrize("op", all_cases())
def test_a_wrong_result_is_outside(op):
    case = all_cases()[op]

    def wrong(*inputs):
        output = getattr(reference, op)(*inputs)
        first = output[0] if isinstance(output, tuple) else output
        first[-1] = first[-1] + 1
        return output

    assert not check(case, wrong)["within"]


def test_a_cache_that_was_not_written_is_outside():
    case = all_cases()["qk_norm_rope_cache"]

    def forgetful(*inputs):
        return reference.qk_norm_rope_cache(*inputs[:7], ops_cases.on_tensors(torch.clone, inputs[7]))

    assert not check(case, forgetful)["within"]


def test_nan_is_outside():
    case = all_cases()["rms_norm"]
    assert check(case, lambda *inputs: torch.full_like(inputs[0], float("nan"))) == {
        "within": False,
        "error_ratio": float("inf"),
    }


def test_another_librarys_failure_is_recorded_and_ours_is_raised():
    case = all_cases()["rms_norm"]

    def fails(*inputs):
        raise NotImplementedError("no kernel\nfor this")

    assert check(case, fails) == {"within": False, "error_ratio": None, "failed": "no kernel for this"}
    with pytest.raises(NotImplementedError):
        ops.gate(case, fails, [], [], "triton")


BYTES = {
    # Two bytes an element; 5 tokens of 64; projections of (4 + 2 * 2) * 16 = 128.
    "rms_norm": 2 * (5 * 64 + 5 * 64 + 64),
    "add_rms_norm": 2 * (4 * 5 * 64 + 64),
    "add_norm_linear": 2 * (128 * 64 + 64 + 2 * 5 * 64 + 5 * 128 + 2 * 5 * 64),
    "linear": 2 * (64 * 64 + 5 * 64 + 5 * 64),
    "qk_norm_rope_cache": 2 * (5 * 128 + 5 * 128 + 2 * 16) + 5 * (8 + 8 + 16 * 4),
    "route": 2 * 5 * 8 + 5 * 2 * (2 + 8),
    # 37 keys and values of 2 heads of 16 for each of 5 sequences, whose tables have three blocks of 16.
    "decode_attention": 2 * (2 * 5 * 64 + 2 * 5 * 37 * 32) + 8 * (5 * 3 + 5),
    "prefill_attention": 2 * (2 * 37 * 64 + 2 * 37 * 32) + 8 * (3 + 2 + 1),
    "sample": 4 * 5 * 500 + 5 * (4 + 8 + 4 + 4 + 8 + 8 + 8),
}


@pytest.mark.parametrize("op", BYTES)
def test_bytes_by_hand(op):
    assert all_cases()[op].bytes_moved == BYTES[op]


# A norm squares, sums, scales and weighs each element, one more to add; a matmul multiplies and adds for each weight.
FLOPS = {
    "rms_norm": 4 * 5 * 64,
    "add_rms_norm": 5 * 5 * 64,
    "add_norm_linear": 2 * 5 * 128 * 64,
    "linear": 2 * 5 * 64 * 64,
    "qk_norm_rope_cache": 7 * 5 * 128,
    "route": 4 * 5 * 8,
    "sample": 4 * 5 * 500,
    "decode_attention": 5 * 4 * 37 * 2 * (16 + 16),
    "prefill_attention": 4 * (37 * 38 // 2) * 2 * (16 + 16),
}


@pytest.mark.parametrize("op", FLOPS)
def test_flops_by_hand(op):
    assert all_cases()[op].flops == FLOPS[op]


def test_swiglu_by_hand():
    case = all_cases(DENSE)["swiglu"]
    assert (case.bytes_moved, case.flops) == (2 * 5 * 3 * 48, 5 * 5 * 48)


def test_bytes_of_experts_count_those_that_are_hit():
    case = all_cases(tokens=1)["moe_experts"]
    assert "2 experts hit" in case.setting
    assert case.bytes_moved == 2 * (2 * 3 * 64 * 24 + 2 * 64 + 2) + 8 * 2
    assert case.flops == 2 * (2 * (2 * 24) * 64 + 2 * 24 * 64)


def test_measure_times_what_is_within_the_contract():
    case = all_cases()["linear"]
    rows = ops.measure(case, "cpu", 3, {"bytes_per_second": 1e9, "flops_per_second": 1e15})
    assert [row["side"] for row in rows] == ["cpu", "reference", "eager"]
    for row in rows:
        assert row["min_us"] <= row["median_us"] <= row["max_us"] and row["bound"] == "bytes"
        assert row["fraction_of_limit"] == pytest.approx(row["bytes"] / 1e9 / row["median_us"] * 1e6)


@pytest.mark.parametrize("seconds, calls", [(0.7e-3, 3), (5e-3, 1)])
def test_a_call_is_the_mean_of_two_milliseconds(monkeypatch, seconds, calls):
    clock, called = SimpleNamespace(now=0.0), []

    def call():
        called.append(1)
        clock.now += seconds

    monkeypatch.setattr(common.time, "perf_counter", lambda: clock.now)
    assert ops.cold_seconds(call, "cpu") == pytest.approx(seconds) and len(called) == calls


def test_a_matmul_multiplies_and_adds(monkeypatch):
    monkeypatch.setattr(ops, "cold_seconds", lambda run, device: 0.5)
    assert ops.matmul_speed("cpu", torch.float32) == 2 * 1024**3 / 0.5


@pytest.mark.parametrize("error, within", [(1.9, True), (2.1, False)])
def test_a_side_may_have_twice_the_error_of_the_reference(error, within):
    case = all_cases()["rms_norm"]
    exact = torch.full((200, 64), 1.0, dtype=torch.float64)
    outputs = (exact + torch.randn(200, 64, generator=torch.Generator().manual_seed(0)) * scale for scale in (error, 1))
    side, own = (x.float() for x in outputs)
    found = ops.gate(case, lambda *inputs: side, [exact], [own], "eager")
    assert found["within"] is within and found["error_ratio"] == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("outside", ["cpu", "reference", "eager"])
def test_any_of_our_sides_outside_of_the_contract_is_said(monkeypatch, outside):
    monkeypatch.setattr(ops, "bytes_per_second", lambda device, folder: 1.0)
    monkeypatch.setattr(ops, "matmul_speed", lambda device, dtype: 1.0)
    monkeypatch.setattr(ops, "compiled_kernels", list)
    monkeypatch.setattr(ops, "print_rows", lambda *row: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(ops, "cases", lambda *sizes: [SimpleNamespace(op="linear")])
    rows = [{"side": side, "within": side != outside} for side in ("cpu", "reference", "eager")]
    monkeypatch.setattr(ops, "measure", lambda *case: rows)
    parser = argparse.ArgumentParser()
    ops.add_arguments(parser)
    assert ops.run(parser.parse_args([])).within is (outside == "eager")


def test_blocks_of_a_context_lie_apart():
    """As they do in a cache that has run for a while; in a row they would be read faster."""
    tables = all_cases(tokens=4, context=256)["decode_attention"].inputs[2]
    assert sorted(tables.flatten().tolist()) == list(range(tables.numel()))
    assert (tables.diff(dim=1) == 1).double().mean() < 0.2


def test_compiled_kernels_come_from_the_table():
    pytest.importorskip("triton")
    rows = ops.compiled_kernels()
    assert {row["module"] for row in rows} >= {"attention.decode", "moe.small", "linear.vector"}
    assert all(row["registers"] > 0 and row["blocks_per_sm"] > 0 for row in rows)
