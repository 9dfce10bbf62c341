"""Biases, penalties and banned tokens change the scores as transformers' logits processors do."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from qwen3.engine.params import Sampling
from qwen3.engine.sampler import SamplingBatch, adjusted, banned_ids
from qwen3.engine.scheduler import Work
from qwen3.engine.sequence import Sequence

SIZE = 12
IDS = st.integers(0, SIZE - 1)
EOS = 3


def sequence(prompt, answer=(), stop_ids=(EOS,), **params):
    made = Sequence(list(prompt), Sampling(**params), frozenset(stop_ids), 100)
    made.token_ids += answer
    return made


def scores(rows=1, seed=0):
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed))


def theirs(prompt, answer, logits, **params):
    """What transformers' processors make of the scores, in the order in which `generate` builds them."""
    library = pytest.importorskip("transformers").generation.logits_process
    p, processors = Sampling(**params), []
    if p.logit_bias:
        processors.append(library.SequenceBiasLogitsProcessor([[[i], float(bias)] for i, bias in p.logit_bias]))
    if p.repetition_penalty != 1:
        processors.append(library.RepetitionPenaltyLogitsProcessor(p.repetition_penalty))
    if p.no_repeat_ngram_size:
        processors.append(library.NoRepeatNGramLogitsProcessor(p.no_repeat_ngram_size))
    if p.bad_words:
        processors.append(library.NoBadWordsLogitsProcessor([list(word) for word in p.bad_words]))
    if p.min_tokens:
        processors.append(library.MinNewTokensLengthLogitsProcessor(len(prompt), p.min_tokens, [EOS]))
    ids = torch.tensor([[*prompt, *answer]])
    for processor in processors:
        logits = processor(ids, logits)
    return logits


@settings(deadline=None)
@given(
    prompt=st.lists(IDS, min_size=1, max_size=12),
    answer=st.lists(IDS, max_size=8),
    params=st.fixed_dictionaries(
        {},
        optional={
            "logit_bias": st.dictionaries(IDS, st.sampled_from([-100.0, -0.5, 2.0]), min_size=1).map(
                lambda bias: tuple(bias.items())
            ),
            "repetition_penalty": st.sampled_from([0.5, 1.3]),
            "no_repeat_ngram_size": st.integers(1, 4),
            "bad_words": st.sets(st.lists(IDS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple),
            "min_tokens": st.integers(1, 9),
        },
    ),
)
def test_scores_are_those_of_transformers(prompt, answer, params):
    logits = scores()
    before = logits.clone()
    # transformers passes over a word that is longer than the text so far.
    words = tuple(word for word in params.pop("bad_words", ()) if len(word) <= len(prompt) + len(answer))
    params["bad_words"] = words
    got = adjusted(logits, [sequence(prompt, answer, **params)])
    assert torch.equal(got, theirs(prompt, answer, logits, **params)) and torch.equal(logits, before)


def banned(prompt, answer=(), **params):
    return banned_ids(sequence(prompt, answer, **params))


def test_no_end_before_min_tokens():
    """Neither the model's end of text nor a stop id of the request, up to that many tokens of the answer."""
    both = {"stop_ids": (EOS, 7), "min_tokens": 2}
    assert banned([1, 2, 4], **both) == banned([1, 2, 4], [5], **both) == {EOS, 7}
    assert banned([1, 2, 4], [5, 6], **both) == banned([1], [5], stop_ids=(EOS, 7)) == set()


def test_the_last_token_of_a_bad_word_is_banned_where_the_others_stand():
    words = ((5,), (1, 2), (1, 2, 6), (4, 4))
    assert banned([9, 1], bad_words=words) == {5, 2}
    assert banned([9, 1], [2], bad_words=words) == {5, 6}, "a word may begin in the prompt"
    assert banned([2, 1, 8], bad_words=words) == {5}
    assert banned([1], bad_words=((1, 2),)) == {2}, "a word as long as the text so far"
    assert banned([1], bad_words=((),)) == set()


@pytest.mark.parametrize(
    "size, expected", [(0, set()), (1, {1, 2, 5, 6}), (2, {2, 6}), (3, {6}), (4, set()), (9, set())]
)
def test_no_repeated_ngram(size, expected):
    """Of 1 2, 5 1 6, 5 1: what would repeat the last tokens and their follower."""
    assert banned([1, 2, 5], [1, 6, 5, 1], no_repeat_ngram_size=size) == expected
    # What begins inside of itself.
    assert banned([1, 1], [1], no_repeat_ngram_size=3) == {1}


def test_every_field_changes_its_own_row_and_no_other():
    logits = scores(7)
    plain = Sampling()
    fields = [
        {"logit_bias": ((4, 1.5), (5, -math.inf))},
        {"repetition_penalty": 1.4},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"no_repeat_ngram_size": 1},
        {"bad_words": ((8,),)},
        {"min_tokens": 9},
    ]
    assert all(getattr(plain, name) != value for field in fields for name, value in field.items())
    for row, field in enumerate(fields):
        rows = [sequence([1, 2], [4, 4]) for _ in fields]
        assert adjusted(logits, rows) is logits, "nothing is copied where nothing changes"
        rows[row] = sequence([1, 2], [4, 4], **field)
        changed = (adjusted(logits, rows) != logits).any(-1)
        assert changed.tolist() == [i == row for i in range(len(fields))], field
    together = adjusted(logits, [sequence([1, 2], [4, 4], **field) for field in fields])
    for row, field in enumerate(fields):
        alone = adjusted(logits[row : row + 1], [sequence([1, 2], [4, 4], **field)])
        assert torch.equal(together[row : row + 1], alone)


def test_ids_that_the_model_does_not_have_change_nothing():
    """An index beyond the scores would break off the step, and on a GPU every later one."""
    logits = scores()
    beyond = {"logit_bias": ((SIZE, 1.0), (-1, 1.0)), "bad_words": ((SIZE,), (-2,)), "min_tokens": 5}
    assert torch.equal(adjusted(logits, [sequence([1], stop_ids=(SIZE, 10**12), **beyond)]), logits)


def test_temperatures_by_which_scores_cannot_be_divided_are_greedy():
    values = [0.0, 1e-45, 1e-38, 0.99e-5, 1.01e-5, 1.0]
    work = [Work(sequence([1], temperature=value), 0, 1, True) for value in values]
    batch = SamplingBatch.from_work(work, SIZE, "cpu")
    assert (batch.temperature == 0).tolist() == [True] * 4 + [False] * 2
    assert batch.temperature.dtype == torch.float32


class Waits(TorchDispatchMode):
    """Notes the operations that read a value of a tensor on the host, or whose sizes depend on one."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = str(function)
        masks = "index" in name and any(index is not None and index.dtype == torch.bool for index in arguments[1])
        if masks or any(part in name for part in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(name)
        return function(*arguments, **(named or {}))


def test_nothing_waits_for_the_device():
    """The host reads no score, for whatever is asked; the check sees it where one is read."""
    everything = {
        "logit_bias": ((4, 1.5),),
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "no_repeat_ngram_size": 1,
        "bad_words": ((8,),),
        "min_tokens": 9,
    }
    rows = [sequence([1, 2], [4, 4], **everything), sequence([1, 2], [4, 4])]
    with Waits() as waits:
        assert not torch.equal(adjusted(scores(2), rows), scores(2))
    assert waits.found == []
    with Waits() as waits:
        scores()[scores() > 0], scores().sum().item()
    assert len(waits.found) == 2
