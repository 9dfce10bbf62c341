"""Scheduler and block pool against a model that is only its cache: a wrong block gives wrong tokens."""

import sys
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwen3 import Qwen3Error
from qwen3.engine.blocks import BlockPool, slots
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduler
from qwen3.engine.sequence import Sequence

STOP = 0


def next_token(history):
    """The token that follows `history`; about one in nine is the stop token."""
    return hash(tuple(history)) % 9


def sequence(tokens, max_new_tokens=8):
    return Sequence(tokens, Sampling(), frozenset({STOP}), len(tokens) + max_new_tokens)


def alone(tokens, max_new_tokens):
    history = list(tokens)
    for _ in range(max_new_tokens):
        history.append(next_token(history))
        if history[-1] == STOP:
            break
    return history


class Blocks:
    """A cache of one number per slot, the token itself, and a step that reads a context through its blocks.

    A block that is allocated loses what it held.
    """

    def __init__(self, pool):
        self.pool, self.memory = pool, {}
        allocate = pool.allocate

        def emptying(sequence, num_tokens):
            held = len(sequence.blocks)
            allocated = allocate(sequence, num_tokens)
            for block in sequence.blocks[held:]:
                for offset in range(pool.block_size):
                    self.memory.pop((block, offset), None)
            return allocated

        pool.allocate = emptying

    def run(self, scheduler, scheduled, broken=()):
        """broken: places in scheduled.sampling from which nothing can be sampled."""
        size = self.pool.block_size
        # All writes of a step come before its reads, as in a layer.
        written = [slot for q, start, n, _ in scheduled.work for slot in slots(q.blocks, size, start, start + n)]
        assert len(set(written)) == len(written), "two tokens of a step go to one slot"
        for q, start, n, _ in scheduled.work:
            for at in range(start, start + n):
                slot = q.blocks[at // size], at % size
                shared = self.pool.ref_counts[slot[0]] > 1
                assert not (shared and slot in self.memory), "a shared block is written twice"
                self.memory[slot] = q.token_ids[at]
        assert scheduled.sampling == [item for item in scheduled.work if item.stop == len(item.sequence.token_ids)]
        sampled = []
        for q, _, _, _ in scheduled.sampling:
            history = [self.memory[q.blocks[at // size], at % size] for at in range(len(q.token_ids))]
            assert history == q.token_ids, "a block holds what does not belong to this sequence"
            sampled.append(next_token(history))
        errors = {i: "broken" for i in broken if i < len(sampled)}
        return scheduler.commit(scheduled, sampled, [None] * len(sampled), errors)


class Serving(RuleBasedStateMachine):
    """Random arrivals with shared beginnings, cancellations, tiny pools, small budgets, steps that break off."""

    seen: ClassVar = Counter()  # what happened in all runs

    @initialize(
        num_blocks=st.integers(6, 16),
        block_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 5),
        budget=st.integers(1, 12),
        kind=st.sampled_from(["prefixes shared"] * 3 + ["prefixes not shared", "no cache"]),
    )
    def start(self, num_blocks, block_size, max_num_seqs, budget, kind):
        self.pool = BlockPool(num_blocks, block_size, "model", kind == "prefixes shared")
        self.scheduler = Scheduler(self.pool, max_num_seqs, budget, kind != "no cache")
        self.blocks = Blocks(self.pool)
        self.live, self.expected, self.predicted = [], {}, None

    @rule(
        start=st.integers(0, 1),
        lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
        tail=st.lists(st.integers(1, 8), max_size=3),
        max_new_tokens=st.integers(1, 12),
    )
    def arrive(self, start, lengths, tail, max_new_tokens):
        for length in lengths:
            self.add([(start + i) % 7 + 1 for i in range(length)] + tail, max_new_tokens)

    def add(self, tokens, max_new_tokens):
        request = sequence(tokens, max_new_tokens)
        fits = self.pool.blocks_for(len(tokens) + max_new_tokens) <= self.pool.num_blocks
        self.predicted = None
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
        self.predicted = None
        self.scheduler.finish(request, "cancelled")
        assert not request.blocks and request.finish_reason == "cancelled"

    @rule(predict=st.booleans(), broken=st.sampled_from([(), (), (0,), (1, 2)]))
    def step(self, predict=True, broken=()):
        scheduler = self.scheduler
        oldest = (scheduler.running or list(scheduler.waiting))[:1]
        running = list(scheduler.running)
        waiting = set(scheduler.waiting)
        scheduled = scheduler.schedule()
        self.seen["preempted"] += len(set(scheduler.waiting) - waiting)
        self.seen["shared"] += sum(count > 1 for count in self.pool.ref_counts)
        self.seen["found again"] += sum(q.num_computed > 0 for q in waiting & set(scheduler.running))
        assert scheduled.num_tokens <= scheduler.max_num_batched_tokens
        assert len(scheduler.running) <= scheduler.max_num_seqs
        assert all(item.num_tokens > 0 for item in scheduled.work)
        decodes = [item.is_decode for item in scheduled.work]
        assert decodes == sorted(decodes, reverse=True), "decodes come first"
        assert scheduled.num_decodes == sum(decodes) and scheduled.is_decode == all(decodes)
        # First come, first served: the oldest gets on; those that were preempted are the newest.
        assert all(q in [item.sequence for item in scheduled.work] for q in oldest)
        assert scheduler.running[: len(running)] == running[: len(scheduler.running)]
        if self.predicted is not None:
            # Nothing happened since the prediction, so it was right, but for the order of decodes after prefills.
            assert set(scheduled.work) == set(self.predicted.work)
        following = scheduler.predict(scheduled) if predict and scheduled else None
        if following is not None:
            assert following.is_decode and all(item.sequence.max_length > item.stop for item in following.work)
        live = len(self.live)
        held = [(item.sequence, list(item.sequence.blocks)) for item in scheduled.sampling]
        self.blocks.run(scheduler, scheduled, broken)
        for q, blocks in held:
            if q.finish_reason == "error":
                assert not q.blocks and not set(blocks) & set(self.pool._hashes), "what is broken is shared"
        self.collect()
        all_go_on = following is not None and len(following.work) == live == len(self.live)
        self.predicted = following if all_go_on else None

    @rule()
    def break_off(self):
        if self.scheduler.schedule():
            self.scheduler.recover()
            self.blocks.memory.clear()
            self.predicted = None

    def collect(self):
        for request in [r for r in self.live if r.finish_reason]:
            self.live.remove(request)
            expected = self.expected[request]
            if request.finish_reason == "error":
                assert request.error == "broken" and request.token_ids == expected[: len(request.token_ids)] != expected
                continue
            assert request.token_ids == expected and request.error is None
            ended = request.token_ids[-1] == STOP
            assert request.finish_reason == ("stop" if ended else "length") and len(request.token_times) > 0

    @invariant()
    def books_are_right(self):
        if not hasattr(self, "pool"):
            return
        pool, scheduler = self.pool, self.scheduler
        held = Counter(block for q in self.live for block in q.blocks)
        assert [held[b] for b in range(pool.num_blocks)] == pool.ref_counts
        assert set(pool._free) == {b for b in range(pool.num_blocks) if not held[b]}
        assert len(scheduler.running) + len(scheduler.waiting) == len(self.live)
        assert all(not q.blocks for q in scheduler.waiting)
        arrived = [q.submitted for q in (*scheduler.running, *scheduler.waiting)]
        assert arrived == sorted(arrived), "first come, first served"
        for block, block_hash in pool._hashes.items():
            assert pool._cached[block_hash] == block
        assert len(pool._cached) == len(pool._hashes)
        for q in scheduler.running:
            for i, block in enumerate(q.blocks):
                assert held[block] == 1 or (i + 1) * pool.block_size <= q.num_computed, "a shared block is written"

    def teardown(self):
        if hasattr(self, "pool"):
            for _ in range(5000):
                if not self.live:
                    break
                self.step()
            assert not self.live, "somebody waits forever"
            self.books_are_right()
            assert self.pool.num_free == self.pool.num_blocks


def serving(max_examples):
    class Case(Serving.TestCase):
        settings = settings(
            max_examples=max_examples,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

        def runTest(self):
            Serving.seen.clear()
            super().runTest()
            print(dict(Serving.seen))
            assert min(Serving.seen[what] for what in ("preempted", "shared", "found again")) > 10

    return Case


TestServing = serving(100)
TestServingAtLength = pytest.mark.slow(serving(400))


def run(scheduler, blocks):
    while scheduled := scheduler.schedule():
        blocks.run(scheduler, scheduled)


def test_prefixes_are_reused_generated_blocks_too_and_the_last_token_is_always_computed():
    pool = BlockPool(64, 4)
    scheduler, blocks = Scheduler(pool, 8, 100), Blocks(pool)
    first = sequence(range(1, 13), 9)
    scheduler.add(first)
    run(scheduler, blocks)
    same = sequence(range(1, 13), 9)
    scheduler.add(same)
    scheduler.schedule()
    assert same.cached_prompt_tokens == 8  # all three blocks are there, but the last token is needed for its logits
    scheduler.recover()
    assert len(first.token_ids) > 16, "the answer is long enough to fill a block"
    scheduler.finish(same, "cancelled")
    first = sequence(range(1, 13), 9)
    scheduler.add(first)
    run(scheduler, blocks)
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
    scheduled = scheduler.schedule()
    assert sorted((item.num_tokens for item in scheduled.work), reverse=True) == [17, 1, 1, 1]
    assert all(request.blocks[:4] == requests[0].blocks[:4] for request in requests)
    assert [pool.ref_counts[block] for block in requests[0].blocks] == [4, 4, 4, 4, 1]
    Blocks(pool).run(scheduler, scheduled)


def test_decodes_come_first_even_after_a_prompt_of_one_token():
    pool = BlockPool(64, 4)
    scheduler = Scheduler(pool, 8, 100)
    requests = [sequence(tokens) for tokens in ([*range(1, 17), 1], [9], [*range(1, 17), 2])]
    for request in requests:
        scheduler.add(request)
    assert [requests.index(item.sequence) for item in scheduler.schedule().work] == [2, 0, 1]


def test_the_least_recently_used_end_of_a_text_is_evicted_first():
    pool = BlockPool(8, 2)
    scheduler, blocks = Scheduler(pool, 8, 100), Blocks(pool)
    old, new = sequence([1, 2, 3, 4, 5, 6, 7], 1), sequence([8, 7, 6, 5, 4], 1)
    for request in (old, new):
        scheduler.add(request)
        run(scheduler, blocks)
    taker = sequence([2], 1)
    pool.allocate(taker, 8)  # four blocks: the three that hold nothing, then the end of the old text
    assert len(pool.match_prefix(old)) == 2 and len(pool.match_prefix(new)) == 2
    pool.allocate(taker, 12)
    assert len(pool.match_prefix(old)) == 0 and len(pool.match_prefix(new)) == 2


def test_a_block_that_is_computed_in_part_is_not_shared():
    """A prompt is cancelled after a chunk that ends in the middle of its first block."""
    pool = BlockPool(8, 4)
    scheduler, blocks = Scheduler(pool, 8, 3), Blocks(pool)
    broken_off, same = sequence(range(1, 10)), sequence(range(1, 10))
    scheduler.add(broken_off)
    blocks.run(scheduler, scheduler.schedule())
    scheduler.finish(broken_off, "cancelled")
    scheduler.add(same)
    scheduler.schedule()
    assert same.cached_prompt_tokens == 0


def test_no_block_of_a_broken_request_stays_in_the_cache():
    """Two requests end in one step, one of them broken; of three blocks they share the first."""
    pool = BlockPool(16, 2)
    scheduler, blocks = Scheduler(pool, 8, 100), Blocks(pool)
    requests = [sequence([1, 2, 3, 4, 5, 6, 7], 1), sequence([1, 2, 8, 8, 8], 1)]
    for request in requests:
        scheduler.add(request)
    scheduled = scheduler.schedule()
    assert len(pool._hashes) == 4
    place = [item.sequence for item in scheduled.sampling].index(requests[0])
    held = set(requests[0].blocks)
    blocks.run(scheduler, scheduled, broken=[place])
    assert [request.finish_reason for request in requests] == ["error", "length"]
    assert len(pool._hashes) == len(pool._cached) == 1 and not held & set(pool._hashes)


def test_after_an_error_everything_runs_again_oldest_first():
    pool = BlockPool(16, 2)
    scheduler = Scheduler(pool, 8, 100)
    requests = [sequence([i + 1, 2, 3]) for i in range(3)]
    for request in requests:
        scheduler.add(request)
    scheduler.schedule()
    scheduler.recover()
    assert list(scheduler.waiting) == requests and pool.num_free == pool.num_blocks and not pool._hashes
    assert [request.preemptions for request in requests] == [1, 1, 1] and not requests[0].blocks
    assert [item.sequence for item in scheduler.schedule().work] == requests


def test_without_a_kv_cache_every_step_computes_the_whole_text():
    scheduler = Scheduler(BlockPool(20, 2), 2, 100, kv_cache=False)
    scheduler.add(sequence([1, 2, 3]))
    for length in (3, 4, 5):
        scheduled = scheduler.schedule()
        assert [(item.start, item.stop) for item in scheduled.work] == [(0, length)] and not scheduled.is_decode
        assert scheduler.predict(scheduled) is None
        scheduler.commit(scheduled, [7], [None])


def test_blocks_that_another_holds_are_shared_where_hardly_any_is_free():
    """Of two free blocks one is for the new request, one for the next token of the other; shared ones take none."""
    scheduler = Scheduler(BlockPool(5, 2), 2, 100)
    scheduler.add(sequence([1, 2, 3, 4, 5], 4))
    scheduler.commit(scheduler.schedule(), [7], [None])
    scheduler.add(sequence([1, 2, 3, 4, 9], 4))
    assert [(item.start, item.stop) for item in scheduler.schedule().work] == [(5, 6), (4, 5)]


def test_blocks_of_a_cache_that_was_emptied_are_written_anew():
    scheduler = Scheduler(BlockPool(2, 2), 1, 100)
    blocks = Blocks(scheduler.pool)
    for _ in range(2):
        scheduler.add(q := sequence([1, 2, 3], 1))
        run(scheduler, blocks)
        assert q.cached_prompt_tokens == 0
        scheduler.reset_prefix_cache()


def test_another_model_or_other_tokens_before_share_nothing():
    one, other = BlockPool(8, 2, "one"), BlockPool(8, 2, "other")
    assert one._hash(sequence([1, 2, 3]), 0) != other._hash(sequence([1, 2, 3]), 0)
    assert one._hash(sequence([1, 2, 5, 6]), 1) != one._hash(sequence([3, 4, 5, 6]), 1)


def test_a_prediction_reserves_blocks_and_is_refused_where_the_next_step_may_be_another():
    pool = BlockPool(8, 2)
    scheduler = Scheduler(pool, 8, 100)
    first, second = sequence([1, 2, 3], 3), sequence([4, 5, 6], 3)
    scheduler.add(first)
    scheduled = scheduler.schedule()
    following = scheduler.predict(scheduled)
    assert [(item.start, item.num_tokens, item.samples) for item in following.work] == [(3, 1, True)]
    scheduler.add(second)
    assert scheduler.predict(scheduled) is None, "a sequence waits"
    scheduler.commit(scheduled, [7], [None])
    assert scheduler.schedule() != following
    uncached = Scheduler(BlockPool(8, 2), 8, 100, kv_cache=False)
    uncached.add(sequence([1, 2, 3], 3))
    assert uncached.predict(uncached.schedule()) is None
    last = Scheduler(BlockPool(8, 2), 8, 100)
    last.add(sequence([1, 2, 3], 1))
    assert last.predict(last.schedule()) is None, "the token being sampled is the last"


def calls_of_a_decode_step(count):
    """Python and C calls of scheduling and committing one step in which `count` sequences decode."""
    scheduler = Scheduler(BlockPool(4 * count, 16), count, 8192)
    for i in range(count):
        scheduler.add(Sequence([i % 9 + 1] * 20, Sampling(), frozenset(), 60))
    calls = 0

    def step():
        scheduled = scheduler.schedule()
        assert len(scheduled.work) == count
        scheduler.commit(scheduled, [1] * count, [None] * count)

    def count_call(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    step()
    sys.setprofile(count_call)
    try:
        step()
    finally:
        sys.setprofile(None)
    return calls


def test_the_cost_of_a_step_is_linear_in_its_sequences():
    few, many = (calls_of_a_decode_step(count) for count in (64, 256))
    assert few > 64 and many < 4.5 * few
