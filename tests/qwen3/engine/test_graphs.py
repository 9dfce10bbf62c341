"""Recorded decodes: the rows that fill up a recorded size read nothing and write nothing."""

from contextlib import contextmanager

import pytest
import torch

from qwen3 import LLM
from qwen3.engine.graphs import CudaRecorder, DecodeGraphs
from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence
from qwen3.model.kv_cache import KVCache

from ..conftest import eager_recorder


@pytest.fixture(scope="module")
def model(small):
    llm = LLM(small, device="cpu", dtype="float32")
    yield llm.model
    llm.close()


def filled(model):
    """A cache in which every slot holds numbers of its own."""
    cache = KVCache(model.config, 8, 4, torch.float32)
    for layer in cache.layers:
        for tensor in layer:
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    return cache


def decodes(count, token=5):
    """The step in which `count` sequences of six tokens decode their last one; each holds two blocks."""
    sequences = [
        Sequence([1, 2, 3, 4, 9, token], Sampling(), frozenset(), 8, blocks=[2 * i, 2 * i + 1]) for i in range(count)
    ]
    return forward_batch(Scheduled(tuple(Work(sequence, 5, 1, True) for sequence in sequences)), 4, "cpu")


@pytest.mark.parametrize(
    "most, sizes",
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (20, [1, 2, 4, 8, 16, 20]), (24, [1, 2, 4, 8, 16, 24])],
)
def test_sizes_end_with_the_most_sequences(model, most, sizes):
    assert DecodeGraphs(model, KVCache(model.config, 1, 4, torch.float32), most, 1, eager_recorder).sizes == sizes


def test_cuda_records_after_a_run_and_its_graphs_share_one_pool(monkeypatch):
    """By stand-ins for PyTorch's streams and graphs; a first run compiles, which cannot be recorded."""
    calls = []

    class Stream:
        def wait_stream(self, other):
            calls.append("waits")

    class Graph:
        replay = staticmethod(lambda: calls.append("replay"))

        def pool(self):
            return "pool"

    @contextmanager
    def inside(name):
        calls.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: inside("aside"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: inside(("recorded", pool)))
    recorder = CudaRecorder(torch.device("cpu"))
    for pool in (None, "pool"):
        calls.clear()
        replay, logits = recorder(lambda: calls.append("run") or "logits")
        assert calls == ["waits", "aside", "run", "waits", ("recorded", pool), "run"] and logits == "logits"
    replay()
    assert calls[-1] == "replay"


@torch.inference_mode()
@pytest.mark.parametrize("count, size", [(1, 1), (2, 2), (3, 4)])
def test_a_step_after_a_larger_one_leaves_the_other_blocks_as_they_are(model, count, size):
    cache, plain = filled(model), filled(model)
    graphs = DecodeGraphs(model, cache, 4, 2, eager_recorder)
    graphs(decodes(4))
    for layer, same in zip(cache.layers, plain.layers):
        for tensor, values in zip(layer, same):
            assert not torch.equal(tensor, values), "the larger step has written"
            tensor.copy_(values)
    logits, routing = graphs(decodes(count, token=7))
    states, expected = model(decodes(count, token=7), plain, keep_routing=True)
    torch.testing.assert_close(logits, model.logits(states))
    assert sorted(graphs._recorded) == sorted({size, 4})
    assert not graphs._seq_lens[count:size].any(), "a row of padding attends to what was there before"
    for got, wanted in zip(routing, expected, strict=True):
        assert torch.equal(got.expert_ids, wanted.expert_ids) and len(got.expert_ids) == count
    for layer, same in zip(cache.layers, plain.layers):
        for tensor, values in zip(layer, same):
            torch.testing.assert_close(tensor, values, msg="a row of padding has written")
