"""Engine: seconds by a clock that the test sets, what its steps hand on, and steps that fail."""

import asyncio
import threading
from queue import SimpleQueue
from types import SimpleNamespace

import pytest
import torch

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.engine.blocks import BlockPool
from qwen3.engine.engine import Engine, StepFailed
from qwen3.engine.loop import Handle
from qwen3.engine.params import Sampling
from qwen3.engine.runner import StepOutput
from qwen3.engine.sampler import Sampler
from qwen3.engine.scheduler import Scheduler
from qwen3.engine.sequence import Sequence
from qwen3.measure.stats import Stats
from qwen3_kernels import philox, reference

TIMEOUT = 60  # seconds that end a hang
SHORT = SamplingParams(max_new_tokens=3, temperature=0, ignore_eos=True)


class Clock:
    """Stands in for the time module: seconds that only the test moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in ("engine", "scheduler", "sequence"):
            monkeypatch.setattr(f"qwen3.engine.{module}.time", SimpleNamespace(perf_counter=lambda: self.now))


class Runner:
    """A model that samples token 7 in steps of known seconds, or raises what stands there instead."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, list(seconds)
        self.model = SimpleNamespace(device=torch.device("cpu"))
        self.sampler = Sampler(reference)

    def prepare(self, scheduled, token_ids=None):
        return None

    def run(self, scheduled, inputs, keep_routing=False):
        taken = self.seconds.pop(0)
        if isinstance(taken, BaseException):
            raise taken
        self.clock.now += taken
        rows = len(scheduled.sampling)
        return StepOutput(torch.full((rows,), 7) if rows else None, torch.zeros(rows, 9), [])


def engine_of(clock, seconds, max_num_seqs=1, num_blocks=20, budget=100):
    pool = BlockPool(num_blocks, 2)
    return Engine(Scheduler(pool, max_num_seqs, budget), Runner(clock, seconds), Stats())


def submit(engine, tokens, new_tokens, stop_ids=(), **more):
    sequence = Sequence(tokens, Sampling(), frozenset(stop_ids), len(tokens) + new_tokens, **more)
    engine.scheduler.add(sequence)
    return sequence


def test_every_time_of_the_metrics(monkeypatch):
    """One request at a time: the second waits for the first; all times count from when a request was made."""
    clock = Clock(monkeypatch)
    engine = engine_of(clock, [5, 2, 4, 6, 1])
    clock.now = 10
    first = submit(engine, [1, 2, 3], 3)
    clock.now = 11
    second = submit(engine, [4, 5], 2)
    clock.now = 12
    engine.step()
    assert engine.stats.first_token_seconds == 17 - 10
    for _ in range(4):
        engine.step()
    assert engine.stats.first_token_seconds == 29 - 11
    assert (engine.stats.prefill.seconds, engine.stats.decode.seconds) == (5 + 6, 2 + 4 + 1)
    one = first.completion("", "length").metrics
    assert (one.queue_seconds, one.time_to_first_token, one.total_seconds) == (2, 7, 13)
    assert (one.inter_token_p50, one.inter_token_p99) == (3, pytest.approx(2 + 0.99 * 2))
    two = second.completion("", "length").metrics
    assert (two.queue_seconds, two.time_to_first_token, two.total_seconds) == (12, 18, 19)
    assert (two.inter_token_p50, two.inter_token_p99) == (1, 1)


def test_what_was_cached_is_what_the_first_admission_found(monkeypatch):
    """A request that is preempted finds its own blocks when it is admitted again: they were not there at first."""
    engine = engine_of(Clock(monkeypatch), [1] * 60, max_num_seqs=2, num_blocks=12)
    requests = [submit(engine, [1, 2, 3, 4, 5, 6], 10), submit(engine, [6, 5, 4, 3, 2, 1], 10)]
    while not engine.scheduler.idle:
        engine.step()
    first, second = (request.completion("", "length").metrics for request in requests)
    assert (first.preemptions, second.preemptions > 0) == (0, True)
    assert first.cached_prompt_tokens == second.cached_prompt_tokens == 0
    assert first.computed_prompt_tokens == 6
    again = submit(engine, [1, 2, 3, 4, 5, 6], 1)
    engine.runner.seconds = [1]
    engine.step()
    assert again.completion("", "length").metrics.cached_prompt_tokens == 4


