"""Which sequences run in the next step, and how many tokens of each: first come, first served."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ..errors import Qwen3Error
from .blocks import BlockPool
from .request import TokenLogprob
from .sequence import Sequence


class Work(NamedTuple):
    """The tokens start to start + num_tokens - 1 of one sequence, to be computed in one step."""

    sequence: Sequence
    start: int
    num_tokens: int
    samples: bool  # whether they reach the end of the sequence, so that a token is sampled

    @property
    def stop(self) -> int:
        return self.start + self.num_tokens

    @property
    def is_decode(self) -> bool:
        """Whether this is one query token with a cached context: the only definition of a decode."""
        return self.num_tokens == 1 and self.start > 0


@dataclass(frozen=True)
class Scheduled:
    """The work of one step, decodes first."""

    work: tuple[Work, ...]

    def __bool__(self) -> bool:
        return bool(self.work)

    @cached_property
    def num_decodes(self) -> int:
        return sum(item.is_decode for item in self.work)

    @property
    def is_decode(self) -> bool:
        """Whether the step only decodes."""
        return self.num_decodes == len(self.work)

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.work)

    @property
    def context_tokens(self) -> int:
        """Tokens whose K and V the step reads."""
        return sum(item.stop for item in self.work)

    @cached_property
    def sampling(self) -> list[Work]:
        """The work that samples a token."""
        return [item for item in self.work if item.samples]


class Scheduler:
    """Continuous batching (Orca, Yu et al., 2022): sequences join and leave at every step.

    One step holds one token of every sequence that decodes and chunks of prompts, together at most
    max_num_batched_tokens. The oldest sequence is served first and takes blocks from the newest when none are free, so
    that every request ends. kv_cache=False keeps nothing: every step computes whole sequences.
    The only writer of its sequences and of the block pool.
    """

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int, kv_cache: bool = True) -> None:
        self.pool, self.kv_cache = pool, kv_cache
        self.max_num_seqs, self.max_num_batched_tokens = max_num_seqs, max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.live: dict[Sequence, None] = {}  # all that were added and have not ended, oldest first

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def check(self, max_length: int) -> None:
        """Raises Qwen3Error for a sequence that the pool could not hold even if it were alone. Reads constants only."""
        if self.pool.blocks_for(max_length) > self.pool.num_blocks:
            room = self.pool.num_blocks * self.pool.block_size
            raise Qwen3Error(
                f"out of memory: prompt and answer may have {max_length} tokens, the KV cache has room for "
                f"{room}: lower max_new_tokens, the prompt or max_model_len, or raise memory_utilization"
            )

    def add(self, sequence: Sequence) -> None:
        """Puts `sequence` at the end of the queue; raises Qwen3Error as `check` does, and for one added before."""
        self.check(sequence.max_length)
        if sequence.added:
            raise Qwen3Error("a prepared request is answered once: prepare the prompt again")
        self.live[sequence] = None
        sequence.added = True
        self.waiting.append(sequence)

    def schedule(self) -> Scheduled:
        """Chooses the tokens of the next step, decodes before prefills.

        Blocks that they will fill enter the prefix cache at once, so that a sequence admitted later in this call can
        share them: all writes of a layer come before its reads.
        """
        work: list[Work] = []
        left, running = self.max_num_batched_tokens, self.running
        while left and len(work) < len(running):
            sequence = running[len(work)]
            start = sequence.num_computed
            count = min(left, len(sequence.token_ids) - start)
            while not self.pool.allocate(sequence, start + count):
                self._preempt(running.pop())
                if not sequence.blocks:
                    break
            else:
                work.append(self._take(sequence, count))
                left -= count
        while left and self.waiting and len(running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            count = min(left, len(sequence.token_ids) - sequence.num_computed)
            self.pool.allocate(sequence, sequence.num_computed + count)
            work.append(self._take(sequence, count))
            left -= count
        prefills = [item for item in work if not item.is_decode]
        return Scheduled((*(item for item in work if item.is_decode), *prefills) if prefills else tuple(work))

    def predict(self, scheduled: Scheduled) -> Scheduled | None:
        """The step in which every sequence of `scheduled` decodes the token being sampled, with blocks allocated.

        None if the next call of `schedule` could choose another step.
        """
        ends = any(item.stop + 1 >= item.sequence.max_length or not item.samples for item in scheduled.work)
        if self.waiting or not self.kv_cache or ends:
            return None
        if not all(self.pool.allocate(item.sequence, item.stop + 1) for item in scheduled.work):
            return None
        return Scheduled(tuple(Work(item.sequence, item.stop, 1, True) for item in scheduled.work))

    def commit(
        self,
        scheduled: Scheduled,
        token_ids: list[int],
        logprobs: list[TokenLogprob | None],
        errors: Mapping[int, str] | None = None,
    ) -> list[Sequence]:
        """Records that a step was computed and what it sampled; sequences that end give back their blocks.

        token_ids, logprobs: one for each item of `scheduled.sampling`. errors: why those at these places have no token
        and end. Returns the sequences that sampled.
        """
        sampled = [item.sequence for item in scheduled.sampling]
        for sequence, start, num_tokens, _ in scheduled.work:
            if start < sequence.prompt_length:
                sequence.computed_prompt_tokens += min(num_tokens, sequence.prompt_length - start)
            sequence.num_computed = start + num_tokens
        now = time.perf_counter()
        for i, (sequence, token, logprob) in enumerate(zip(sampled, token_ids, logprobs)):
            if errors and i in errors:
                sequence.error = errors[i]
                # The K and V in its blocks may not be finite either.
                self.pool.uncache(sequence)
                self.finish(sequence, "error")
                continue
            sequence.token_times.append(now)
            sequence.token_ids.append(token)
            if logprob is not None:
                sequence.logprobs.append(logprob)
            if not self.kv_cache:
                sequence.num_computed = 0
            if token in sequence.stop_ids:
                self.finish(sequence, "stop")
            elif len(sequence.token_ids) >= sequence.max_length:
                self.finish(sequence, "length")
        return sampled

    def finish(self, sequence: Sequence, reason: str) -> None:
        """Ends `sequence`, wherever it is, and frees its blocks; does nothing if it has ended already."""
        if sequence.finish_reason is not None:
            return
        sequence.finish_reason = reason
        self.live.pop(sequence, None)
        for queue in (self.waiting, self.running):
            if sequence in queue:
                queue.remove(sequence)
        self.pool.free(sequence)

    def reserve(self, sequence: Sequence) -> bool:
        """Allocates the blocks of all tokens of a sequence that is not queued; `finish` frees them."""
        return self.pool.allocate(sequence, len(sequence.token_ids))

    def recover(self) -> None:
        """Requeues everything after an error or interrupt at any line, here, in the pool or in a step.

        The state may be half updated and the contents of blocks are unknown, so both are rebuilt and nothing is reused.
        """
        self.pool.renew()
        self.live = {sequence: None for sequence in self.live if sequence.finish_reason is None}
        for sequence in self.live:
            sequence.preemptions += bool(sequence.blocks)
            sequence.blocks, sequence.num_cached_blocks = [], 0
        self.waiting, self.running = deque(self.live), []

    def reset_prefix_cache(self) -> None:
        """Shares nothing that was computed so far with later sequences."""
        self.pool.reset_prefix_cache()

    def _take(self, sequence: Sequence, count: int) -> Work:
        start = sequence.num_computed
        work = Work(sequence, start, count, start + count == len(sequence.token_ids))
        self.pool.cache(sequence, work.stop)
        return work

    def _admit(self, sequence: Sequence) -> bool:
        """Admits the head of the queue if its tokens fit and one free block remains for each running sequence."""
        shared = self.pool.match_prefix(sequence)
        needed = self.pool.blocks_for(len(sequence.token_ids)) - len(shared)
        if needed + len(self.running) > self.pool.num_free_without(shared):
            return False
        self.waiting.popleft()
        self.running.append(sequence)
        self.pool.share(sequence, shared)
        sequence.num_computed = len(shared) * self.pool.block_size
        if sequence.admitted is None:
            sequence.admitted = time.perf_counter()
            sequence.cached_prompt_tokens = sequence.num_computed
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Returns `sequence` to the head of the queue: its blocks are freed, its tokens are computed again later."""
        self.pool.free(sequence)
        sequence.preemptions += 1
        self.waiting.appendleft(sequence)
