"""Lines in which every place holds every wrong value: each costs at most itself, and each has its record."""

import json
from dataclasses import fields

import pytest

from qwen3 import SamplingParams
from qwen3.cli.jsonl import request

TALK = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "t"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "content": "r", "tool_call_id": "1"},
]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BASES = [
    {"messages": TALK, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False, "style": "s"}, "id": 1},
    {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": TALK[:2]}},
    {"prompt": [1, 2], "logit_bias": {"5": 1.5}, "stop": ["a", "b"], "stop_token_ids": [5], "bad_words": ["a"]},
    {"prompt": "a", "raw": True, "metadata": {"a": 1}, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
]
WRONG = [
    '""', '"x"', '"false"', '"1"', "[]", "[1]", "[null]", '["x"]', "[[1]]", '[{"a": 1}]', "{}", '{"a": 1}', "true",
    "false", "null", "-1", "0", "0.5", "1e10", str(10**9), str(2**31), str(2**63), str(10**30), "NaN", "-Infinity",
    "1e400", "9" * 5000,
    '"\\ud800"', '"a\\u0000b"', '"\\u001b]0;t\\u0007\\u009b\\u2028\\u202e"', json.dumps("y" * 20_000),
    "[" * 900 + "]" * 900, "[" * 5000 + "]" * 5000, '{"a": 1, "a": 2}', "[" + "1," * 3000 + "1]",
]  # fmt: skip
KEYS = sorted({field.name for field in fields(SamplingParams)} | request._KNOWN)


def places(value, path=()):
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def planted(base, path, text):
    value = json.loads(json.dumps(base))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = "@here"
    return json.dumps(value).replace('"@here"', text).encode()


def wrong_lines():
    lines = [text.encode() for text in WRONG]
    lines += [planted({"prompt": "a"}, (key,), text) for key in KEYS for text in WRONG]
    return lines + [planted(base, path, text) for base in BASES for path in places(base) for text in WRONG]


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_each_line_has_its_record(run, records, step):
    lines = wrong_lines()[::step]
    good = {"prompt": "good", "id": "good", "max_new_tokens": 4}
    for begin in range(0, len(lines), 500):
        part = lines[begin : begin + 500]
        code, out, err = run([good, *part, good], "--output", "out.jsonl", "--max-model-len", 64)
        got = records()
        assert code == 2 and out == b"" and len(got) == len(part) + 2
        assert got[0] == got[-1] and got[0]["generated_tokens"] == 4
        for number, record in enumerate(got, 1):
            assert ("error" in record) != ("text" in record), record
            assert "error" not in record or (record["line"] == number and len(record["error"]) < 700), number
            assert "cannot be answered" not in record.get("error", ""), (part[number - 2][:200], record["error"])
        assert all(line.isprintable() for line in err.splitlines()) and "Traceback" not in err
        assert sum("error" in record for record in got) == err.count("error: in.jsonl line ")
