"""Decode steps as CUDA graphs: recorded once for each batch size, then replayed in a single launch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.blocks import Routing
from ..model.forward_batch import ForwardBatch
from ..model.kv_cache import KVCache
from ..model.qwen3 import Qwen3

# Turns a function that launches work into one that repeats it: (run) -> (replay, the tensor that run returned).
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class Recorded(NamedTuple):
    """A decode step of one batch size."""

    replay: Callable[[], None]
    logits: Tensor  # [size, V] float32
    routing: list[Routing]


class DecodeGraphs:
    """Logits of decode steps, recorded on first use at sizes 1, 2, 4, 8, 16, 24, ... up to max_num_seqs.

    A step is padded to the next size; a row of padding has slot -1 and sequence length 0: it writes nothing and attends
    to nothing. All graphs share one memory pool: read a result before the next replay.
    max_blocks: the width of the block tables, in blocks.
    record: how work is recorded; tests give a recorder that needs no GPU.
    """

    def __init__(
        self,
        model: Qwen3,
        cache: KVCache,
        max_num_seqs: int,
        max_blocks: int,
        record: Recorder | None = None,
    ) -> None:
        self.model, self.cache = model, cache
        self.sizes = [size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs] + [max_num_seqs]
        self.record = record or CudaRecorder(model.device)
        self._recorded: dict[int, Recorded] = {}
        # One set of inputs serves every size: the graph of size n reads their first n rows.
        self._token_ids, self._positions, self._slot_mapping, self._seq_lens = torch.zeros(
            (4, max_num_seqs), dtype=torch.int64, device=model.device
        )
        self._block_tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int64, device=model.device)
        self._no_prefills = torch.zeros(1, dtype=torch.int64, device=model.device)

    def __call__(self, batch: ForwardBatch) -> tuple[Tensor, list[Routing]]:
        """Float32 logits [S, V] of a decode batch and its routing, valid until the next call; writes K and V."""
        rows, width = batch.block_tables.shape
        size = next(size for size in self.sizes if size >= rows)
        if size not in self._recorded:
            self._pad(0, size)
            self._recorded[size] = self._record(size)
        recorded = self._recorded[size]
        self._token_ids[:rows].copy_(batch.token_ids)
        self._positions[:rows].copy_(batch.positions)
        self._slot_mapping[:rows].copy_(batch.slot_mapping)
        self._seq_lens[:rows].copy_(batch.seq_lens)
        self._block_tables[:rows, :width].copy_(batch.block_tables)
        self._pad(rows, size)
        recorded.replay()
        return recorded.logits[:rows], [Routing(scores[:rows], ids[:rows]) for scores, ids in recorded.routing]

    def _pad(self, rows: int, size: int) -> None:
        for inputs in (self._token_ids, self._positions, self._seq_lens):
            inputs[rows:size] = 0
        self._slot_mapping[rows:size] = -1

    def _record(self, size: int) -> Recorded:
        batch = ForwardBatch(
            token_ids=self._token_ids[:size],
            positions=self._positions[:size],
            slot_mapping=self._slot_mapping[:size],
            num_decodes=size,
            block_tables=self._block_tables[:size],
            seq_lens=self._seq_lens[:size],
            query_start_loc=self._no_prefills,
        )
        routing: list[Routing] = []

        def run() -> Tensor:
            hidden = self.model(batch, self.cache, keep_routing=True)
            routing[:] = hidden.routing
            return self.model.logits(hidden.states)

        replay, logits = self.record(run)
        return Recorded(replay, logits, routing)


class CudaRecorder:
    """Records work as CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None  # shared by all graphs, once the first one has made it

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # A run that is not recorded compiles the kernels and sets up the libraries.
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            logits = run()
        self.pool = self.pool or graph.pool()
        return graph.replay, logits
