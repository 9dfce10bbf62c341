"""What a line may say, under which names, and that each of it arrives; nothing is accepted and ignored."""

import json
import math
import re
from dataclasses import fields
from types import SimpleNamespace

import pytest

from qwen3 import SamplingParams
from qwen3.cli.jsonl import request
from qwen3.cli.jsonl.request import answer, model_names, prepare
from qwen3.cli.options import PromptOptions
from qwen3.engine.request import TokenLogprob

from .conftest import END_OF_TURN

TALK = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
NO_OPTIONS = PromptOptions()
DEFAULTS = SamplingParams(temperature=0, max_new_tokens=8, seed=1, stop=("z",))


@pytest.fixture
def ask(llm, monkeypatch):
    """Prepares a line -> (what its record repeats, parameters and ids as the engine gets them, or None and why)."""

    def ask(line, options=NO_OPTIONS):
        got = []
        prepare_one = type(llm).prepare
        monkeypatch.setattr(llm, "prepare", lambda ids, params: got.append(params) or prepare_one(llm, ids, params))
        kept, _, made = prepare(llm, line if isinstance(line, bytes) else json.dumps(line).encode(), DEFAULTS, options)
        if isinstance(made, str):
            return json.loads(kept), None, made
        return json.loads(kept), got[0], made.sequence.token_ids

    return ask


# A value of each parameter that is neither its own default nor that of the command line above.
VALUES = {
    "temperature": 0.5, "top_k": 3, "top_p": 0.5, "min_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": 0.5,
    "frequency_penalty": 0.5, "max_new_tokens": 3, "stop": ["q"], "stop_token_ids": [5], "ignore_eos": True, "seed": 5,
    "logprobs": 2, "min_tokens": 2, "logit_bias": {"5": 1.5}, "bad_words": ["q"], "no_repeat_ngram_size": 2,
    "include_stop_str_in_output": True, "skip_special_tokens": False,
}  # fmt: skip
NAMES = [field.name for field in fields(SamplingParams)]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_a_key_of_the_same_name(ask, name):
    value, wanted = VALUES[name], VALUES[name]
    if isinstance(value, list):
        wanted = tuple(value)
    if isinstance(value, dict):
        wanted = {int(key): bias for key, bias in value.items()}
    assert getattr(DEFAULTS, name) != wanted
    _, params, _ = ask({"prompt": "a", name: value})
    assert getattr(params, name) == wanted
    others = [other for other in NAMES if other != name]
    assert [getattr(params, other) for other in others] == [getattr(DEFAULTS, other) for other in others]


@pytest.mark.parametrize("name", sorted(request._KNOWN - {"id", "custom_id", "prompt"}))
def test_null_is_not_said(ask, name):
    plain = ask({"prompt": "a"})
    assert ask({"prompt": "a", name: None}) == plain


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [{"a": 1}, [[]], "x" * 3, -(10**30), 10**400, [None], {"1": "x"}])
def test_a_wrong_value_costs_its_line_one_message(ask, name, value):
    if (name, value) in (("stop", "xxx"), ("bad_words", "xxx")):
        return
    _, params, error = ask({"prompt": "a", name: value})
    assert params is None and name in error and "\n" not in error and len(error) < 300