def test_a_preempted_request_counts_its_prompt_again_and_not_its_answer(monkeypatch):
    engine = engine_of(Clock(monkeypatch), [1] * 60, max_num_seqs=2, num_blocks=12)
    engine.scheduler.pool.prefix_caching = False
    preempt, preempted = engine.scheduler._preempt, []
    monkeypatch.setattr(engine.scheduler, "_preempt", lambda sequence: preempted.append(sequence) or preempt(sequence))
    first, second = submit(engine, [1, 2, 3, 4, 5, 6], 10), submit(engine, [6, 5, 4, 3, 2, 1], 10)
    while not engine.scheduler.idle:
        engine.step()
    assert preempted and set(preempted) == {second}
    metrics = second.completion("", "length").metrics
    assert metrics.preemptions == len(preempted) and metrics.computed_prompt_tokens == 6 * (1 + len(preempted))
    assert first.completion("", "length").metrics.computed_prompt_tokens == 6


def test_seconds_of_a_step_count_from_the_preparation_of_its_inputs(monkeypatch):
    clock = Clock(monkeypatch)
    engine = engine_of(clock, [5])

    def prepare(scheduled, token_ids=None):
        clock.now += 3

    monkeypatch.setattr(engine.runner, "prepare", prepare)
    submit(engine, [1, 2, 3], 1)
    engine.step()
    assert engine.stats.prefill.seconds == 8


def test_inputs_that_were_prepared_for_another_step_are_not_used(monkeypatch):
    """A request ends between two steps, by a stop string or because its reader went away."""
    engine = engine_of(Clock(monkeypatch), [1] * 9, max_num_seqs=2)
    run, given = engine.runner.run, []
    monkeypatch.setattr(engine.runner, "prepare", lambda scheduled, token_ids=None: scheduled)

    def noted(scheduled, inputs, keep_routing=False):
        given.append((scheduled, inputs))
        return run(scheduled, inputs, keep_routing)

    monkeypatch.setattr(engine.runner, "run", noted)
    first, second = submit(engine, [1, 2], 6), submit(engine, [3, 4], 6)
    for _ in range(3):
        engine.step()
    engine.scheduler.finish(second, "cancelled")
    engine.step()
    assert all(scheduled == inputs for scheduled, inputs in given)
    assert [item.sequence for item in given[-1][0].work] == [first]


def test_stop_reasons():
    """The stop string or the named stop token; None for the model's own end of text and for an answer that was cut."""

    def reason(finish_reason, answer, stop_string=None):
        sequence = Sequence([1], Sampling(), frozenset({5, 6}), 9, stop_reasons={6: 6, 4: "four"})
        sequence.token_ids += answer
        sequence.admitted = sequence.submitted
        return sequence.completion("", finish_reason, stop_string).stop_reason

    assert (reason("stop", [2, 5]), reason("stop", [2, 6]), reason("stop", [4])) == (None, 6, "four")
    assert (reason("stop", [2, 6], "end"), reason("length", [2, 6])) == ("end", None)


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_whatever_ends_a_step_ends_its_requests_and_the_engine_goes_on(monkeypatch, error):
    """What would end a program does not: it reaches the caller as an error of the engine."""
    engine = engine_of(Clock(monkeypatch), [1, error, 1, 1])
    first, second = submit(engine, [1, 2, 3], 4), submit(engine, [1, 2, 3], 2)
    engine.step()
    with pytest.raises(StepFailed) as caught:
        engine.step()
    assert caught.value.sequences == [first] and first.finish_reason == "error" and not first.blocks
    assert caught.value.__cause__ is error and isinstance(caught.value.cause, Exception)
    assert caught.value.cause is error or type(error).__name__ in str(caught.value.cause)
    engine.step(), engine.step()
    assert second.finish_reason == "length" and second.cached_prompt_tokens == 0
    assert engine.scheduler.idle and engine.scheduler.pool.num_free == 20


