"""Why an answer ends: end-of-text ids of every file, stop tokens, stop strings, its longest; what its text holds."""

import asyncio
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from qwen3 import LLM, BrokenOff, Qwen3Error, SamplingParams

from .rigged import CONTEXT, END, MORE, write_walk

GREEDY = SamplingParams(temperature=0, max_new_tokens=9)
B = 65  # the token of "b" in write_walk's tokenizer
WALK = ["a", "b", END, "c", MORE, "d"]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
CHAT = [{"role": "user", "content": "xa"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = {"eos_token": "<end>", "chat_template": TEMPLATE}
    return write_walk(tmp_path_factory.mktemp("walk"), WALK, tokenizer)


@pytest.fixture(scope="module")
def llm(folder):
    with LLM(folder, device="cpu") as llm:
        yield llm


def told(answer):
    return answer.text, answer.finish_reason, answer.stop_reason


def ended(llm, prompt="a", **params):
    """The text of an answer, why it ended and by what; a stream tells the same."""
    params = replace(GREEDY, **params)
    (answer,) = llm.generate(prompt, params)
    stream = llm.stream(prompt, params)
    assert stream.completion is None
    assert "".join(stream) == answer.text and told(stream.completion) == told(answer)
    assert stream.completion.token_ids == answer.token_ids
    return told(answer)


def test_a_chat_ends_at_the_end_of_turn_that_the_tokenizer_alone_knows(llm):
    ids = llm.render(CHAT)
    for answer in (llm.chat(CHAT, GREEDY), *llm.generate([ids, ids], GREEDY)):
        assert told(answer) == ("b", "stop", None) and len(answer.token_ids) == 2
    assert "".join(llm.stream(ids, GREEDY)) == "b"
    assert told(llm.chat(CHAT, replace(GREEDY, ignore_eos=True))) == ("bcdabc", "length", None)
    # A raw prompt ends where transformers ends it: at the ids of the model's two files.
    assert ended(llm) == ("bcdabc", "length", None)
    assert ended(llm, prompt=[*map(int, ids)])[1] == "length"


def test_the_end_of_text_ids_of_both_files_end_every_answer(tmp_path):
    for name, values in (("config.json", {}), ("generation_config.json", {"eos_token_id": [300, END]})):
        folder = write_walk(tmp_path / name, WALK, eos_token_id=END if not values else 300)
        if values:
            (folder / name).write_text(json.dumps(values))
        with LLM(folder, device="cpu") as llm:
            assert ended(llm) == ("b", "stop", None)
            assert ended(llm, ignore_eos=True) == ("bcdabc", "length", None)
            # The user's own word: it ends the answer also where the model's ids do not, and is named.
            assert ended(llm, stop="<end>") == ("b", "stop", "<end>")
            assert ended(llm, stop_token_ids=[END], ignore_eos=True) == ("b", "stop", END)
            assert ended(llm, stop_token_ids=[END]) == ("b", "stop", None)


@pytest.mark.parametrize(
    "params, expected",
    [
        ({}, ("bcdabc", "length", None)),
        ({"stop": "c"}, ("b", "stop", "c")),
        ({"stop": ["q", "cd"]}, ("b", "stop", "cd")),
        ({"stop": "<end>"}, ("b", "stop", "<end>")),
        ({"stop": "<more>"}, ("bc", "stop", "<more>")),
        ({"stop": "c<more>"}, ("b", "stop", "c<more>")),
        ({"stop": "<end>c<more>d"}, ("b", "stop", "<end>c<more>d")),
        ({"stop": "bc"}, ("", "stop", "bc")),
        ({"stop_token_ids": [END]}, ("b", "stop", END)),
        ({"stop_token_ids": [MORE, 300]}, ("bc", "stop", MORE)),
        ({"skip_special_tokens": False}, ("b<end>c<more>dab<end>c", "length", None)),
        ({"skip_special_tokens": False, "stop": "<more>"}, ("b<end>c", "stop", "<more>")),
        ({"include_stop_str_in_output": True, "stop": "<more>"}, ("bc<more>", "stop", "<more>")),
        ({"include_stop_str_in_output": True, "stop": "c"}, ("bc", "stop", "c")),
        ({"include_stop_str_in_output": True, "stop": "c<more>"}, ("bc<more>", "stop", "c<more>")),
        ({"include_stop_str_in_output": True, "stop_token_ids": [END]}, ("b", "stop", END)),
        (
            {"include_stop_str_in_output": True, "stop_token_ids": [END], "skip_special_tokens": False},
            ("b<end>", "stop", END),
        ),
        ({"stop": "b", "min_tokens": 1}, ("bcda", "stop", "b")),
        ({"stop": "b", "min_tokens": 8}, ("bcdabc", "length", None)),
    ],
)
def test_the_text_and_what_ended_it(llm, params, expected):
    assert ended(llm, **params) == expected


def test_stop_strings_of_the_model_end_answers_that_name_none(tmp_path):
    folder = write_walk(tmp_path, WALK, {})
    (folder / "generation_config.json").write_text(json.dumps({"stop_strings": ["cd", "<more>"]}))
    with LLM(folder, device="cpu") as llm:
        assert ended(llm) == ("bc", "stop", "<more>")
        assert ended(llm, stop="d") == ("bc", "stop", "d")
        assert ended(llm, stop=None) == ended(llm) and ended(llm, stop=[])[1:] == ("length", None)
    with LLM(folder, device="cpu", random_weights=True) as llm:
        assert len(llm.generate([[5]], GREEDY)[0].token_ids) == 9


def test_the_stop_tokens_of_stop_strings_are_known_to_the_engine(llm):
    """So that min_tokens holds them back as it does the model's own."""
    request = llm.prepare("a", replace(GREEDY, stop=["<end>", "x", "<more>x"], stop_token_ids=[5]))
    assert request.sequence.stop_ids == {END, 5} and request.sequence.stop_reasons == {END: "<end>", 5: 5}


def test_an_answer_without_a_limit_ends_with_the_context_or_the_cache(llm, folder):
    (answer,) = llm.generate("a", SamplingParams(temperature=0))
    assert len(answer.token_ids) == CONTEXT - 1 and answer.finish_reason == "length"
    for length, options in ((20, {"max_model_len": 20}), (32, {"num_kv_blocks": 2})):
        with LLM(folder, device="cpu", **options) as other:
            assert len(other.generate("a", SamplingParams(temperature=0))[0].token_ids) == length - 1
            # What is asked for by number and cannot be is refused.
            if "num_kv_blocks" in options:
                with pytest.raises(Qwen3Error, match="out of memory: .* 41 tokens"):
                    other.generate("a", SamplingParams(max_new_tokens=40))


def test_the_lengths_of_generation_config_hold_unless_a_request_says_another(tmp_path):
    folder = write_walk(tmp_path, WALK)

    def lengths(values, prompts=("a", "aaaa"), **params):
        (folder / "generation_config.json").write_text(json.dumps(values))
        with LLM(folder, device="cpu") as llm:
            return [len(answer.token_ids) for answer in llm.generate(list(prompts), SamplingParams(**params))]

    assert lengths({}) == [CONTEXT - 1, CONTEXT - 4]
    assert lengths({"max_new_tokens": 7}) == [7, 7] and lengths({"max_new_tokens": 7}, max_new_tokens=3) == [3, 3]
    assert lengths({"max_length": 8}) == [7, 4] and lengths({"max_length": 8}, max_new_tokens=9) == [9, 9]
    assert lengths({"max_length": 8, "max_new_tokens": 2}) == [2, 2]
    assert lengths({"max_length": 10**6}) == [CONTEXT - 1, CONTEXT - 4]
    with pytest.raises(Qwen3Error, match="prompt 1 has 4 tokens, max_length .* is 4: give max_new_tokens"):
        lengths({"max_length": 4})


def test_ids_that_the_model_does_not_know_are_refused(llm):
    for params in ({"stop_token_ids": [1, 320]}, {"logit_bias": {320: 1}}):
        with pytest.raises(Qwen3Error, match=r"320: the model knows token ids 0 to 319"):
            llm.generate("a", replace(GREEDY, **params))
        llm.check("a", replace(GREEDY, stop_token_ids=[319], logit_bias={319: 1}))


@pytest.fixture
def breaking(folder):
    """A model whose scores are not finite after "c"."""
    with LLM(folder, device="cpu", max_num_seqs=3) as llm:
        llm.model.embedding.weight.data[llm.tokenizer.encode("c")[0]] = float("nan")
        yield llm


def test_an_answer_that_breaks_off_is_an_error_that_holds_all_answers(breaking):
    short = replace(GREEDY, max_new_tokens=2)
    prompts, params = ["x", "a", "a"], [short, GREEDY, short]
    with pytest.raises(
        BrokenOff, match="1 of 3 answers broke off, the first is prompt 1: the scores of token 4 .* not finite"
    ) as caught:
        breaking.generate(prompts, params)
    first, bad, last = caught.value.completions
    assert (bad.text, bad.finish_reason, bad.stop_reason) == ("bc", "error", None) and "not finite" in bad.error
    assert told(last) == ("b", "length", None) and first.error is last.error is None and len(first.token_ids) == 2
    each = dict(breaking.generate_each(prompts, params))
    assert [each[i].error for i in range(3)] == [None, bad.error, None]
    with pytest.raises(Qwen3Error, match="broke off: the scores of token 4"):
        breaking.chat([{"role": "user", "content": "a"}], replace(GREEDY, ignore_eos=True))


def test_a_stream_that_breaks_off_raises_after_its_text(breaking):
    stream, text = breaking.stream("a", GREEDY), []
    with pytest.raises(Qwen3Error, match="the scores of token 4 .* not finite"):
        text.extend(stream)
    assert "".join(text) == "bc" and told(stream.completion) == ("bc", "error", None)

    async def read():
        pieces, text = breaking.stream_async("a", GREEDY), []
        assert pieces.completion is None

        async def gather():
            async for piece in pieces:
                text.append(piece)

        with pytest.raises(Qwen3Error, match="the scores of token 4 .* not finite"):
            await gather()
        return "".join(text), told(pieces.completion)

    assert asyncio.run(read()) == ("bc", ("bc", "error", None))


def test_a_step_that_does_not_fit_costs_only_its_own_requests(folder, monkeypatch):
    with LLM(folder, device="cpu", max_num_seqs=1) as llm:
        expected, forward = llm.generate("a", GREEDY)[0].token_ids, llm.model.layers[0].forward
        llm.reset_prefix_cache()

        def fail(*arguments):
            monkeypatch.setattr(llm.model.layers[0], "forward", forward)
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(llm.model.layers[0], "forward", fail)
        with pytest.raises(
            BrokenOff, match="1 of 2 answers broke off, the first is prompt 0: out of memory: a step of 2 tokens"
        ) as caught:
            llm.generate(["xa", "a"], GREEDY)
        bad, good = caught.value.completions
        assert (bad.text, bad.token_ids, bad.finish_reason) == ("", [], "error") and good.token_ids == expected


def test_an_asynchronous_stream_tells_how_it_ended(llm):
    async def read():
        pieces = llm.stream_async("a", replace(GREEDY, stop="c"))
        return "".join([piece async for piece in pieces]), told(pieces.completion)

    assert asyncio.run(read()) == ("b", ("b", "stop", "c"))


@pytest.mark.parametrize(
    "params, holds",
    [
        ({"logit_bias": {MORE: -100}}, lambda ids: MORE not in ids),
        ({"bad_words": "c"}, lambda ids: ids[:2] == [B, END] and ids[2] != B + 1),
        ({"bad_words": ["zz", "<end>c"]}, lambda ids: ids[:2] == [B, END] and ids[2] != B + 1),
        ({"no_repeat_ngram_size": 2}, lambda ids: len({*pairwise(ids)}) == len(ids) - 1),
        ({"presence_penalty": 100}, lambda ids: len({*ids}) == len(ids)),
        ({"min_tokens": 4, "stop_token_ids": [END]}, lambda ids: END not in ids[:4]),
        ({"min_tokens": 4, "stop": "<end>"}, lambda ids: END not in ids[:4]),
    ],
)
def test_what_changes_the_scores_changes_the_answer(llm, params, holds):
    plain = llm.generate("a", replace(GREEDY, **{k: v for k, v in params.items() if k.startswith("stop")}))[0].token_ids
    changed, beside, also = llm.generate(["a"] * 3, [replace(GREEDY, **params), GREEDY, replace(GREEDY, **params)])
    assert holds(changed.token_ids) and not holds(plain)
    assert also.token_ids == changed.token_ids and beside.token_ids == llm.generate("a", GREEDY)[0].token_ids


def test_min_tokens_holds_back_the_models_own_end(tmp_path):
    with LLM(write_walk(tmp_path, WALK, eos_token_id=END), device="cpu") as llm:
        for params in ({"min_tokens": 1}, {"min_tokens": 4}):
            ids = llm.generate("a", replace(GREEDY, **params))[0].token_ids
            assert END not in ids[: params["min_tokens"]] and ids[0] == B
        assert len(llm.generate("a", replace(GREEDY, min_tokens=1))[0].token_ids) == 2
