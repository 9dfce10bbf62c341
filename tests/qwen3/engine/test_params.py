"""SamplingParams: every value of every field is taken, or refused in one line that names the field."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from qwen3 import Qwen3Error, SamplingParams
from qwen3.engine.params import Sampling

FIELDS = [f.name for f in fields(SamplingParams)]
TEXTS, FLAGS = "stop bad_words ", "ignore_eos include_stop_str_in_output skip_special_tokens "
PENALTIES, LISTS = "presence_penalty frequency_penalty ", TEXTS + "stop_token_ids "
# Each value, and the fields that take it; every other field refuses it.
VALUES = [
    *((v, "") for v in ("", b"x", 10**400, -(10**400), 2**63, float("nan"), float("inf"), object(), 1j, 1e308, int)),
    *((v, "") for v in ([""], [None], [-1], [1.5], [True], ["\ud800"], [2**31], [[1]], {"a": 1}, {1: "x"}, {1: None})),
    *((v, "") for v in ({1: 101}, {1.5: 1}, {-1: 1}, {True: 1}, {"1": 1, 1: 2}, {2**31: 1}, {"٣": 1}, {None: 1})),
    *(
        (v, "")
        for v in (
            {"9" * 5000: 1},
            {1: float("nan")},
            np.zeros(2),
            torch.zeros(2),
            lambda: 1,
            range(-1, 2),
            range(10**15),
        )
    ),
    *((v, TEXTS) for v in ("x", "false", "a" * 10**6, ["x"], ("x", "y"))),
    *((v, FLAGS) for v in (True, False)),
    *((v, "stop_token_ids") for v in ([1], range(3), torch.tensor([1, 2]), np.array([3]))),
    ([], LISTS),
    ({}, "logit_bias"),
    (-3, PENALTIES + "seed"),
    (-1, PENALTIES + "seed top_k"),
    (0, PENALTIES + "seed top_k temperature min_p logprobs min_tokens no_repeat_ngram_size"),
    (
        1,
        PENALTIES + "seed top_k temperature min_p logprobs min_tokens no_repeat_ngram_size "
        "top_p repetition_penalty max_new_tokens",
    ),
    (101, "seed top_k min_tokens no_repeat_ngram_size max_new_tokens"),
    (2**31, "seed"),
    (0.5, PENALTIES + "temperature min_p top_p repetition_penalty"),
    (3.5, PENALTIES + "temperature repetition_penalty"),
    (-0.5, PENALTIES),
]
# What each field takes, and what it then holds where that differs.
GOOD = {
    "temperature": [0, 1, 0.7, 100, np.float32(0.5)],
    "top_k": [-1, 0, 1, 50, np.int64(5)],
    "top_p": [1, 0.5, 1e-9],
    "min_p": [0, 1, 0.5],
    "repetition_penalty": [1, 1e-9, 100, 3.5],
    "presence_penalty": [-100, 0, 1, 3.5],
    "frequency_penalty": [-100, 0, 1, 3.5],
    "max_new_tokens": [1, 2**31 - 1, np.int32(4)],
    "stop": [("x", ("x",)), (["a", "b"], ("a", "b")), ([], ()), (("é",), ("é",))],
    "stop_token_ids": [([], ()), ([1, 2], (1, 2)), ((3,), (3,)), (np.array([4]), (4,)), (torch.tensor([1, 2]), (1, 2))],
    "ignore_eos": [True, False],
    "seed": [0, 1, -3, 2**63 - 1, -(2**63)],
    "logprobs": [0, 1, 100],
    "min_tokens": [0, 1, 2**31 - 1],
    "logit_bias": [({}, {}), ({1: 2, "30": -100}, {1: 2.0, 30: -100.0}), ({np.int64(4): 1}, {4: 1.0})],
    "bad_words": [("x", ("x",)), (["a", "b"], ("a", "b")), ([], ())],
    "no_repeat_ngram_size": [0, 1, 3],
    "include_stop_str_in_output": [True, False],
    "skip_special_tokens": [True, False],
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_takes_the_right_values_and_refuses_every_other_in_one_line(name):
    for case in GOOD[name]:
        given, held = case if isinstance(case, tuple) else (case, case)
        got = getattr(SamplingParams(**{name: given}), name)
        assert got == held and type(got) in (int, float, bool, tuple, dict), given
    for value, takers in VALUES:
        if name in takers.split():
            SamplingParams(**{name: value})
            continue
        with pytest.raises(Qwen3Error, match=name) as error:
            SamplingParams(**{name: value})
        assert str(error.value).isprintable() and len(str(error.value)) < 300


@pytest.mark.parametrize("name", FIELDS)
def test_none_is_not_said_for_every_field(name):
    assert SamplingParams(**{name: None}) == SamplingParams()
    given = GOOD[name][0][0] if isinstance(GOOD[name][0], tuple) else GOOD[name][0]
    assert replace(SamplingParams(**{name: given}), **{name: None}) == SamplingParams()


def test_every_field_of_the_engines_side_is_one_of_the_callers():
    assert {f.name for f in fields(Sampling)} <= set(FIELDS) == set(GOOD)
    assert all(f.metadata["help"] for f in fields(SamplingParams))


def test_the_callers_values_are_copied():
    bias, stop = {1: 2.0}, ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)
    bias[1], stop[0] = 5.0, "b"
    assert params.logit_bias == {1: 2.0} and params.stop == ("a",)
    assert hash(params) == hash(SamplingParams(stop="a"))


def test_an_answer_longer_than_its_longest_is_refused():
    with pytest.raises(Qwen3Error, match="min_tokens is 4, max_new_tokens 3"):
        SamplingParams(min_tokens=4, max_new_tokens=3)
    assert SamplingParams(min_tokens=3, max_new_tokens=3).min_tokens == 3
