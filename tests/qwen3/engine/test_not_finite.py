"""Scores that are not finite end their request with an error that says so, and the others go on."""

import math
from contextlib import contextmanager
from queue import SimpleQueue

import pytest
import torch

from qwen3 import LLM, SamplingParams
from qwen3.engine.loop import Handle, Request
from qwen3.engine.params import Sampling
from qwen3.engine.sequence import Sequence
from qwen3.text.stream import TextStream

from ..conftest import eager_recorder

BAD = 77  # a token whose embedding is not finite
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
SEEDED = {"temperature": 1.0, "top_k": 20, "seed": 3}
GOOD = [list(range(3, 40)), [5, 6]]


@pytest.fixture(scope="module")
def one_llm(small):
    llm = LLM(small, device="cpu", dtype="float32", kv_block_size=4)
    yield llm
    llm.close()


@pytest.fixture
def llm(one_llm):
    one_llm.reset_prefix_cache()
    return one_llm


def answers(llm, prompts, **params):
    return [answer for _, answer in sorted(llm.generate_each(prompts, SamplingParams(**GREEDY | params)))]


@contextmanager
def poisoned(llm, value=math.nan, token=BAD):
    """While it is entered, every text with `token` has scores that are not finite."""
    row = llm.model.embedding.weight.data[token]
    before = row.clone()
    row[3] = value
    yield
    row.copy_(before)


@pytest.mark.parametrize("params", [{}, SEEDED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_ends_its_request_alone(llm, value, params):
    expected = answers(llm, GOOD, **params)
    llm.reset_prefix_cache()
    with poisoned(llm, value):
        first, bad, second = answers(llm, [GOOD[0], [*GOOD[0], BAD, 9], GOOD[1]], logprobs=2, **params)
    assert [first.token_ids, second.token_ids] == [answer.token_ids for answer in expected]
    assert (bad.finish_reason, bad.token_ids, bad.text, bad.logprobs) == ("error", [], "", [])
    assert "token 1 of the answer are not finite" in bad.error and "bfloat16" in bad.error
    assert bad.metrics.generated_tokens == bad.metrics.total_seconds == bad.metrics.time_to_first_token == 0
    assert first.error is None and first.finish_reason == "length"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_every_backend_keeps_the_rows_apart(small, backend):
    """A router whose scores are NaN chooses some experts: their other tokens are computed as ever."""
    if backend == "triton":
        pytest.importorskip("triton")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    llm = LLM(small, device=device, dtype="float32", backend=backend)
    prompts = [[3, 4, 5], [40, 41], [60]]
    expected = answers(llm, prompts, max_new_tokens=3)
    [token] = {answer.token_ids[0] for answer in expected[1:2]} - {
        i for answer in expected[::2] for i in answer.token_ids
    }
    llm.reset_prefix_cache()
    with poisoned(llm, token=token):
        # One breaks off in a prefill, one in a decode.
        first, decoded, third, prefilled = answers(llm, [*prompts, [8, token, 9]], max_new_tokens=3)
    assert [first.token_ids, third.token_ids] == [answer.token_ids for answer in expected[::2]]
    assert decoded.token_ids == [token] and "token 2 of the answer are not finite" in decoded.error
    assert prefilled.token_ids == [] and "token 1 of the answer are not finite" in prefilled.error
    llm.close()


@pytest.mark.parametrize("options", [{}, {"graph_recorder": eager_recorder}, {"kv_cache": False}])
def test_an_answer_that_breaks_off_keeps_what_it_had(small, options):
    llm = LLM(small, device="cpu", dtype="float32", **options)
    [whole] = answers(llm, GOOD[:1], **SEEDED)
    llm.reset_prefix_cache()
    at = next(i for i, token in enumerate(whole.token_ids) if i > 1 and token not in GOOD[0] + whole.token_ids[:i])
    before = llm.stats.first_token_seconds
    with poisoned(llm, token=whole.token_ids[at]):
        [bad] = answers(llm, GOOD[:1], logprobs=0, **SEEDED)
    assert bad.finish_reason == "error" and f"token {at + 2} of the answer" in bad.error
    assert bad.token_ids == whole.token_ids[: at + 1] == [logprob.token_id for logprob in bad.logprobs]
    assert whole.text.startswith(bad.text.rstrip("\ufffd")) and bad.metrics.generated_tokens == at + 1
    assert llm.stats.first_token_seconds == bad.metrics.time_to_first_token != before
    assert answers(llm, GOOD[:1]) and llm.engine.scheduler.idle
    llm.close()


def test_nobody_gets_the_blocks_of_what_was_not_finite(llm):
    """A request with the same prefix gets none of them; other blocks stay in the prefix cache."""
    prompt = [*GOOD[0], BAD, *range(100, 120)]
    expected = answers(llm, [prompt, GOOD[0]])
    llm.reset_prefix_cache()
    with poisoned(llm):
        _, bad = answers(llm, [list(range(200, 240)), prompt])
    assert bad.finish_reason == "error"
    again, other, good = answers(llm, [prompt, list(range(200, 240)), GOOD[0]])
    assert [again.token_ids, good.token_ids] == [answer.token_ids for answer in expected]
    assert again.metrics.cached_prompt_tokens == 0 and other.metrics.cached_prompt_tokens > 0


def test_where_nothing_may_be_sampled_the_error_says_so(llm):
    """The scores are finite: what bans every token is named, not the checkpoint."""
    ids = list(range(llm.config.vocab_size))
    banned = Sampling(bad_words=tuple((i,) for i in ids))
    ended = SimpleQueue()
    requests = [Request(Sequence([1], sampling, frozenset(), 3), TextStream(None)) for sampling in (banned, Sampling())]
    handles = [Handle(request, ended.put) for request in requests]
    llm.loop.submit(handles)
    deltas = [ended.get(timeout=60) for _ in range(3)]
    assert [delta.finish_reason for delta in deltas] == ["error", None, "length"]
    assert "no token may be sampled as token 1 of the answer: bad_words" in deltas[0].error
    assert deltas[0].token_id is None and handles[0].completion().error == deltas[0].error
