"""How an engine is put together: the graphs, which need a GPU here, by a stand-in."""

from types import SimpleNamespace

import pytest
import torch

from qwen3 import LLM, EngineConfig, Qwen3Error
from qwen3.engine import assemble as module
from qwen3.measure.stats import Stats

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize("wanted", [None, True, False])
@pytest.mark.parametrize(
    "device, backend, kv_cache",
    [(GPU, "triton", True), (GPU, "triton", False), (GPU, "cpu", True), (CPU, "triton", True)],
)
def test_decode_steps_are_recorded_where_they_can_be_unless_it_is_switched_off(
    monkeypatch, wanted, device, backend, kv_cache
):
    made = []
    monkeypatch.setattr(module, "_kv_cache", lambda *_: SimpleNamespace(num_blocks=4, block_size=16))
    monkeypatch.setattr(module, "DecodeGraphs", lambda *arguments: made.append(arguments))
    model = SimpleNamespace(device=device, dtype=torch.bfloat16, config=SimpleNamespace(source="x"), ops=None)
    options = EngineConfig(cuda_graphs=wanted, kv_cache=kv_cache)
    can = device is GPU and backend == "triton" and kv_cache
    if wanted and not can:
        with pytest.raises(Qwen3Error, match="cuda_graphs = True needs a GPU"):
            module.assemble(model, options, 64, backend, Stats())
        return
    module.assemble(model, options, 64, backend, Stats())
    assert len(made) == (can and wanted is not False)
    # Rows for all sequences, wide enough for the 64 tokens of the longest in blocks of 16.
    assert [arguments[2:4] for arguments in made] == [(options.max_num_seqs, 4)] * len(made)


def test_a_largest_step_that_does_not_fit_says_what_to_lower(monkeypatch):
    seen = []

    def largest(model, options, work, num_blocks):
        seen.append([(len(item.sequence.token_ids), item.sequence.blocks) for item in work])
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_largest_step", largest)
    with pytest.raises(Qwen3Error, match=r"a step of 70 tokens of 256 sequences does not fit on cuda: lower max_num_b"):
        module._step_bytes(SimpleNamespace(device=GPU), EngineConfig(max_num_batched_tokens=70), 40)
    assert seen == [[(40, [0, 1, 2]), (30, [3, 4])]]


def test_the_largest_step_is_run_to_see_what_it_takes(small, monkeypatch):
    """By stand-ins for PyTorch's counters, on a CPU."""
    with LLM(small, device="cpu") as llm:
        tokens, forward = [], llm.model.forward
        monkeypatch.setattr(llm.model, "forward", lambda batch, *more: tokens.append(batch) or forward(batch, *more))
        for name, value in (("memory_allocated", 120), ("max_memory_allocated", 500)):
            monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: tokens.append("peak"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: tokens.append("given back"))
        logits = llm.model.logits
        monkeypatch.setattr(llm.model, "logits", lambda states: tokens.append(len(states)) or logits(states))
        options = EngineConfig(max_num_batched_tokens=70, max_num_seqs=3)
        assert module._step_bytes(llm.model, options, 40) == 380
        # The peak of loading is forgotten, and the step has logits of all sequences.
        assert [x if isinstance(x, str | int) else len(x.token_ids) for x in tokens] == ["peak", 70, 3, "given back"]


def test_no_more_blocks_than_all_sequences_fill(small):
    with LLM(small, device="cpu", max_num_seqs=2, max_model_len=40) as llm:
        assert llm.engine.scheduler.pool.num_blocks == 2 * 3


def test_a_model_that_does_not_fit_is_refused_before_it_takes_memory(small, monkeypatch):
    def refuse(needed, device, what, advice):
        raise Qwen3Error(f"{needed} bytes for {what}")

    monkeypatch.setattr(module, "require", refuse)
    monkeypatch.setattr(module, "Qwen3", None)
    with pytest.raises(Qwen3Error, match=r"\d+ bytes for .* in float32"):
        LLM(small, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_kv_blocks": 10**12, "kv_block_size": 2**20}, "GB, cpu has .* free: lower num_kv_blocks"),
        ({"memory_utilization": 1e-300}, "raise memory_utilization, lower max_num_batched_tokens or kv_block_size"),
    ],
    ids=["more than any memory", "no memory"],
)
def test_a_cache_that_does_not_fit_says_what_to_change(small, options, message):
    with pytest.raises(Qwen3Error, match=f"out of memory: the KV cache needs .*{message}"):
        LLM(small, device="cpu", **options)


def test_sizes_that_no_memory_holds_are_refused_at_once():
    for name, value in (("max_num_seqs", 2**20 + 1), ("max_num_batched_tokens", 2**22 + 1), ("kv_block_size", 2**21)):
        with pytest.raises(Qwen3Error, match=f"{name} is {value}: it must be a whole number from 1 to"):
            EngineConfig(**{name: value})
