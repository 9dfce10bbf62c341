"""generation_config.json: every key of transformers is used, without effect or refused by name."""

import json

import pytest

from qwen3 import Qwen3Error
from qwen3.config.generation import NO_EFFECT, ONLY, USED, GenerationDefaults, defaults_from, generation_defaults

# For each used key: a value, and what the defaults are then.
GIVEN = {
    "do_sample": (True, {"temperature": 1.0, "top_k": 50}),
    "temperature": (0.7, {"temperature": 0.7}),
    "top_k": (20, {"top_k": 20}),
    "top_p": (0.8, {"top_p": 0.8}),
    "min_p": (0.1, {"min_p": 0.1}),
    "repetition_penalty": (1.05, {"repetition_penalty": 1.05}),
    "presence_penalty": (1.5, {"presence_penalty": 1.5}),
    "frequency_penalty": (0.5, {"frequency_penalty": 0.5}),
    "max_new_tokens": (7, {"max_new_tokens": 7}),
    "max_length": (9, {"max_length": 9}),
    "min_new_tokens": (3, {"min_tokens": 3}),
    "no_repeat_ngram_size": (2, {"no_repeat_ngram_size": 2}),
    "bad_words_ids": ([[5], [6, 7]], {"bad_words_ids": ((5,), (6, 7))}),
    "suppress_tokens": ([5, 8], {"bad_words_ids": ((5,), (8,))}),
    "sequence_bias": ([[[5], -2.0]], {"logit_bias": ((5, -2.0),)}),
    "stop_strings": (["a", "b"], {"stop": ("a", "b")}),
    "eos_token_id": ([1, 2], {"eos_token_ids": (1, 2)}),
}
WRONG = ("x", "1", "false", {"a": 1}, [None], ["x"], [{}], -101, 10**30, float("nan"), float("inf"), [[1.5]], [[[1]]])


def test_the_table_holds_every_key_of_transformers_at_its_default():
    generation = pytest.importorskip("transformers").GenerationConfig
    theirs = generation._get_default_generation_params()
    assert theirs.keys() | vars(generation()).keys() <= USED | NO_EFFECT | ONLY.keys()
    assert not USED & NO_EFFECT and not (USED | NO_EFFECT) & ONLY.keys()
    # A file that writes out every default is that of a greedy model; its top_k waits for a temperature.
    assert defaults_from(theirs) == GenerationDefaults(top_k=theirs["top_k"])
    assert defaults_from({"do_sample": True}).top_k == theirs["top_k"]
    for key, allowed in ONLY.items():
        assert theirs.get(key) is None or theirs[key] in allowed, key
        assert defaults_from(dict.fromkeys([key])) == GenerationDefaults()
        for value in allowed:
            assert defaults_from({key: value}) == GenerationDefaults()


@pytest.mark.parametrize("key", sorted(USED))
def test_a_used_key(key, tmp_path):
    value, changes = GIVEN[key]
    assert defaults_from({key: value}) == GenerationDefaults(**changes) != GenerationDefaults()
    assert defaults_from({key: None}) == GenerationDefaults()
    (tmp_path / "generation_config.json").write_text(json.dumps({key: value}))
    assert generation_defaults(tmp_path) == GenerationDefaults(**changes)
    texts = ("x", "1", "false", ["x"]) if key == "stop_strings" else ()
    for wrong in (value for value in WRONG if value not in texts):
        with pytest.raises(Qwen3Error, match=f"^g.json: {key}") as refused:
            defaults_from({key: wrong}, "g.json", 10)
        assert len(str(refused.value)) < 250


@pytest.mark.parametrize("key", [*sorted(NO_EFFECT), "_name_or_path", "_comment"])
def test_a_key_without_effect(key):
    for value in (None, True, 5, "x", [1], {"a": 1}):
        assert defaults_from({key: value}) == GenerationDefaults()


