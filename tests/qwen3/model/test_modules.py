"""Modules that own weights: published names, cuts and counts, in any format of weights."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3.config.hf import from_hf
from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence
from qwen3.model.footprint import footprint, planned_footprint
from qwen3.model.kv_cache import KVCache
from qwen3.model.modules import Experts, Linear, Norm
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels import reference

from ..conftest import SMALL

CONFIG = from_hf(SMALL | {"model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0]})


class Scaled(NamedTuple):
    """A format made up here: a scale for each output."""

    values: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, *shape, dtype):
        return cls(torch.empty(shape, dtype=dtype), torch.empty(shape[:-1], dtype=dtype))

    @property
    def shape(self):
        return self.values.shape

    def rows(self, start, stop):
        return Scaled(self.values[start:stop], self.scales[start:stop])

    def expert(self, index):
        return Scaled(self.values[index], self.scales[index])

    def published(self, name):
        return {f"{name}.weight": self.values, f"{name}.weight_scale": self.scales}

    def dequantize(self):
        return self.values * self.scales[..., None]


def logits_of(model):
    sequence = Sequence(list(range(20)), Sampling(), frozenset(), 20, blocks=[0, 1])
    batch = forward_batch(Scheduled((Work(sequence, 0, 20, False),)), 16, "cpu", all_logits=True)
    with torch.no_grad():
        return model.logits(model(batch, KVCache(CONFIG, 2, 16, torch.float32)).states)


def test_another_format_of_weights_needs_no_change_in_the_model():
    torch.manual_seed(0)
    scaled = Qwen3(replace(CONFIG, weight_kind=Scaled), reference, 32)
    for parameter in scaled.parameters():
        parameter.data.normal_(std=0.3)
    dense = Qwen3(CONFIG, reference, 32)
    published = scaled.published()
    for name, tensor in dense.published().items():
        scales = published.get(f"{name}_scale")
        tensor.data.copy_(published[name] if scales is None else published[name] * scales[:, None])
    assert torch.equal(logits_of(scaled), logits_of(dense))
    assert set(published) > set(dense.published()) and len(published) > 2 * len(CONFIG.dense_layers) * 7
    counted, counted_dense = footprint(scaled), footprint(dense)
    assert counted[:2] == counted_dense[:2] and counted.nbytes > counted_dense.nbytes
    assert counted.expert_bytes == counted_dense.expert_bytes + 4 * (2 * 48 + 64)
    assert planned_footprint(replace(CONFIG, weight_kind=Scaled), torch.float32) == counted


def test_every_published_tensor_is_a_part_of_one_parameter():
    model = Qwen3(CONFIG, reference, 32)
    published = model.published()
    assert sum(tensor.numel() for tensor in published.values()) == footprint(model).parameters
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert {tensor.untyped_storage().data_ptr() for tensor in published.values()} == storages


def test_cuts_are_those_of_tensor_parallelism():
    """What reads the residual stream is cut by rows, what writes to it by columns; router and norms are whole."""
    model = Qwen3(CONFIG, reference, 32)
    cuts = {name: module.cut for name, module in model.named_modules() if isinstance(module, Linear)}
    assert cuts["layers.0.attention.qkv"] == cuts["layers.0.mlp.gate_up"] == cuts["lm_head"] == "rows"
    assert cuts["layers.0.attention.o"] == cuts["layers.0.mlp.down"] == "columns"
    assert cuts["layers.1.mlp.router"] is None and model.embedding.cut == "rows"
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    assert experts.cuts == {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}
    assert all(module.cut is None for module in model.modules() if isinstance(module, Norm))
