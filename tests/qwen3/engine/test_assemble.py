"""How an engine is put together: the graphs, which need a GPU here, by a stand-in."""

from types import SimpleNamespace

import pytest
import torch

from qwen3 import EngineConfig, Qwen3Error
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
