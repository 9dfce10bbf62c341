"""Parameters that are refused, defaults, penalties and filters as transformers has them, and honest frequencies."""

import math

import pytest
import torch

from qwen3.engine.params import Sampling
from qwen3.engine.sampler import Sampler, SamplingBatch, adjusted
from qwen3.engine.scheduler import Work
from qwen3.engine.sequence import Sequence, percentile
from qwen3_kernels import reference


def test_a_sequence_copies_its_token_ids():
    ids = [1, 2]
    Sequence(ids, Sampling(), frozenset(), 8).token_ids.append(3)
    assert ids == [1, 2]


def test_percentile():
    assert percentile([5.0, 1.0, 3.0], 50) == 3.0
    assert percentile([float(i) for i in range(101)], 99) == pytest.approx(99.0)
    assert percentile([], 50) == 0.0


def sequence(prompt, answer, **params):
    logprobs = params.pop("logprobs", None)
    made = Sequence(prompt, Sampling(**params), frozenset(), 100, logprobs)
    made.token_ids += answer
    return made


def test_penalties():
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.5]] * 3)
    rows = [
        sequence([0], [1, 1], repetition_penalty=2.0),
        sequence([0], [1, 1, 2], presence_penalty=0.5, frequency_penalty=0.25),
        sequence([0], [1]),
    ]
    expected = torch.tensor([[1.0, -4.0, 1.0, 0.5], [2.0, -3.0, 0.25, 0.5], [2.0, -2.0, 1.0, 0.5]])
    assert torch.equal(adjusted(logits, rows), expected)
    assert logits[0, 0] == 2  # the model's own scores stay as they are


def test_what_the_kernels_get_of_each_row():
    rows = [
        sequence([1, 2], [3], temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, seed=5),
        sequence([1], [], temperature=1e-6, top_k=0, seed=6),
        sequence([1], [], temperature=1.5, top_k=-1, top_p=0.25),
        sequence([1], [], top_k=99),
    ]
    work = [Work(row, 0, len(row.token_ids), True) for row in rows]
    batch = SamplingBatch.from_work(work, 8, "cpu")
    assert batch.temperature.tolist() == [0.5, 0, 1.5, 0]  # a tiny one is greedy
    assert batch.top_k.tolist() == [3, 8, 8, 8]  # 0, -1 and more than there are keep all
    assert batch.top_p.tolist() == pytest.approx([0.9, 1, 0.25, 1]) and batch.min_p.tolist() == pytest.approx(
        [0.1, 0, 0, 0]
    )
    assert batch.seeds.tolist() == [5, 6, 0, 0] and batch.positions.tolist() == [3, 1, 1, 1]


def test_log_probabilities_are_those_of_the_row_and_no_more_than_there_are():
    logits = torch.tensor([[0.0, 1, 2, 3], [3, 0, 2, 1], [0, 0, 0, 9]])
    rows = [sequence([1], [], logprobs=2), sequence([1], [], logprobs=100), sequence([1], [])]
    first, second, third = Sampler(reference).logprobs(logits, rows, [1, 2, 3])
    expected = logits.log_softmax(-1)
    assert third is None and (first.token_id, second.token_id) == (1, 2)
    assert (first.logprob, second.logprob) == pytest.approx((expected[0, 1].item(), expected[1, 2].item()))
    assert [token for token, _ in first.top] == [3, 2] and [token for token, _ in second.top] == [0, 2, 3, 1]
    assert [value for _, value in second.top] == pytest.approx(expected[1].sort(descending=True).values.tolist())


def test_repetition_penalty_is_transformers():
    processors = pytest.importorskip("transformers").generation.logits_process
    logits, ids = torch.randn(1, 50), [3, 4, 4, 9]
    expected = processors.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), logits)
    assert torch.equal(adjusted(logits, [sequence(ids[:2], ids[2:], repetition_penalty=1.3)]), expected)


