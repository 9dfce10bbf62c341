"""Chat templates against transformers' on Qwen's own template, and on small ones."""

import re
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from qwen3.text.tokenizer import Tokenizer

from .folders import QWEN3, auto_tokenizer, one_line, write_folder

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather <now> & "later" in a città',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ARGUMENTS = {"city": "Zürich", "days": [1, 2.5, None]}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
CONVERSATIONS = {
    "one turn": [{"role": "user", "content": "Hi <there> & 'you'"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
    "thinking in the text": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
        {"role": "user", "content": "and 2+2?"},
        {"role": "assistant", "content": "<think>\nalso easy\n</think>\n\n4"},
    ],
    "reasoning_content": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "\neasy\n"},
    ],
    "reasoning under other names": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning": "easy", "reasoning_content": None},
    ],
    "tool calls": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me look.", "reasoning_content": "call it", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"t": 21, "sky": "clear"}'},
        {"role": "tool", "content": "<b>22</b>"},
        {"role": "assistant", "content": "", "tool_calls": [CALL["function"]]},
        {"role": "tool", "content": "ok"},
    ],
}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """A small tokenizer with Qwen3's template, ours and theirs: these tests need nothing that has to be downloaded."""
    folder = write_folder(tmp_path_factory.mktemp("chats"), {"eos_token": "<|im_end|>"}, QWEN3)
    return Tokenizer.from_folder(folder), auto_tokenizer(folder)


