"""Which sequences run in the next step, and how many tokens of each: first come, first served."""

import time
from collections import deque

from .errors import Qwen3Error
from .kv_cache import BlockPool
from .sequence import Sequence

Work = list[tuple[Sequence, int]]


class Scheduler:
    """Continuous batching (Orca, Yu et al., 2022): sequences join and leave at every step.

    One step holds one token of every sequence that decodes and chunks of prompts, together at most
    max_num_batched_tokens. The oldest sequence is always served first and takes blocks from the newest when there are
    none left, so that every request ends. kept=False forgets every computed token after each drawn one.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int, kept: bool = True):
        self.pool, self.kept = pool, kept
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def check(self, sequence: Sequence) -> None:
        """Raises Qwen3Error for a sequence that could not be finished even if it were alone."""
        if self.pool.blocks_for(sequence.max_length) > self.pool.num_blocks:
            room = self.pool.num_blocks * self.pool.block_size
            raise Qwen3Error(
                f"out of memory: prompt and answer may have {sequence.max_length} tokens, the KV cache has room for "
                f"{room}: lower max_new_tokens, the prompt or max_model_len, or raise memory_utilization"
            )

    def add(self, sequence: Sequence) -> None:
        """Puts `sequence` at the end of the queue; raises Qwen3Error as `check` does."""
        self.check(sequence)
        self.waiting.append(sequence)

    def schedule(self) -> Work:
        """The work of the next step, decodes first; its tokens count as cached for whoever is admitted after them."""
        work, left = [], self.max_num_batched_tokens
        pool, running = self.pool, self.running
        while left and len(work) < len(running):
            sequence = running[len(work)]
            count = min(left, len(sequence.token_ids) - sequence.computed)
            while not pool.grow(sequence, sequence.computed + count):
                self._preempt(running.pop())
                if not sequence.blocks:
                    break
            else:
                pool.publish(sequence, sequence.computed + count)
                work.append((sequence, count))
                left -= count
        while left and self.waiting and len(running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            count = min(left, len(sequence.token_ids) - sequence.computed)
            pool.grow(sequence, sequence.computed + count)
            pool.publish(sequence, sequence.computed + count)
            work.append((sequence, count))
            left -= count
        return sorted(work, key=lambda item: item[1] > 1 or item[0].computed == 0)

    def _admit(self, sequence: Sequence) -> bool:
        """Moves the first of the queue to those that run, if all its tokens fit beside what these will soon need."""
        shared = self.pool.match(sequence)
        needed = self.pool.blocks_for(len(sequence.token_ids)) - len(shared)
        if needed + len(self.running) > self.pool.room_after(shared):
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        self.pool.share(sequence, shared)
        sequence.computed = len(shared) * self.pool.block_size
        if sequence.admitted is None:
            sequence.admitted = time.perf_counter()
            sequence.cached_prompt_tokens = sequence.computed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be recomputed; its text stays, its blocks go."""
        self.pool.release(sequence)
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)

    def computed(self, work: Work) -> None:
        """Takes note that a step computes `work`."""
        for sequence, count in work:
            prompt_left = max(0, sequence.prompt_length - sequence.computed)
            sequence.computed_prompt_tokens += min(count, prompt_left)
            sequence.computed += count

    def drawn(self, sequences: list[Sequence]) -> None:
        """Takes note that each of `sequences` has got one more token; those that have ended give back their blocks."""
        if not self.kept:
            for sequence in sequences:
                sequence.computed = 0
        ended = [sequence for sequence in sequences if sequence.finish_reason]
        if ended:
            self.running = [sequence for sequence in self.running if not sequence.finish_reason]
            for sequence in ended:
                self.pool.release(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, wherever it is, and takes its blocks."""
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)
        self.pool.release(sequence)

    def recover(self) -> None:
        """After a step that broke off: what it has written is unknown, so everything is computed anew."""
        while self.running:
            sequence = self.running.pop()
            if sequence.finish_reason:
                self.pool.release(sequence)
            else:
                self._preempt(sequence)
        self.pool.forget_all()
