"""Scheduler and block pool against a model that is nothing but its cache: what is in a wrong page gives wrong tokens."""

import statistics
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.questions.scheduler import decode_step
from qwen3 import Qwen3Error, SamplingParams
from qwen3.kv_cache import BlockPool, slots
from qwen3.scheduler import Scheduler
from qwen3.sequence import Sequence

STOP = 0


def next_token(history):
    """The token that follows `history`; about one in nine is the stop token."""
    return hash(tuple(history)) % 9


class Text:
    def push(self, token):
        return str(token)

    def finish(self):
        return ""


def sequence(tokens, max_new_tokens=8):
    return Sequence(list(tokens), SamplingParams(max_new_tokens=max_new_tokens), frozenset({STOP}), 10**6, Text())


def alone(tokens, max_new_tokens):
    history = list(tokens)
    for _ in range(max_new_tokens):
        history.append(next_token(history))
        if history[-1] == STOP:
            break
    return history


class Pages:
    """A cache of one number per slot, the token itself, and a step that reads a context through its blocks."""

    def __init__(self, pool):
        self.pool, self.memory = pool, {}

    def run(self, scheduler, work):
        size = self.pool.block_size
        # All writes of a step come before its reads, as in a layer.
        written = [s for q, n in work for s in slots(q.blocks, size, q.computed, q.computed + n)]
        assert len(set(written)) == len(written), "two tokens of a step go to one slot"
        for q, n in work:
            for at in range(q.computed, q.computed + n):
                block = q.blocks[at // size]
                position = (block, at % size)
                if self.pool.holders[block] > 1:
                    # Only a block that was filled in this very step may have other readers already.
                    assert position not in self.memory or at >= q.computed
                self.memory[position] = q.token_ids[at]
        scheduler.computed(work)
        drawing = [q for q, _ in work if q.computed == len(q.token_ids)]
        for q in drawing:
            history = [self.memory[q.blocks[at // size], at % size] for at in range(q.computed)]
            assert history == q.token_ids, "a page holds what does not belong to this sequence"
            q.append(next_token(history), None)
        scheduler.drawn(drawing)
        return drawing


class Serving(RuleBasedStateMachine):
    """Random arrivals with shared beginnings, cancellations, tiny pools, small budgets, steps that break off."""

    @initialize(
        num_blocks=st.integers(3, 14),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        reuse=st.booleans(),
        kept=st.booleans(),
    )
    def start(self, num_blocks, block_size, max_num_seqs, budget, reuse, kept):
        self.pool = BlockPool(num_blocks, block_size, "model", reuse and kept)
        self.scheduler = Scheduler(self.pool, max_num_seqs, budget, kept)
        self.pages = Pages(self.pool)
        self.live, self.expected = [], {}

    @rule(
        start=st.integers(0, 2),
        length=st.integers(1, 20),
        tail=st.lists(st.integers(1, 8), max_size=3),
        max_new_tokens=st.integers(1, 12),
    )
    def arrive(self, start, length, tail, max_new_tokens):
        tokens = [(start + i) % 7 + 1 for i in range(length)] + tail
        request = sequence(tokens, max_new_tokens)
        fits = self.pool.blocks_for(len(tokens) + max_new_tokens) <= self.pool.num_blocks
        if fits:
            self.scheduler.add(request)
            self.live.append(request)
            self.expected[request] = alone(tokens, max_new_tokens)
        else:
            with pytest.raises(Qwen3Error, match="the KV cache has room for"):
                self.scheduler.add(request)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0))
    def cancel(self, which):
        request = self.live.pop(which % len(self.live))
        request.finish_reason = "cancelled"
        self.scheduler.remove(request)
        assert not request.blocks

    @rule()
    def step(self):
        scheduler = self.scheduler
        oldest = (scheduler.running or list(scheduler.waiting))[:1]
        running = list(scheduler.running)
        work = scheduler.schedule()
        assert sum(count for _, count in work) <= scheduler.max_num_batched_tokens
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert all(count > 0 for _, count in work)
        decodes = [count == 1 and q.computed > 0 for q, count in work]
        assert decodes == sorted(decodes, reverse=True), "decodes come first"
        # First come, first served: whoever is oldest gets on; those that were preempted are the newest.
        assert all(q in [w for w, _ in work] for q in oldest)
        assert scheduler.running[: len(running)] == running[: len(scheduler.running)]
        self.pages.run(scheduler, work)
        self.collect()

    @rule()
    def break_off(self):
        if self.scheduler.schedule():
            self.scheduler.recover()
            self.pages.memory.clear()

    def collect(self):
        for request in [r for r in self.live if r.finish_reason]:
            self.live.remove(request)
            assert request.token_ids == self.expected[request]
            assert request.text == "".join(str(t) for t in request.token_ids[request.prompt_length :] if t != STOP)

    @invariant()
    def books_are_right(self):
        if not hasattr(self, "pool"):
            return
        pool, scheduler = self.pool, self.scheduler
        held = Counter(block for q in self.live for block in q.blocks)
        assert [held[b] for b in range(pool.num_blocks)] == pool.holders
        assert set(pool._free) == {b for b in range(pool.num_blocks) if not held[b]}
        assert len(scheduler.running) + len(scheduler.waiting) == len(self.live)
        assert all(not q.blocks for q in scheduler.waiting)
        arrived = [q.started for q in (*scheduler.running, *scheduler.waiting)]
        assert arrived == sorted(arrived), "first come, first served"
        for block, digest in pool._digests.items():
            assert pool._published[digest] == block
        assert len(pool._published) == len(pool._digests)
        for q in scheduler.running:
            for i, block in enumerate(q.blocks):
                assert held[block] == 1 or (i + 1) * pool.block_size <= q.computed, "a shared page is still written"

    def teardown(self):
        if hasattr(self, "pool"):
            for _ in range(5000):
                if not self.live:
                    break
                self.step()
            assert not self.live, "somebody waits forever"
            self.books_are_right()
            assert len(self.pool) == self.pool.num_blocks


TestServing = Serving.TestCase
TestServing.settings = settings(
    max_examples=400, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)


def run(scheduler, pages):
    while work := scheduler.schedule():
        pages.run(scheduler, work)


def test_prefixes_are_reused_generated_blocks_too_and_the_last_token_is_always_computed():
    pool = BlockPool(64, 4)
    scheduler, pages = Scheduler(pool, 8, 100), Pages(pool)
    first = sequence(range(1, 13), 9)
    scheduler.add(first)
    run(scheduler, pages)
    same = sequence(range(1, 13), 9)
    scheduler.add(same)
    scheduler.schedule()
    assert same.cached_prompt_tokens == 8  # all three blocks are there, but the last token is needed for its logits
    scheduler.recover()
    assert len(first.token_ids) > 16, "the answer is long enough to fill a block"
    scheduler.remove(same)
    first = sequence(range(1, 13), 9)
    scheduler.add(first)
    run(scheduler, pages)
    turn = sequence([*first.token_ids, 3, 3], 2)
    scheduler.add(turn)
    scheduler.schedule()
    assert turn.cached_prompt_tokens == (len(first.token_ids) - 1) // 4 * 4


def test_requests_that_arrive_together_share_what_the_first_of_them_computes():
    pool = BlockPool(64, 4)
    scheduler = Scheduler(pool, 8, 100)
    requests = [sequence([*range(1, 17), i + 1]) for i in range(4)]
    for request in requests:
        scheduler.add(request)
    work = scheduler.schedule()
    assert [count for _, count in sorted(work, key=lambda item: -item[1])] == [17, 1, 1, 1]
    assert all(request.blocks[:4] == requests[0].blocks[:4] for request in requests)
    Pages(pool).run(scheduler, work)


def test_decodes_come_first_even_after_a_prompt_of_one_token():
    pool = BlockPool(64, 4)
    scheduler = Scheduler(pool, 8, 100)
    requests = [sequence(tokens) for tokens in ([*range(1, 17), 1], [9], [*range(1, 17), 2])]
    for request in requests:
        scheduler.add(request)
    assert [requests.index(q) for q, _ in scheduler.schedule()] == [2, 0, 1]


def test_the_least_recently_used_end_of_a_text_is_evicted_first():
    pool = BlockPool(8, 2)
    scheduler, pages = Scheduler(pool, 8, 100), Pages(pool)
    old, new = sequence([1, 2, 3, 4, 5, 6, 7], 1), sequence([8, 7, 6, 5, 4], 1)
    for request in (old, new):
        scheduler.add(request)
        run(scheduler, pages)
    taker = sequence([2], 1)
    pool.grow(taker, 8)  # four blocks: the three that hold nothing, then the end of the old text
    assert len(pool.match(old)) == 2 and len(pool.match(new)) == 2
    pool.grow(taker, 12)
    assert len(pool.match(old)) == 0 and len(pool.match(new)) == 2


def test_another_model_or_other_tokens_before_share_nothing():
    one, other = BlockPool(8, 2, "one"), BlockPool(8, 2, "other")
    assert one._digest(sequence([1, 2, 3]), 0) != other._digest(sequence([1, 2, 3]), 0)
    assert one._digest(sequence([1, 2, 5, 6]), 1) != one._digest(sequence([3, 4, 5, 6]), 1)


def median_seconds(step):
    return statistics.median(step() for _ in range(30))


def test_the_cost_of_a_step_is_linear():
    """Four times as many sequences cost about four times as much; a busy machine gets three tries."""
    ratios = []
    for _ in range(3):
        few, many = (median_seconds(decode_step(count, 30)) for count in (64, 256))
        ratios.append(many / few)
    print(f"{many * 1e3:.2f} ms a step at 256 sequences, {min(ratios):.1f} times that at 64")
    assert min(ratios) < 8