def check_conversation(tokenizers, name, add_generation_prompt, tools, variables):
    ours, theirs = tokenizers
    arguments = dict(add_generation_prompt=add_generation_prompt, tools=tools, **variables)
    text = ours.apply_chat_template(CONVERSATIONS[name], **arguments)
    assert text == theirs.apply_chat_template(CONVERSATIONS[name], tokenize=False, **arguments)
    ids = theirs.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=False, **arguments)
    assert ours.encode_chat(CONVERSATIONS[name], **arguments) == ids


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [], [TOOL, TOOL]], ids=["no tools", "empty tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}], ids=str)
def test_chat_template_like_transformers(chats, name, add_generation_prompt, tools, variables):
    check_conversation(chats, name, add_generation_prompt, tools, variables)


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no tools", "tools"])
def test_chats_of_qwen_like_transformers(qwen, theirs, name, tools):
    check_conversation((qwen, theirs), name, True, tools, {})


def test_chat_template_of_qwen(chats):
    qwen = chats[0]
    text = qwen.apply_chat_template([{"role": "user", "content": "Hi"}], enable_thinking=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    text = qwen.apply_chat_template(CONVERSATIONS["tool calls"], tools=[TOOL])
    assert 'Weather <now> & \\"later\\" in a città' in text


HELPERS = {
    "tojson": "{{ messages | tojson }}|{{ '<é&\\'>' | tojson }}",
    "tojson options": "{{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=true) }}"
    "|{{ 'é' | tojson(ensure_ascii=true) }}|{{ [1, 2] | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
    "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "generation": "{% set x = 'out' %}{% for m in messages %}"
    "{% generation %}{% set x = m.content %}[{{ x }}{{ loop.index }}]{% endgeneration %}{{ x }}{% endfor %}",
    "blocks are trimmed": "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "variables": "{{ mood }}{{ extra.deep[1] }}{{ tools }}{{ documents is none }}{{ absent is defined }}{{ absent }}",
    "named tokens": "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}|{{ add_generation_prompt }}",
    "null keys": "{{ messages[0].name is defined }}{{ messages[0].items() | list }}",
    "reasoning names": "{{ messages[1] | tojson }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "dict": "{{ dict(a=1) }}",
    "no escaping": "{{ messages[0].content }}",
}


# Everything that a template is given must reach the prompt, or is refused.
ALL = "|{% for m in messages %}{{ m.content }}{% endfor %}{{ mood }}{{ extra }}"

# Templates to which transformers gives another text before 5.21: it leaves reasoning and null keys as they are.
SINCE_5_21 = ("tojson", "null keys", "reasoning names")


@pytest.mark.parametrize("name", HELPERS)
def test_template_helpers_like_transformers(tmp_path, name):
    if name in SINCE_5_21 and tuple(map(int, version("transformers").split(".")[:2])) < (5, 21):
        pytest.skip("transformers 5.21 or later writes messages as this project does")
    bos = {"__type": "AddedToken", "content": "<s>"}
    folder = write_folder(tmp_path, {"bos_token": bos, "eos_token": "</s>", "chat_template": HELPERS[name] + ALL})
    messages = [
        {"role": "user", "content": "<b>&\"'é", "name": None},
        {"role": "assistant", "content": "ok", "reasoning": "r"},
    ]
    arguments = {"add_generation_prompt": True, "tools": None, "mood": "😀<", "extra": {"deep": [1, "two"]}}
    expected = auto_tokenizer(folder).apply_chat_template(messages, tokenize=False, **arguments)
    assert Tokenizer.from_folder(folder).apply_chat_template(messages, **arguments) == expected != ""


def render(folder: Path, template: str, **arguments) -> str:
    """What a template writes before the only message."""
    template += "|{{ messages[0].content }}"
    tokenizer = Tokenizer.from_folder(write_folder(folder, {"chat_template": template}))
    return tokenizer.apply_chat_template([{"role": "user", "content": "<é>"}], **arguments).removesuffix("|<é>")


def test_template_helpers_alone(tmp_path):
    assert render(tmp_path, "{{ messages[0] | tojson }}") == '{"role": "user", "content": "<é>"}'
    assert render(tmp_path, "{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"
    assert render(tmp_path, "a{% generation %}b{% endgeneration %}c") == "abc"
    assert render(tmp_path, "{{ mood }}", mood="good") == "good"
    assert render(tmp_path, "{{ eos_token }}", eos_token="mine") == "mine"


def test_the_prompt_opens_the_answer_unless_it_is_told_not_to(tmp_path):
    template = "{{ add_generation_prompt }}"
    assert render(tmp_path, template) == render(tmp_path, template, add_generation_prompt=True) == "True"
    assert render(tmp_path, template, add_generation_prompt=False) == "False"
    assert "true or false" in one_line(lambda: render(tmp_path, template, add_generation_prompt="no"))


def test_a_rendering_sees_one_time(tmp_path):
    times = "{{ strftime_now('%f') }}{% for i in range(99) %}{% endfor %}-{{ strftime_now('%f') }}"
    first, second = render(tmp_path, times).split("-")
    assert first == second


def test_strftime_now(tmp_path):
    before = datetime.now()
    text = render(tmp_path, "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}")
    assert before.replace(microsecond=0) <= datetime.strptime(text, "%Y-%m-%d %H:%M:%S") <= datetime.now()


MESSAGES = [{"role": "user", "content": "Hi"}]


HI = "{{ messages[0].content }}"
NAMED = [
    {"name": "default", "template": HI + "plain{{ tools }}"},
    {"name": "tool_use", "template": HI + "with {{ tools | length }}"},
]
WHICH = {
    "list": ({"chat_template": NAMED}, None, ["HiplainNone", "Hiwith 0", "Hiwith 1"]),
    "list without tool_use": ({"chat_template": NAMED[:1]}, None, ["HiplainNone", "Hiplain[]", "Hiplain[{}]"]),
    "object": ({"chat_template": {"default": HI + "{{ tools }}"}}, None, ["HiNone", "Hi[]", "Hi[{}]"]),
    "string": ({"chat_template": HI + "{{ tools }}"}, None, ["HiNone", "Hi[]", "Hi[{}]"]),
    "file over string": ({"chat_template": "text"}, HI + "f{{ tools }}", ["HifNone", "Hif[]", "Hif[{}]"]),
    "file over list": ({"chat_template": NAMED}, HI + "f{{ tools }}", ["HifNone", "Hif[]", "Hif[{}]"]),
    "file alone": ({}, HI + "é{{ tools }}", ["HiéNone", "Hié[]", "Hié[{}]"]),
}


@pytest.mark.parametrize("name", WHICH)
def test_which_template(tmp_path, name):
    config, jinja, expected = WHICH[name]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, config, jinja))
    assert tokenizer.has_chat_template
    assert [tokenizer.apply_chat_template(MESSAGES, tools=tools) for tools in (None, [], [{}])] == expected


@pytest.mark.parametrize("name", WHICH)
def test_which_template_says_transformers(tmp_path, name):
    config, jinja, expected = WHICH[name]
    theirs = auto_tokenizer(write_folder(tmp_path, config, jinja))
    assert [theirs.apply_chat_template(MESSAGES, tools=t, tokenize=False) for t in (None, [], [{}])] == expected


def test_template_file_without_tokenizer_config(tmp_path):
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, None, "\ufefffile " + HI))
    assert tokenizer.apply_chat_template(MESSAGES) == "file Hi"


