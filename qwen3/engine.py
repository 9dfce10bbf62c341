"""The engine: step by step, everything that waits and runs, through the model, on one device."""

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import Qwen3Error
from .graphs import DecodeGraphs
from .kv_cache import KVCache
from .model import Qwen3
from .sampling import Draws, Sampler
from .scheduler import Scheduler, Work
from .sequence import Sequence
from .stats import Stats
from .step import Step, to_device


@dataclass
class Batch:
    """The work of a step as the device wants it."""

    work: Work
    step: Step
    drawing: list[Sequence]  # those that get a token from this step; the others' prompts are longer than their chunk
    rows: Tensor | None  # their places among the step's sequences, None when all draw
    draws: Draws

    @classmethod
    def of(cls, work: Work, block_size: int, vocab_size: int, device: torch.device) -> "Batch":
        drawing = [(i, s, s.computed + n) for i, (s, n) in enumerate(work) if s.computed + n >= len(s.token_ids)]
        return cls(
            work=work,
            step=Step.of(work, block_size, device),
            drawing=[sequence for _, sequence, _ in drawing],
            rows=None if len(drawing) == len(work) else to_device([i for i, _, _ in drawing], device),
            draws=Draws.of([(sequence.params, stop) for _, sequence, stop in drawing], vocab_size, device),
        )


class Engine:
    """Runs sequences together, whoever drives it: each consumer steps until its own sequence has something new.

    Safe to call from several threads; one step runs at a time.
    """

    def __init__(self, model: Qwen3, cache: KVCache, scheduler: Scheduler, graphs: DecodeGraphs | None, stats: Stats):
        self.model, self.cache, self.scheduler, self.graphs, self.stats = model, cache, scheduler, graphs, stats
        self.device = model.embed_tokens.device
        self.sampler = Sampler(model.ops)
        self._lock = threading.Lock()
        self._prepared: Batch | None = None  # the next step, if it turns out to be what was expected
        self._drawn: Tensor | None = None

    def add(self, sequence: Sequence) -> None:
        """Queues `sequence`; raises Qwen3Error when it can never fit."""
        with self._lock:
            self.scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Ends `sequence` now and takes its blocks; nothing happens when it has ended already."""
        with self._lock:
            if not sequence.finish_reason:
                sequence.finish_reason = "cancelled"
                self.scheduler.remove(sequence)

    def advance(self, sequence: Sequence) -> None:
        """One step, unless another consumer's step has brought text for `sequence`, or its end, in the meantime."""
        with self._lock:
            if not sequence.pieces and not sequence.finish_reason:
                self._step()

    def step(self) -> None:
        """One step of everything that runs; nothing when nothing does."""
        with self._lock:
            self._step()

    def forget_prefixes(self) -> None:
        """What was computed so far is shared with no later sequence."""
        with self._lock:
            self.scheduler.pool.forget_all()

    @torch.inference_mode()
    def logits(self, sequence: Sequence) -> Tensor:
        """float32 [len(token_ids), V]: the scores after every token. Nothing else runs meanwhile."""
        length, pool = len(sequence.token_ids), self.scheduler.pool
        with self._lock:
            self.scheduler.check(sequence)
            if not pool.grow(sequence, length):
                raise Qwen3Error(
                    f"the KV cache has no room for {length} tokens now: wait until other requests have ended"
                )
            rows = []
            try:
                while sequence.computed < length:
                    count = min(self.scheduler.max_num_batched_tokens, length - sequence.computed)
                    step = Step.of([(sequence, count)], pool.block_size, self.device)
                    rows.append(self.model.logits(self.model(step, self.cache)))
                    sequence.computed += count
            finally:
                pool.release(sequence)
        return torch.cat(rows)

    @torch.inference_mode()
    def _step(self) -> None:
        work = self.scheduler.schedule()
        if not work:
            return
        try:
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                self._compute(work)
        except BaseException as error:
            self._prepared = None
            self.scheduler.recover()
            if isinstance(error, torch.OutOfMemoryError):
                tokens = sum(count for _, count in work)
                advice = "lower max_num_batched_tokens, max_num_seqs or memory_utilization"
                raise Qwen3Error(f"out of memory: a step of {tokens} tokens did not fit: {advice}") from None
            raise

    def _compute(self, work: Work) -> None:
        started = time.perf_counter()
        if self._prepared and self._prepared.work == work:
            batch = self._prepared
            batch.step.token_ids.copy_(self._drawn)
        else:
            batch = self._batch(work)
        self._prepared = None
        logits = self._launch(batch)
        self.scheduler.computed(work)
        if logits is None:
            self.stats.count(batch.step, work, 0, time.perf_counter() - started)
            return
        self._drawn = self.sampler(logits, batch.draws, batch.drawing)
        # While the device works: what the next step will most likely be.
        if batch.rows is None:
            self._prepare(work)
        token_ids = self._drawn.tolist()
        self.stats.count(batch.step, work, len(token_ids), time.perf_counter() - started)
        logprobs = self.sampler.logprobs(logits, batch.drawing, token_ids)
        for sequence, token, logprob in zip(batch.drawing, token_ids, logprobs):
            sequence.append(token, logprob)
            if len(sequence.token_times) == 1:
                self.stats.first_token_seconds = sequence.token_times[0] - sequence.started
        self.scheduler.drawn(batch.drawing)

    def _batch(self, work: Work) -> Batch:
        return Batch.of(work, self.cache.block_size, self.model.config.vocab_size, self.device)

    def _launch(self, batch: Batch) -> Tensor | None:
        """Float32 logits, a row for each sequence that draws; None when none does."""
        step = batch.step
        step.routing = self.stats.routing()
        if self.graphs and self.graphs.takes(step):
            logits = self.graphs(step)
            return logits if batch.rows is None else logits[batch.rows]
        # To count experts every layer needs every token.
        hidden = self.model(step, self.cache, last_only=step.routing is None)
        if not batch.drawing:
            return None
        if len(hidden) > len(step.last_rows):
            hidden = hidden[step.last_rows]
        return self.model.logits(hidden if batch.rows is None else hidden[batch.rows])

    def _prepare(self, work: Work) -> None:
        """Makes the step in which every sequence of `work` decodes its next token, unless it is sure to be another."""
        scheduler = self.scheduler
        if scheduler.waiting or not scheduler.kept or any(s.computed + 1 >= s.max_length for s, _ in work):
            return
        if all(scheduler.pool.grow(sequence, sequence.computed + 1) for sequence, _ in work):
            self._prepared = self._batch([(sequence, 1) for sequence, _ in work])