@pytest.mark.parametrize(
    "line, wanted",
    [
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_tokens": 3, "max_completion_tokens": 3, "max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logprobs": False}, {"logprobs": None}),
        ({"logprobs": False, "top_logprobs": 0}, {"logprobs": None}),
        ({"logprobs": 3}, {"logprobs": 3}),
        ({"stop": "x"}, {"stop": ("x",)}),
    ],
)
def test_openais_names(ask, line, wanted):
    _, params, _ = ask({"prompt": "a"} | line)
    assert {name: getattr(params, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "line, named",
    [
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_tokens"),
        ({"max_completion_tokens": 3, "max_tokens": 4}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_new_tokens"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs"),
        ({"n": 2}, '"n" is 2'),
        ({"n": True}, '"n" is True'),
        ({"stream": True}, "stream"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"functions": [1]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"stream_options": {}}, "stream_options"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"tempreature": 1}, "'tempreature': did you mean 'temperature'"),
        ({"__proto__": 1}, "unknown field '__proto__': what is your own goes into \"metadata\""),
        ({"input": "x"}, "'input': did you mean 'prompt'"),
        ({"conversations": []}, "'conversations': did you mean 'messages'"),
        ({"stop_strings": "x"}, "'stop_strings': did you mean 'stop'"),
        ({"answer": "x"}, "'answer': what is your own"),
        ({"x" * 100_000: 1}, "unknown field"),
        ({"": 1}, "unknown field ''"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(ask, line, named):
    kept, params, error = ask({"prompt": "a", "id": 7} | line)
    assert params is None and named in error and len(error) < 300 and kept == {"id": 7}


@pytest.mark.parametrize("name", sorted(request._WITHOUT_EFFECT))
def test_what_has_no_effect_is_accepted(ask, name):
    plain = ask({"prompt": "a"})
    assert ask({"prompt": "a", name: "x"})[1:] == plain[1:]


@pytest.mark.parametrize("name", sorted(request._ONLY))
def test_the_value_that_asks_for_nothing_is_accepted(ask, name):
    assert ask({"prompt": "a", name: request._ONLY[name]}) == ask({"prompt": "a"})


def ids(llm, **rendering):
    return llm.render(TALK, **rendering)


def test_messages_and_all_that_their_template_needs(ask, llm):
    for line, rendering in (
        ({}, {}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"chat_template_kwargs": {"style": "s"}}, {"style": "s"}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"tools": [TOOL]}, {"tools": [TOOL]}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tools": [TOOL]}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
    ):
        kept, _, got = ask({"messages": TALK, "id": "x"} | line)
        assert kept == {"id": "x", "messages": TALK} | line, "the record says how the prompt was made"
        assert got == ids(llm, **rendering)
        assert not rendering or got != ids(llm)
        prompted = ask({"prompt": "hi"} | line)
        assert prompted[2] == got
    assert ask({"messages": TALK, "tools": [TOOL], "tool_choice": "none"})[2] == ids(llm)


def test_the_end_of_turn_ends_the_answers_of_chats_alone(llm):
    end = llm.tokenizer.token_to_id(END_OF_TURN)
    assert end is not None
    for line, is_chat in (({"messages": TALK}, True), ({"prompt": "a"}, True), ({"prompt": "a", "raw": True}, False)):
        made = prepare(llm, json.dumps(line).encode(), DEFAULTS, PromptOptions())[2]
        assert (end in made.sequence.stop_ids) == is_chat


def test_a_line_decides_before_the_command_line_does(ask, llm):
    quiet = PromptOptions(thinking=False)
    assert ask({"messages": TALK}, quiet)[2] == ids(llm, enable_thinking=False) != ids(llm)
    assert ask({"messages": TALK, "enable_thinking": True}, quiet)[2] == ids(llm, enable_thinking=True)
    on = {"messages": TALK, "chat_template_kwargs": {"enable_thinking": True}}
    assert ask(on, quiet)[2] == ids(llm, enable_thinking=True)
    assert ask({"prompt": "hi", "raw": True})[2] == llm.tokenizer.encode("hi")
    assert ask({"prompt": "hi", "raw": False}, PromptOptions(raw=True))[2] == ids(llm)
    named = {"prompt": "a<|x|>", "raw": True}
    assert ask(named | {"sanitize_control_tokens": True})[2] == ask(named, PromptOptions(sanitize=True))[2]
    system = [{"role": "system", "content": "s"}, *TALK]
    assert ask({"prompt": "hi", "system": "s"}, PromptOptions(system="other"))[2] == llm.render(system)


def test_a_prompt_of_token_ids(ask):
    assert ask({"prompt": [5, 6, 7]})[0] == {"prompt": [5, 6, 7]}
    assert ask({"prompt": [5, 6, 7]})[2] == [5, 6, 7]
    # OpenAI's completions take lists of prompts: one is one.
    assert ask({"prompt": [[5, 6, 7]]})[::2] == ({"prompt": [[5, 6, 7]]}, [5, 6, 7])
    assert ask({"prompt": ["hi"]})[2] == ask({"prompt": "hi"})[2]


@pytest.mark.parametrize(
    "line, named",
    [
        ({}, "either"),
        ({"prompt": "a", "messages": TALK}, "either"),
        ({"prompt": ""}, "empty"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"]}, "list of 2 prompts: give each a line of its own"),
        ({"prompt": [[1], [2], [3]]}, "list of 3 prompts"),
        ({"prompt": [""]}, "empty"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[[1]]]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [320]}, "prompt"),
        ({"prompt": [1] * 256}, "256 tokens"),
        ({"prompt": "x" * 300}, "3[0-9][0-9] tokens"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": [1], "tools": [TOOL]}, "token ids"),
        ({"prompt": [1], "system": "s"}, "token ids"),
        ({"prompt": "a", "raw": True, "tools": [TOOL]}, "tools needs a chat template"),
        ({"prompt": "a", "raw": True, "system": "s"}, "system"),
        ({"prompt": "a", "raw": "true"}, "raw"),
        ({"prompt": "a", "system": 5}, "system"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [5]}, "messages"),
        ({"messages": TALK, "raw": True}, "messages"),
        ({"messages": TALK, "system": "s"}, "messages"),
        ({"messages": TALK, "tools": 5}, "tools"),
        ({"messages": TALK, "tools": ["f"]}, "tools"),
        ({"messages": TALK, "tool_choice": "required"}, "tool_choice"),
        ({"messages": TALK, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"messages": TALK, "enable_thinking": "false"}, "enable_thinking"),
        ({"messages": TALK, "chat_template_kwargs": {"enable_thinking": "false"}}, "enable_thinking"),
        ({"messages": TALK, "add_generation_prompt": "false"}, "add_generation_prompt"),
        ({"messages": TALK, "continue_final_message": 5}, "continue_final_message"),
        ({"prompt": "a", "sanitize_control_tokens": 1}, "sanitize_control_tokens"),
        ({"messages": TALK, "chat_template_kwargs": {"sanitize_control_tokens": False}}, "sanitize_control_tokens"),
        ({"messages": TALK, "chat_template_kwargs": {"styel": 1}}, "styel"),
        ({"messages": TALK, "chat_template_kwargs": [1]}, "chat_template_kwargs"),
        *(
            ({"messages": TALK, "chat_template_kwargs": {name: 1}}, f"the chat template has no variable '{name}'")
            for name in ("self", "llm", "options", "params", "rendering", "variables")
        ),
        ({"messages": TALK, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.*messages"),
        ({"messages": TALK, "chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.*tools"),
        (
            {"messages": TALK, "chat_template_kwargs": {"enable_thinking": True}, "enable_thinking": False},
            "enable_thinking",
        ),
    ],
)
def test_a_bad_prompt_costs_its_line(ask, line, named):
    kept, params, error = ask(line | {"id": 1})
    assert params is None and re.search(named, error) and "\n" not in error and kept == {"id": 1}
    assert "cannot be answered" not in error


def enveloped(**changes):
    body = {"model": "gpt", "messages": TALK, "max_tokens": 3, "temperature": None}
    return {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body} | changes


def test_lines_of_openais_batch_files(ask, llm):
    kept, params, got = ask(enveloped())
    assert (kept, params.max_new_tokens, got) == ({"custom_id": "a", "messages": TALK}, 3, ids(llm))
    assert params.temperature == 0
    text = {"prompt": "hi", "max_tokens": 2}
    assert ask(enveloped(url="/v1/completions", body=text))[2] == llm.tokenizer.encode("hi")
    assert ask({"body": text})[2] == ids(llm), "no address: a line of ours"
    assert ask({"custom_id": 5, "prompt": "hi"})[0] == {"custom_id": 5, "prompt": "hi"}


@pytest.mark.parametrize(
    "line, named",
    [
        (enveloped(url="/v1/embeddings"), "url"),
        (enveloped(url=["/v1/completions"]), "url"),
        (enveloped(method="GET"), "method"),
        (enveloped(body=None), "body"),
        (enveloped(body="x"), "body"),
        (enveloped(url="/v1/completions"), "needs .prompt"),
        (enveloped(body={"prompt": "hi"}), "needs .messages"),
        (enveloped(prompt="hi"), "beside"),
        (enveloped(body={"messages": TALK, "nonsense": 1}), "nonsense"),
        (enveloped(body={"messages": TALK, "body": {}}), "unknown field 'body'"),
    ],
)
def test_a_bad_line_of_openais_batch_files(ask, line, named):
    _, params, error = ask(line)
    assert params is None and re.search(named, error) and "cannot be answered" not in error


def test_whatever_is_raised_stays_with_its_line(ask, llm, monkeypatch):
    for error in (RecursionError("deep"), MemoryError(), TypeError("a\nb"), OverflowError("big")):
        monkeypatch.setattr(llm, "render", lambda *a, error=error, **k: (_ for _ in ()).throw(error))
        _, params, message = ask({"messages": TALK})
        assert params is None and type(error).__name__ in message and "\n" not in message


def test_deep_values_reach_the_record_or_cost_their_line(ask):
    for depth in range(10, 3000, 90):
        line = b'{"prompt": "a", "id": ' + b"[" * depth + b"]" * depth + b"}"
        kept, params, made = ask(line)
        assert (params is None and isinstance(made, str)) or kept["id"] is not None
    assert ask(b'{"prompt": "a", "id": ' + b"[" * 100 + b"]" * 100 + b"}")[1] is not None


def test_an_answer_in_a_record(llm):
    top = ((7, -0.5), (8, -math.inf))
    done = SimpleNamespace(
        text="x", finish_reason="stop", stop_reason="q", error=None, logprobs=[TokenLogprob(7, -0.5, top)],
        metrics=SimpleNamespace(prompt_tokens=3, generated_tokens=4),
    )  # fmt: skip
    values = answer(llm, done)
    token = {"token_id": 7, "token": llm.tokenizer.decode([7]), "logprob": -0.5}
    other = {"token_id": 8, "token": llm.tokenizer.decode([8]), "logprob": -9999.0}
    assert values == {
        "text": "x", "finish_reason": "stop", "stop_reason": "q", "prompt_tokens": 3, "generated_tokens": 4,
        "logprobs": [token | {"top": [token, other]}],
    }  # fmt: skip
    done.stop_reason, done.logprobs, done.finish_reason, done.error = None, None, "error", "not finite"
    assert answer(llm, done).keys() == {"text", "finish_reason", "error", "prompt_tokens", "generated_tokens"}


def test_the_names_of_the_model(llm):
    parts = llm.folder.parts
    assert {"x/y", str(llm.folder), parts[-1], "/".join(parts[-2:])} <= model_names(llm, "x/y")