def test_the_messages_of_the_caller_stay_as_they_are(tmp_path):
    messages = [{"role": "user", "content": "Hi", "reasoning": "r", "name": None}]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, {"chat_template": HI + "{{ tools }}"}))
    tokenizer.apply_chat_template(messages, tools=[TOOL])
    assert messages == [{"role": "user", "content": "Hi", "reasoning": "r", "name": None}]


def test_content_may_be_absent_beside_tool_calls(tmp_path):
    template = "{{ messages[0].tool_calls[0].function.name + messages[0].content }}"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, {"chat_template": template}))
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        assert tokenizer.apply_chat_template([message | {"tool_calls": [CALL]}]) == "get_weather"


@pytest.mark.parametrize(
    "template, said",
    [
        ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{{ nothing() }}", "'nothing' is undefined"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__ }}{{ raise_exception.__globals__.x }}", "unsafe"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{% generation %}", "TemplateSyntaxError"),
        ("\x1b]0;title\x07{{ raise_exception('\x1b[2J') }}", "cannot render these messages: TemplateError: \\x1b[2J"),
    ],
)
def test_a_template_that_raises(tmp_path, template, said):
    assert said in one_line(lambda: render(tmp_path, template))


def test_no_template_or_none_named_default(tmp_path):
    plain = Tokenizer.from_folder(write_folder(tmp_path / "none", {}))
    assert not plain.has_chat_template
    assert re.search(r"none: .*no chat template.*--raw", one_line(lambda: plain.apply_chat_template(MESSAGES)))
    named = {"chat_template": [{"name": "rag", "template": "x"}]}
    named = Tokenizer.from_folder(write_folder(tmp_path / "named", named))
    assert "rag" in one_line(lambda: named.apply_chat_template(MESSAGES))


@pytest.fixture
def chat(tmp_path):
    return Tokenizer.from_folder(
        write_folder(tmp_path / "chat", {"chat_template": HI + "{{ mood }}"})
    ).apply_chat_template


@pytest.mark.parametrize(
    "messages, said",
    [
        ("Hi", "list"),
        ([], "at least one"),
        ({"role": "user", "content": "Hi"}, "list"),
        (["Hi"], "messages[0] is a str"),
        ([*MESSAGES, [*MESSAGES]], "messages[1] is a list"),
        ([{"content": "Hi"}], "messages[0] has no role"),
        ([{"role": None, "content": "Hi"}], "messages[0] has no role"),
        ([{"role": "user"}], "messages[0] has no content"),
        ([{"role": "user", "content": None}], "messages[0] has no content"),
        ([{"role": "user", "content": b"Hi"}], "messages[0] can hold JSON values only"),
    ],
)
def test_malformed_messages(chat, messages, said):
    assert said in one_line(lambda: chat(messages))


def test_malformed_tools_and_variables(chat):
    assert "tools[0] is a function" in one_line(lambda: chat(MESSAGES, tools=[one_line]))
    assert "tools is a dict" in one_line(lambda: chat(MESSAGES, tools=TOOL))
    assert "JSON values only" in one_line(lambda: chat(MESSAGES, tools=[{"f": one_line}]))
    assert "JSON values only" in one_line(lambda: chat(MESSAGES, mood=open))
