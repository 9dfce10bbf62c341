"""Prompts in every form that people have, and every parameter on its way into the engine."""

import itertools
import json
from array import array
from collections import UserList, deque
from dataclasses import fields

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, processors

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.config.generation import GenerationDefaults
from qwen3.engine.params import Sampling

from .rigged import END, MORE, write_walk

B = 65  # the token of "b" in write_walk's tokenizer
ONE = SamplingParams(max_new_tokens=1, temperature=0)
IDS = {
    "list": [65, 66], "tuple": (65, 66), "range": range(65, 67), "NumPy": np.array([65, 66]), "NumPy, int32":
    np.array([65, 66], dtype=np.int32), "torch": torch.tensor([65, 66]), "torch, int32": torch.tensor([65, 66]).int(),
    "scalars of NumPy": [np.int64(65), np.uint8(66)], "scalars of torch": list(torch.tensor([65, 66])),
    "array": array("i", [65, 66]), "deque": deque([65, 66]), "UserList": UserList([65, 66]),
    "a view": np.array([[65, 0], [66, 0]])[:, 0],
}  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    tokenizer = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    with LLM(
        write_walk(tmp_path_factory.mktemp("walk"), ["a", "b", END], tokenizer, eos_token_id=300), device="cpu"
    ) as llm:
        yield llm


def asked(llm, prompts, params=ONE):
    return [answer.prompt_token_ids for answer in llm.generate(prompts, params)]


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
def test_ids_may_stand_in_any_list_flat_or_listed(llm, ids):
    assert asked(llm, ids) == [[65, 66]]
    assert asked(llm, [ids, [67], ids]) == [[65, 66], [67], [65, 66]]
    assert llm.prepare(ids, ONE).sequence.token_ids == [65, 66]
    assert "".join(llm.stream(ids, ONE)) == llm.generate(ids, ONE)[0].text
    assert torch.equal(llm.logits(ids), llm.logits([65, 66]))
    assert all(type(i) is int for i in asked(llm, ids)[0])


def test_prompts_may_stand_in_any_list(llm):
    a, b = llm.tokenizer.encode("a"), llm.tokenizer.encode("bé")
    assert asked(llm, "a") == [a] and asked(llm, ["a"]) == [a] and asked(llm, []) == []
    for prompts in (
        ["a", "bé"],
        ("a", "bé"),
        np.array(["a", "bé"]),
        deque(["a", "bé"]),
        {"x": "a", "y": "bé"}.values(),
    ):
        assert asked(llm, prompts) == [a, b]
    assert asked(llm, (text for text in ("a", "bé"))) == [a, b] and asked(llm, iter([65, 66])) == [[65, 66]]
    assert asked(llm, ["a", [65], torch.tensor([66])]) == [a, [65], [66]]
    for matrix in (np.array([[65, 66], [67, 68]]), torch.tensor([[65, 66], [67, 68]]), [(65, 66), (67, 68)]):
        assert asked(llm, matrix) == [[65, 66], [67, 68]]
    assert asked(llm, ["a", "bé"], [ONE, None][:1] * 2) == [a, b]
    with pytest.raises(Qwen3Error, match="2 SamplingParams for 1 prompts"):
        llm.generate("a", [ONE, ONE])


def test_prompts_without_an_end_are_refused(llm, monkeypatch):
    monkeypatch.setattr("qwen3.engine.arguments._MOST_PROMPTS", 5)
    assert len(asked(llm, iter(["a"] * 5))) == 5
    with pytest.raises(Qwen3Error, match="prompts has more than 5 items"):
        llm.generate(itertools.repeat("a"), ONE)


@pytest.mark.parametrize(
    "prompts, message",
    [
        ({"input_ids": [1]}, "prompts: token ids are needed, not what a tokenizer returns: give its input_ids"),
        ([{"input_ids": [1]}], "the prompt: token ids are needed, .* give its input_ids"),
        ({"prompt": "x"}, "prompts is .*'prompt'.*: it must be a text, a list of texts, or lists of token ids"),
        ([{"role": "user", "content": "x"}], "the prompt is .*'role'.*LLM.chat messages"),
        (["a", {"role": "user"}], "prompt 1 is .*LLM.chat messages"),
        ([1, "a"], r"prompts?\[1\] is 'a'|the prompt\[1\] is 'a'"),
        ([[1], [1, 320]], r"prompt 1\[1\] is 320: it must be a whole number from 0 to 319"),
        (range(65), "has 65 tokens, the context has room for 64: shorten it or raise max_model_len"),
        (range(64), "64 with at least one to generate"),
    ],
)
def test_a_wrong_prompt_is_told_what_would_be_right(llm, prompts, message):
    with pytest.raises(Qwen3Error, match=message):
        llm.generate(prompts, ONE)