def sampled_tokens(logits, count, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, seed=0):
    """`count` tokens sampled from one row of logits at positions 0, 1, 2, ..."""
    rows = logits.expand(count, -1)
    full = [torch.full((count,), float(v)) for v in (temperature, top_p, min_p)]
    k = torch.full((count,), top_k or rows.shape[1])
    seeds = torch.full((count,), seed)
    return reference.sample(rows, full[0], k, full[1], full[2], seeds, torch.arange(count))


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 8, "top_p": 0.8, "min_p": 0.1},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 2.0, "top_k": 12, "top_p": 0.9},
    ],
)
def test_frequencies_are_those_of_transformers_filters(filters):
    """A chi-square test with the probabilities that transformers' warpers leave; tokens they remove never come."""
    warpers = pytest.importorskip("transformers").generation.logits_process
    torch.manual_seed(3)
    logits = 1.5 * torch.randn(1, 24)
    scores = logits / filters.get("temperature", 1.0)
    if "top_k" in filters:
        scores = warpers.TopKLogitsWarper(filters["top_k"])(None, scores)
    if "top_p" in filters:
        scores = warpers.TopPLogitsWarper(filters["top_p"])(None, scores)
    if "min_p" in filters:
        scores = warpers.MinPLogitsWarper(filters["min_p"])(None, scores)
    probabilities = scores.softmax(-1)[0].double()
    count = 40_000
    seen = sampled_tokens(logits, count, **filters).bincount(minlength=24).double()
    kept = probabilities > 0
    assert seen[~kept].sum() == 0
    expected = count * probabilities[kept]
    statistic = ((seen[kept] - expected) ** 2 / expected).sum().item()
    freedom = int(kept.sum()) - 1
    # Five standard deviations of the chi-square distribution above its mean.
    assert statistic <= freedom + 5 * math.sqrt(2 * max(freedom, 1))


def test_equal_logits_stay_together_and_greedy_is_the_first_of_the_best():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert set(sampled_tokens(logits, 200, top_k=2).tolist()) == {1, 2, 3}
    assert sampled_tokens(logits, 3, temperature=0.0).tolist() == [1, 1, 1]


def test_a_sampled_token_depends_on_seed_and_position_alone():
    torch.manual_seed(0)
    logits = torch.randn(1, 1000)
    alone = [sampled_tokens(logits, 6, seed=7, top_p=0.9)[i].item() for i in range(6)]
    shuffled = torch.tensor([4, 0, 5, 1, 3, 2])
    many = torch.cat((logits.expand(6, -1), torch.randn(2, 1000)))
    mixed = reference.sample(
        many,
        torch.tensor([1.0] * 6 + [0.0, 2.0]),
        torch.tensor([1000] * 6 + [1000, 3]),
        torch.tensor([0.9] * 6 + [1.0, 0.5]),
        torch.zeros(8),
        torch.tensor([7] * 6 + [1, 2]),
        torch.cat((shuffled, torch.tensor([0, 9]))),
    )
    assert mixed[:6].tolist() == [alone[i] for i in shuffled]
    assert sampled_tokens(logits, 6, seed=8, top_p=0.9).tolist() != alone


def test_logprobs_are_the_models_own():
    torch.manual_seed(0)
    logits = torch.randn(2, 40)
    rows = [sequence([1], [2], temperature=0, logprobs=3, repetition_penalty=1.5), sequence([1], [], temperature=0)]
    sampler = Sampler(reference)
    work = [Work(row, len(row.token_ids) - 1, 1, True) for row in rows]
    tokens = sampler(logits, SamplingBatch.from_work(work, 40, "cpu"), rows).tolist()
    logprobs = sampler.logprobs(logits, rows, tokens)
    expected = logits[0].log_softmax(-1)
    assert logprobs[1] is None and logprobs[0].token_id == tokens[0]
    assert logprobs[0].logprob == pytest.approx(expected[tokens[0]].item(), abs=1e-6)
    assert [i for i, _ in logprobs[0].top] == expected.topk(3).indices.tolist()
