"""The decode step as CUDA graphs: recorded once for each batch size, then replayed in a single launch."""

from collections.abc import Callable

import torch
from torch import Tensor

from .kv_cache import KVCache
from .model import Qwen3
from .step import Step

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class DecodeGraphs:
    """Logits of pure decode steps, recorded on first use at sizes 1, 2, 4, 8, 16, 24, ... up to max_num_seqs.

    A step is padded to the next size; a row of padding has slot -1 and context length 0: it writes nothing and attends
    to nothing. All graphs share one memory pool: their results are read before the next one is replayed.
    max_blocks: the width of the block tables, in blocks. record: how a function that launches work becomes one that
    repeats it; the tests give one that needs no GPU.
    """

    def __init__(
        self, model: Qwen3, cache: KVCache, max_num_seqs: int, max_blocks: int, record: Recorder | None = None
    ):
        self.model, self.cache = model, cache
        self.sizes = [size for size in (1, 2, 4, *range(8, max_num_seqs, 8)) if size < max_num_seqs] + [max_num_seqs]
        self.record = record or CudaRecorder(model.embed_tokens.device)
        self._replays: dict[int, tuple[Callable[[], None], Tensor]] = {}
        device = model.embed_tokens.device
        # One set of inputs serves every size: graph b reads its first b rows.
        self._rows = torch.zeros((4, max_num_seqs), dtype=torch.int64, device=device)
        self._tables = torch.zeros((max_num_seqs, max_blocks), dtype=torch.int64, device=device)
        self._last_rows = torch.arange(max_num_seqs, device=device)
        self._routing: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def takes(self, step: Step) -> bool:
        """Whether a graph can do `step`: a decode of every sequence in it."""
        return step.num_decodes == len(step.context_lengths)

    def __call__(self, step: Step) -> Tensor:
        """Float32 logits [S, V] of a decode step, valid until the next call; K and V are in the cache afterwards."""
        rows, width = step.block_tables.shape
        size = next(size for size in self.sizes if size >= rows)
        if size not in self._replays:
            self._pad(0, size)
            self._replays[size] = self.record(lambda: self._run(size))
        replay, logits = self._replays[size]
        for target, source in zip(
            self._rows, (step.token_ids, step.positions, step.slot_mapping, step.context_lengths)
        ):
            target[:rows].copy_(source)
        self._tables[:rows, :width].copy_(step.block_tables)
        self._pad(rows, size)
        replay()
        if step.routing is not None:
            step.routing.extend((scores[:rows], experts[:rows]) for scores, experts in self._routing[size])
        return logits[:rows]

    def _pad(self, rows: int, size: int) -> None:
        self._rows[:, rows:size] = 0
        self._rows[2, rows:size] = -1

    def _run(self, size: int) -> Tensor:
        token_ids, positions, slot_mapping, context_lengths = self._rows[:, :size]
        self._routing[size] = []
        step = Step(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            num_decodes=size,
            block_tables=self._tables[:size],
            context_lengths=context_lengths,
            query_starts=self._last_rows[:1],
            last_rows=self._last_rows[:size],
            routing=self._routing[size],
        )
        return self.model.logits(self.model(step, self.cache))


class CudaRecorder:
    """Records work as CUDA graphs that share one memory pool."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # Kernels are compiled and libraries set up by a run that is not recorded.
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