# Each field, a value, and what the engine then has in its request.
ARRIVES = {
    "temperature": (0.5, lambda r: r.sequence.sampling.temperature == 0.5),
    "top_k": (7, lambda r: r.sequence.sampling.top_k == 7),
    "top_p": (0.5, lambda r: r.sequence.sampling.top_p == 0.5),
    "min_p": (0.25, lambda r: r.sequence.sampling.min_p == 0.25),
    "repetition_penalty": (1.5, lambda r: r.sequence.sampling.repetition_penalty == 1.5),
    "presence_penalty": (0.5, lambda r: r.sequence.sampling.presence_penalty == 0.5),
    "frequency_penalty": (0.5, lambda r: r.sequence.sampling.frequency_penalty == 0.5),
    "max_new_tokens": (5, lambda r: r.sequence.max_length == 6),
    "stop": ("bb", lambda r: [r.stream.push(B, None), r.stream.push(B, None)][1][1] == "bb"),
    "stop_token_ids": ([70], lambda r: 70 in r.sequence.stop_ids),
    "ignore_eos": (True, lambda r: 300 not in r.sequence.stop_ids),
    "seed": (5, lambda r: r.sequence.sampling.seed == 5),
    "logprobs": (3, lambda r: r.sequence.num_logprobs == 3),
    "min_tokens": (2, lambda r: r.sequence.sampling.min_tokens == 2),
    "logit_bias": ({5: 2}, lambda r: r.sequence.sampling.logit_bias == ((5, 2.0),)),
    "bad_words": ("ab", lambda r: list(map(len, r.sequence.sampling.bad_words)) == [2]),
    "no_repeat_ngram_size": (3, lambda r: r.sequence.sampling.no_repeat_ngram_size == 3),
    "include_stop_str_in_output": (True, lambda r: r.stream.push(B, "stop")[0] != ""),
    "skip_special_tokens": (False, lambda r: r.stream.push(END, None)[0] == "<end>"),
}


def with_generation(folder, **values):
    (folder / "generation_config.json").write_text(json.dumps(values))
    return LLM(write_walk(folder, ["a", "b"]), device="cpu")


@pytest.mark.parametrize("name", [f.name for f in fields(SamplingParams)])
def test_every_parameter_reaches_the_engine(llm, name):
    value, arrived = ARRIVES[name]
    assert not arrived(llm.prepare("a")), "the parameter changes nothing"
    assert arrived(llm.prepare("a", SamplingParams(**{name: value})))


# What generation_config.json calls the fields of Sampling, a value, and another that a request says.
DEFAULTS = {
    "temperature": ({"temperature": 0.7}, 0.7, 0.0, 0.0),
    "top_k": ({"do_sample": True, "top_k": 5}, 5, 7, 7),
    "top_p": ({"do_sample": True, "top_p": 0.5}, 0.5, 1, 1.0),
    "min_p": ({"do_sample": True, "min_p": 0.5}, 0.5, 0, 0.0),
    "repetition_penalty": ({"repetition_penalty": 1.5}, 1.5, 1, 1.0),
    "presence_penalty": ({"presence_penalty": 1.5}, 1.5, 0, 0.0),
    "frequency_penalty": ({"frequency_penalty": 1.5}, 1.5, 0, 0.0),
    "min_tokens": ({"min_new_tokens": 4}, 4, 0, 0),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 3}, 3, 0, 0),
    "logit_bias": ({"sequence_bias": [[[5], 2.0]]}, ((5, 2.0),), {}, ()),
    "bad_words": ({"bad_words_ids": [[5, 6]]}, ((5, 6),), [], ()),
}


def test_every_default_of_the_file_has_a_case():
    assert DEFAULTS.keys() == {f.name for f in fields(Sampling)} - {"seed"}
    lengths_and_ends = {"max_new_tokens", "max_length", "eos_token_ids", "stop"}
    assert len(fields(GenerationDefaults)) == len(DEFAULTS) + len(lengths_and_ends)


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_a_request_does_not_say_comes_from_generation_config(tmp_path, name):
    values, default, said, held = DEFAULTS[name]
    llm = with_generation(tmp_path, **values)
    assert getattr(Sampling(), name) != default, "the default changes nothing"
    assert getattr(llm.prepare("a").sequence.sampling, name) == default
    assert getattr(llm.prepare("a", SamplingParams(**{name: None})).sequence.sampling, name) == default
    assert getattr(llm.prepare("a", SamplingParams(**{name: said})).sequence.sampling, name) == held


def test_without_generation_config_sampling_is_greedy_and_plain():
    plain = Sampling(seed=0)
    assert SamplingParams(seed=0).resolve(GenerationDefaults()) == plain
    assert SamplingParams().resolve(GenerationDefaults()).seed != SamplingParams().resolve(GenerationDefaults()).seed


def test_bad_words_are_the_tokens_of_the_word_and_of_the_word_after_a_space(llm, tmp_path):
    word = tuple(llm.tokenizer.encode("ab"))
    # Single bytes: after a space the word has the same tokens.
    assert llm.prepare("a", SamplingParams(bad_words="ab")).sequence.sampling.bad_words == (word,)
    folder = write_walk(tmp_path, ["a", "b"])
    backend = json.loads((folder / "tokenizer.json").read_text())
    backend["model"]["vocab"]["Ġa"] = 300
    backend["model"]["merges"] = [["Ġ", "a"]]
    (folder / "tokenizer.json").write_text(json.dumps(backend))
    with LLM(folder, device="cpu") as merged:
        assert merged.tokenizer.encode(" a") == [300]
        found = merged.prepare("a", SamplingParams(bad_words=["ab", "b"])).sequence.sampling.bad_words
        assert found == (word, (300, word[1]), word[1:])


def test_a_rendered_chat_gets_no_second_beginning_of_text(tmp_path):
    """The template writes it; the tokenizer adds it to raw text alone."""
    folder = write_walk(tmp_path, ["a", "b"], {"chat_template": "<more>{{ messages[0].content }}"})
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<more> $A", special_tokens=[("<more>", MORE)])
    backend.save(str(folder / "tokenizer.json"))
    with LLM(folder, device="cpu") as llm:
        chat = [{"role": "user", "content": "a"}]
        assert llm.render(chat) == llm.chat(chat, ONE).prompt_token_ids == [MORE, B - 1]
        assert asked(llm, "a") == [[MORE, B - 1]]
        bad_words = llm.prepare("a", SamplingParams(bad_words="ab")).sequence.sampling.bad_words
        assert bad_words == ((B - 1, B),), "a word is no beginning of a text"
