"""Runs one step on the device: inputs, model or recorded graph, sampler. Nothing here waits for the result."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..model.blocks import Routing
from ..model.forward_batch import ForwardBatch
from ..model.kv_cache import KVCache
from ..model.qwen3 import Qwen3
from .graphs import DecodeGraphs
from .inputs import forward_batch
from .sampler import Sampler, SamplingBatch
from .scheduler import Scheduled


class StepInputs(NamedTuple):
    """Everything that a step reads on the device."""

    batch: ForwardBatch
    sampling: SamplingBatch | None  # None where no sequence samples


class StepOutput(NamedTuple):
    """What a step made, on the device. R sequences sampled."""

    token_ids: Tensor | None  # [R] int64, None where no sequence samples
    logits: Tensor  # [R, V] float32, valid until the next step runs
    routing: list[Routing]  # of every layer with experts, where it was asked for


class ModelRunner:
    """A model, its KV cache and its recorded decodes."""

    def __init__(self, model: Qwen3, cache: KVCache, graphs: DecodeGraphs | None = None) -> None:
        self.model, self.cache, self.graphs = model, cache, graphs
        self.sampler = Sampler(model.ops)

    def prepare(self, scheduled: Scheduled, token_ids: Tensor | None = None) -> StepInputs:
        """Copies the inputs of a step to the device. token_ids: see `forward_batch`."""
        device, vocab_size = self.model.device, self.model.config.vocab_size
        sampling = scheduled.sampling
        return StepInputs(
            forward_batch(scheduled, self.cache.block_size, device, token_ids),
            SamplingBatch.from_work(sampling, vocab_size, device) if sampling else None,
        )

    def run(self, scheduled: Scheduled, inputs: StepInputs, keep_routing: bool = False) -> StepOutput:
        """Launches the step that `scheduled` describes. keep_routing: the output has the experts of every layer."""
        logits, routing = self._forward(inputs.batch, keep_routing)
        if inputs.sampling is None:
            return StepOutput(None, logits, routing)
        sequences = [item.sequence for item in scheduled.sampling]
        return StepOutput(self.sampler(logits, inputs.sampling, sequences), logits, routing)

    @torch.inference_mode()
    def logits(self, scheduled: Scheduled) -> Tensor:
        """float32 [T, V]: the logits of every token of a step that samples nothing."""
        batch = forward_batch(scheduled, self.cache.block_size, self.model.device, all_logits=True)
        return self.model.logits(self.model(batch, self.cache).states)

    def _forward(self, batch: ForwardBatch, keep_routing: bool) -> tuple[Tensor, list[Routing]]:
        if self.graphs is not None and batch.is_decode:
            logits, routing = self.graphs(batch)
            return logits if batch.logit_rows is None else logits[batch.logit_rows.rows], routing
        states, routing = self.model(batch, self.cache, keep_routing)
        return self.model.logits(states), routing