@pytest.mark.parametrize("key", [*sorted(ONLY), "presence_penalty_", "stop", "seed", "ignore_eos", "min_tokens", ""])
def test_what_would_change_the_answer_is_refused_by_name(key):
    for value in (True, 3, 0.5, "x", [1], {"a": 1}):
        with pytest.raises(Qwen3Error, match=f"^g.json: field '{key}' = "):
            defaults_from({key: value}, "g.json")


def test_true_is_not_one_and_false_is_not_zero():
    for key, value in (("num_beams", True), ("min_length", False), ("no_repeat_ngram_size", False), ("top_p", True)):
        with pytest.raises(Qwen3Error, match=key):
            defaults_from({key: value})


def test_do_sample_decides_whether_the_temperature_counts():
    filters = {"top_k": 20, "top_p": 0.8, "min_p": 0.1}
    for said, temperature in (
        ({}, 0.7),
        ({"do_sample": True}, 0.7),
        ({"do_sample": False}, 0),
        ({"do_sample": None}, 0.7),
    ):
        found = defaults_from({"temperature": 0.7} | filters | said)
        assert found == GenerationDefaults(temperature=temperature, **filters)
    assert defaults_from(filters) == GenerationDefaults(**filters)
    assert defaults_from({"do_sample": True, "temperature": None}).temperature == 1
    assert defaults_from({"do_sample": True, "top_k": None}).top_k == 50
    assert [defaults_from({"top_k": k}).top_k for k in (-1, 0, 1)] == [0, 0, 1]


def test_ends_of_text():
    assert defaults_from({"eos_token_id": 0}).eos_token_ids == (0,)
    assert defaults_from({"eos_token_id": []}).eos_token_ids == ()
    assert defaults_from({}).eos_token_ids is None
    for wrong in (True, "0", -1, 10, 1.0, [1, 10], [[1]]):
        with pytest.raises(Qwen3Error, match="eos_token_id is .* from 0 to 9"):
            defaults_from({"eos_token_id": wrong}, vocab_size=10)
    # As in transformers, an end of text is no bad word, but can be suppressed.
    words = {"bad_words_ids": [[1], [2], [1, 2]], "eos_token_id": [1, 3]}
    assert defaults_from(words).bad_words_ids == ((2,), (1, 2))
    assert defaults_from(words | {"suppress_tokens": [1]}).bad_words_ids == ((2,), (1, 2), (1,))


def test_bounds():
    limits = {"temperature": (0, 100), "top_p": (1e-9, 1), "min_p": (0, 1), "repetition_penalty": (1e-9, 100)}
    for key, (low, high) in limits.items():
        assert defaults_from({key: low}) and defaults_from({key: high})
        for beyond in (-1e-9, high * 1.001):
            with pytest.raises(Qwen3Error, match=key):
                defaults_from({key: beyond})
    assert 0 < defaults_from({"top_p": 0}).top_p < 1e-5, "the most likely token, as in transformers"
    for key in ("repetition_penalty", "max_new_tokens", "max_length"):
        with pytest.raises(Qwen3Error, match=key):
            defaults_from({key: 0})
    for key in ("bad_words_ids", "suppress_tokens", "sequence_bias"):
        last = {"bad_words_ids": [[9]], "suppress_tokens": [9], "sequence_bias": [[[9], 1]]}[key]
        assert defaults_from({key: last}, vocab_size=10)
        with pytest.raises(Qwen3Error, match=key):
            defaults_from({key: last}, vocab_size=9)
    for wrong in ([[]], [[[1, 2], 1.0]], [[[1], "x"]], [[[1], 1.0, 2]]):
        with pytest.raises(Qwen3Error, match=r"sequence_bias\[0\]"):
            defaults_from({"sequence_bias": wrong})
    with pytest.raises(Qwen3Error, match="none of them empty"):
        defaults_from({"bad_words_ids": [[]]})


def test_a_file_that_is_not_there_says_nothing(tmp_path):
    assert generation_defaults(tmp_path) == GenerationDefaults()
    (tmp_path / "generation_config.json").mkdir()
    with pytest.raises(Qwen3Error, match="generation_config.json: is not a plain file"):
        generation_defaults(tmp_path)