def test_a_scheduler_that_breaks_off_ends_all(monkeypatch):
    engine = engine_of(Clock(monkeypatch), [1, 1])
    requests = [submit(engine, [1, 2, 3], 4), submit(engine, [1, 2, 3], 2)]
    with monkeypatch.context() as broken:
        broken.setattr(engine.scheduler, "_take", lambda *arguments: 1 / 0)
        with pytest.raises(StepFailed) as caught:
            engine.step()
    assert caught.value.sequences == requests and engine.scheduler.idle
    assert engine.step() == [] and engine.scheduler.pool.num_free == 20


# A whole LLM.


@pytest.fixture
def llm(small):
    llm = LLM(small, device="cpu", dtype="float32", max_num_seqs=1)
    yield llm
    llm.close()


def test_out_of_memory_in_a_step_says_what_to_lower_and_ends_no_other_request(llm, monkeypatch):
    expected = llm.generate("two", SHORT)[0].token_ids
    forward = llm.model.layers[1].forward

    def fail(*arguments):
        monkeypatch.setattr(llm.model.layers[1], "forward", forward)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(llm.model.layers[1], "forward", fail)
    ended = [SimpleQueue(), SimpleQueue()]
    handles = [Handle(llm.prepare(text, SHORT), queue.put) for text, queue in zip(("one", "two"), ended)]
    llm.loop.submit(handles)
    error = ended[0].get(timeout=TIMEOUT)
    assert isinstance(error, Qwen3Error) and "a step of 3 tokens did not fit: lower max_num_batched" in str(error)
    assert [ended[1].get(timeout=TIMEOUT).token_id for _ in range(3)] == expected


def test_logits_without_room_say_so(llm):
    pool, taker = llm.engine.scheduler.pool, Sequence([1], Sampling(), frozenset(), 2)
    expected = llm.logits([1, 2, 3])
    llm.loop.call(lambda: pool.allocate(taker, pool.num_blocks * pool.block_size))
    with pytest.raises(Qwen3Error, match="no room for 3 tokens now: wait until other requests have ended"):
        llm.logits([1, 2, 3])
    llm.loop.call(lambda: pool.free(taker))
    assert torch.equal(llm.logits([1, 2, 3]), expected) and pool.num_free == pool.num_blocks


def test_logits_that_break_off_hold_no_block(llm, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(llm.model.layers[1], "forward", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            llm.logits([1, 2, 3])
    pool = llm.engine.scheduler.pool
    assert llm.loop.call(lambda: pool.num_free) == pool.num_blocks
    assert llm.logits([1, 2, 3]).isfinite().all()


def test_a_call_that_breaks_off_half_way_leaves_nothing(llm):
    """It may have failed anywhere in the scheduler, so the state is rebuilt."""
    pool, taker = llm.engine.scheduler.pool, Sequence([1], Sampling(), frozenset(), 2)
    with pytest.raises(ZeroDivisionError):
        llm.loop.call(lambda: pool.allocate(taker, 3 * pool.block_size) and 1 / 0)
    assert llm.loop.call(lambda: pool.num_free) == pool.num_blocks


def test_only_the_engines_thread_computes(llm, monkeypatch):
    """No two steps run at a time, from whichever thread the calls come."""
    threads, layer = set(), llm.model.layers[0]
    forward = layer.forward

    def noted(*arguments):
        threads.add(threading.current_thread())
        return forward(*arguments)

    monkeypatch.setattr(layer, "forward", noted)
    llm.generate("one", SHORT), list(llm.stream("two", SHORT)), llm.logits([1, 2])
    asyncio.run(anext(llm.stream_async("three", SHORT)))
    assert threads == {llm.loop._thread}


def test_the_random_number_is_that_of_the_seed_and_the_place_of_the_token(llm):
    """The token at place p is the first at which the running sum of the probabilities exceeds uniform(seed, p)."""
    prompt, seed = [9, 8, 7, 6], 5
    params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, seed=seed, max_new_tokens=8, ignore_eos=True)
    answer = llm.generate([prompt], params)[0].token_ids
    scores = llm.logits(prompt + answer)

    def chosen(shift):
        places = torch.arange(len(prompt), len(prompt) + 8)
        numbers = philox.uniform(torch.full((8,), seed), places + shift)
        return [int((scores[p - 1].softmax(-1).cumsum(-1) > u).int().argmax()) for p, u in zip(places, numbers)]

    assert answer == chosen(0) and answer not in (chosen(-1), chosen(1))
