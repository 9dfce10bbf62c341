"""Scores that are not finite end their request with an error that says so, and the others go on."""

import pytest
import torch

from qwen3 import LLM, SamplingParams

BAD = 77  # a token whose embedding is not finite
GREEDY = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}
GOOD = [list(range(3, 40)), [5, 6]]


@pytest.fixture
def llm(small):
    llm = LLM(small, device="cpu", dtype="float32", kv_block_size=4)
    yield llm
    llm.close()


def answers(llm, prompts, **params):
    return [answer for _, answer in sorted(llm.generate_each(prompts, SamplingParams(**GREEDY | params)))]


def poison(llm, value):
    with torch.no_grad():
        llm.model.embedding.weight.data[BAD, 3] = value


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0, "top_k": 20, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_ends_its_request_alone(llm, value, params):
    expected = answers(llm, GOOD, **params)
    llm.reset_prefix_cache()
    poison(llm, value)
    first, bad, second = answers(llm, [GOOD[0], [*GOOD[0], BAD, 9], GOOD[1]], logprobs=2, **params)
    assert [first.token_ids, second.token_ids] == [answer.token_ids for answer in expected]
    assert (bad.finish_reason, bad.token_ids, bad.text, bad.logprobs) == ("error", [], "", [])
    assert "token 1 of the answer are not finite" in bad.error and "bfloat16" in bad.error
    assert bad.metrics.generated_tokens == bad.metrics.total_seconds == bad.metrics.time_to_first_token == 0
    assert first.error is None and first.finish_reason == "length"
