"""Messages as clients write them: what is taken, what a template gets, and what is refused because it would be lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.errors import Qwen3Error
from qwen3.text.template import ChatTemplate
from qwen3.text.tokenizer import Tokenizer

from .folders import QWEN3, auto_tokenizer, one_line, write_folder

# Prints everything: roles, texts, tool calls, tools.
ALL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}"
    "{% for k, v in c.function.arguments | items %} {{ k }}={{ v }}{% endfor %}]{% endfor %}{% endfor %}"
    "{{ tools or '' }}{% if add_generation_prompt %}<go>{% endif %}"
)
HI, OK = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ok"}


WORDS = ["role", "content", "type", "text", "function", "name", "arguments", "tool_calls", "reasoning"]


def render(messages, template=ALL, tools=None, add_generation_prompt=False, continue_final_message=False, **variables):
    chat = ChatTemplate({"default": template}, {"eos_token": "</s>"}, "m")
    return chat.render(messages, tools, variables, add_generation_prompt, continue_final_message)


def call(arguments, **more):
    function = {"name": "f"} | ({} if arguments is ... else {"arguments": arguments})
    return {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function} | more]}


def called(arguments, content=None):
    calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
    return [HI, {"role": "assistant", "content": content, "tool_calls": calls}]


CALLS = "{% for m in messages %}|{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
# As DeepSeek's: arguments are added to a text, and an answer without content is no turn.
JOINS = (
    CALLS + "{{ '<' + c.function.arguments + '>' }}{% endfor %}{% if m.content is not none %}!{% endif %}{% endfor %}"
)
PRINTS = CALLS + "<{{ c.function.arguments }}>{% endfor %}{% endfor %}"
DUMPS = CALLS + "<{{ c.function.arguments | tojson }}>{% endfor %}{% endfor %}"
GOES_THROUGH = (
    CALLS + "{% for k, v in c.function.arguments | items %}<{{ k }}={{ v }}>{% endfor %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("arguments", ['{"a":1}', {"a": 1}])
def test_arguments_of_a_call_are_spelled_as_the_template_reads_them(arguments):
    as_text = arguments if isinstance(arguments, str) else '{"a": 1}'
    assert render(called(arguments), JOINS) == f"|Hi!|<{as_text}>"
    assert render(called(arguments, ""), JOINS) == f"|Hi!|<{as_text}>!", "an empty text is what the client said"
    assert render(called(arguments), PRINTS) == f"|Hi|<{as_text}>", "not as Python prints it"
    assert render(called(arguments), DUMPS) == '|Hi|<{"a": 1}>'
    assert render(called(arguments), GOES_THROUGH) == "|Hi|<a=1>"
    quoted = [{"role": "user", "content": "{'a': 1} None"}, *called(arguments)[1:]]
    assert render(quoted, DUMPS) == """|{'a': 1} None|<{"a": 1}>""", "the user's text is no sign"
    if isinstance(arguments, str):
        assert render(called(arguments, "x"), PRINTS) == f"|Hi|x<{as_text}>"
    with pytest.raises(Qwen3Error, match="in no spelling"):
        render(called(arguments), CALLS + "{{ raise_exception('in no spelling') }}{% endfor %}{% endfor %}")


def test_no_content_beside_calls_is_never_printed_as_none():
    for template in (
        ALL,
        "{% for m in messages %}{{ '|' ~ m.content }}{% for c in m.tool_calls or [] %}{{ c }}{% endfor %}{% endfor %}",
    ):
        assert "None" not in render(called({"a": 1}), template)
        assert "None" in render([HI | {"content": "None"}, called({"a": 1})[1]], template)
    assert render([*called({"a": 1}), {"role": "tool", "content": None}]) == "<user>Hi<assistant>[f a=1]<tool>"


def test_an_answer_of_reasoning_alone_can_be_continued():
    messages = [HI, {"role": "assistant", "content": None, "reasoning": "hm"}]
    assert render(messages, CALLS + "{% endfor %}{% endfor %}", continue_final_message=True) == "|Hi|"


def test_lost_calls_are_seen_in_either_spelling():
    for arguments in ('{"a": 1}', {"a": 1}):
        lost = [
            *called(arguments),
            HI,
            {"role": "assistant", "content": "", "tool_calls": called(arguments)[1]["tool_calls"]},
        ]
        with pytest.raises(Qwen3Error, match=r"tool call of messages\[3\]"):
            render(lost, JOINS.replace("m.tool_calls or []", "(m.tool_calls or [] if loop.index < 3 else [])"))


class Dumped:
    """A message as OpenAI's client returns it."""

    def model_dump(self):
        return {"role": "assistant", "content": "ok", "refusal": None, "tool_calls": None, "annotations": []}


@pytest.mark.parametrize(
    "message, text",
    [
        ({"role": "user", "content": ""}, "<user>"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}]}, "<user>a"),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}, "b"]}, "<user>a\nb"),
        ({"role": "assistant", "content": [{"type": "output_text", "text": "a"}, {"text": ""}]}, "<assistant>a\n"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, "<assistant>no"),
        ({"role": "developer", "content": "a"}, "<system>a"),
        ({"role": "user", "content": "a", "name": "Bob", "tool_calls": []}, "<user>a"),
        ({"role": "user", "content": "a", "id": 7, "weight": 0, "audio": None, "prefix": False}, "<user>a"),
        ({"role": "tool", "content": "21", "tool_call_id": "x"}, "<tool>21"),
        ({"role": "assistant", "content": None, "reasoning": "hm"}, "<assistant>"),
        (Dumped(), "<assistant>ok"),
        (call({"a": 1}), "<assistant>[f a=1]"),
        (call('{"a": 1, "b": [null]}'), "<assistant>[f a=1 b=[None]]"),
        (call("", id="x"), "<assistant>[f]"),
        (call(None), "<assistant>[f]"),
        (call(...), "<assistant>[f]"),
    ],
)
def test_messages_as_clients_write_them(message, text):
    assert render([HI, message]) == "<user>Hi" + text


@pytest.mark.parametrize(
    "message, said",
    [
        ({"role": "user", "content": 5}, "messages[1].content is 5: it must be text or a list of text parts"),
        ({"role": "user", "content": {"text": "a"}}, "messages[1].content is {'text': 'a'}"),
        ({"role": "user", "content": []}, "messages[1] has no content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "[0] has the type 'image_url'",
        ),
        ({"role": "user", "content": ["a", {"type": "text", "txt": "a"}]}, "messages[1].content[1] has no text"),
        ({"role": "user", "content": [["a"]]}, "messages[1].content[0] is ['a']"),
        (
            {"role": "asistant", "content": "a"},
            "the role 'asistant', which the chat template does not know: did you mean",
        ),
        ({"role": "human", "content": "a"}, "'human', which the chat template does not know: use one of system, user"),
        ({"role": "\x1b[2J", "content": "a"}, "the role '\\x1b[2J'"),
        ({"role": 1, "content": "a"}, "messages[1] has no role"),
        ({"role": "assistant", "content": "a", "tool_calls": "f"}, "messages[1].tool_calls is 'f'"),
        ({"role": "assistant", "content": "a", "tool_calls": ["f"]}, "messages[1].tool_calls[0] is 'f'"),
        (
            {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": 1}}]},
            "tool_calls[0] is {'function'",
        ),
        (call([1]), "messages[1].tool_calls[0] has the arguments [1]"),
        ({"role": "assistant", "content": "a", "reasoning": ["x"]}, "messages[1] has reasoning ['x']"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[1] has no content"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f"}}, "the old form: give tool_calls"),
        ({"role": "user", "content": "\ud800"}, "messages[1] holds a lone surrogate"),
        ({"role": "user", "content": {1, 2}}, "messages[1] can hold JSON values only"),
        (Dumped, "messages[1] cannot be read as a message: TypeError"),
    ],
)
def test_messages_that_cannot_be_meant(message, said):
    assert said in one_line(lambda: render([HI, message]))


def test_a_nesting_too_deep_for_json_is_one_line():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for arguments in ({"messages": [HI | {"x": deep}]}, {"messages": [HI], "tools": [{"x": deep}]}):
        assert "JSON values only" in one_line(lambda arguments=arguments: render(**arguments))


def test_arguments_that_are_no_object_stay_text():
    template = "{{ messages[1].tool_calls[0].function.arguments }}{{ messages[0].content }}"
    for text in ("not JSON", "[1]", '"a"', "[" * 100_000):
        assert render([HI, call(text)], template) == text + "Hi"


def test_of_two_names_of_reasoning_the_first_counts():
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.content }}{% endfor %}"
    for first, second in (
        ("reasoning_content", "thinking"),
        ("reasoning_content", "reasoning"),
        ("thinking", "reasoning"),
    ):
        text = render([OK | {first: "one", second: "two"}], template)
        assert text.startswith("one|") and text == render([OK | {second: "two", first: "one"}], template)


def test_a_template_that_knows_developers_gets_them():
    template = "{% for m in messages %}{% if m.role == 'developer' %}!{% endif %}{{ m.content }}{% endfor %}"
    assert render([HI | {"role": "developer"}], template) == "!Hi"


def test_a_role_that_the_template_names_is_known():
    template = "{% for m in messages %}{% if m.role == 'observer' %}!{% endif %}{{ m.content }}{% endfor %}"
    assert render([HI | {"role": "observer"}], template) == "!Hi"


PARTS = [{"role": "user", "content": ["a", "b"]}, HI]


@pytest.mark.parametrize(
    "template, text",
    [
        ("{% for m in messages %}{{ m.content }};{% endfor %}", "a\nb;Hi;"),
        ("{% for m in messages %}{{ m.content | tojson }};{% endfor %}", '"a\\nb";"Hi";'),
        ("{% for m in messages %}{{ m.content.strip() }};{% endfor %}", "a\nb;Hi;"),
        # Qwen3's later template: a list would be an empty text.
        ("{% for m in messages %}{{ m.content if m.content is string else '' }};{% endfor %}", "a\nb;Hi;"),
        (
            "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
            "{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}{% endif %};{% endfor %}",
            "[a][b];Hi;",
        ),
        # Prints one part only: joined, nothing is lost.
        (
            "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }};{% endfor %}",
            "a\nb;Hi;",
        ),
    ],
)
def test_lists_of_parts_are_joined_unless_the_template_goes_through_them(template, text):
    assert render(PARTS, template) == text


@pytest.mark.parametrize(
    "template, messages, said",
    [
        ("{{ messages[0].content }}", [HI, OK], "the text of messages[1], whose role is 'assistant', does not reach"),
        ("{{ messages[-1].content }}", [HI, OK, HI], "the text of messages[0], whose role is 'user'"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            [HI, OK],
            "messages[1]",
        ),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", [HI, call({"a": 1})], "the tool call of messages[1]"),
        (ALL, [HI | {"images": ["x"]}], "the key 'images' of messages[0]"),
        (ALL, [HI | {"prefix": True}], "the key 'prefix' of messages[0]"),
        (ALL, [OK | {"function_call": {"name": "f", "arguments": ""}}], "the key 'function_call' of messages[0]"),
    ],
)
def test_what_would_be_lost_is_refused_by_its_index(template, messages, said):
    assert said in one_line(lambda: render(messages, template))


def test_what_is_lost_is_found_in_a_prompt_with_the_time():
    times = "{{ messages[0].content }}{{ strftime_now('%f') }}"
    assert "messages[1]" in one_line(lambda: render([HI, OK], times))


def test_null_and_empty_keys_do_not_reach_the_template():
    text = render([HI | {"tool_calls": [], "name": None}], "{{ messages[0] | tojson }}")
    assert text == '{"role": "user", "content": "Hi"}'


def test_tools_that_would_be_lost_are_refused():
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert "tools do not reach" in one_line(lambda: render([HI], "{{ messages[0].content }}", tools=[tool]))
    assert render([HI], "{{ messages[0].content }}{{ tools | length }}", tools=[tool]) == "Hi1"
    assert render([HI], "{{ messages[0].content }}", tools=[]) == "Hi"


def test_a_call_that_is_shown_by_its_arguments():
    template = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}"
    assert render([HI, call({"a": 1})], template + "{% endfor %}{% endfor %}") == "Hi1"


def test_texts_that_are_repeated_stripped_or_changed_are_not_lost():
    assert render([HI, HI, OK, OK], "{% for m in messages %}{{ m.content }}{% endfor %}") == "HiHiokok"
    assert render([HI | {"content": " Hi \n"}], "{{ messages[0].content | trim }}") == "Hi"
    assert render([HI, OK], "{% for m in messages %}{{ m.content | upper }}{% endfor %}") == "HIOK"
    assert render([HI | {"content": "  "}, HI], "{{ messages[1].content }}") == "Hi", "nothing was said"
    thought = [HI, OK | {"content": "<think>long ago</think>"}, HI]
    assert render(thought, QWEN3).count("<think>") == 0, "Qwen3's template drops old reasoning"
    marked, first = [OK | {"reasoning": "markeraaaaa1end"}, HI], "{{ messages[0].content }}{{ messages[0].thinking }}"
    assert "messages[1]" in one_line(lambda: render(marked, first)), "a text that looks like a marker"


def test_a_template_that_refuses_markers_still_loses_nothing():
    template = "{% for m in messages %}{% if m.content != 'Hi' and m.content != 'ok' %}{{ raise_exception('no') }}"
    assert render([HI, OK], template + "{% endif %}{{ m.content }}{% endfor %}") == "Hiok"


def test_qwen3_with_content_null_beside_tool_calls():
    """The second turn of every agent: content null is an empty text, as in vLLM, and arguments are an object."""
    text = render([HI, call('{"city":"Zürich"}'), {"role": "tool", "content": "21"}], QWEN3)
    assert '<tool_call>\n{"name": "f", "arguments": {"city": "Zürich"}}\n</tool_call>' in text


SWITCH = "{{ messages[0].content }}{% if enable_thinking is defined and not enable_thinking %}<no>{% endif %}{{ mood }}"


@pytest.mark.parametrize(
    "template, variables, said",
    [
        (SWITCH, {"enable_thinkin": False}, "no variable 'enable_thinkin': did you mean 'enable_thinking'?"),
        (SWITCH, {"zzz": 1}, "no variable 'zzz': it reads enable_thinking, mood"),
        (SWITCH, {"namespace": 1}, "no variable 'namespace'"),
        (SWITCH, {"enable_thinking": "false"}, "enable_thinking is 'false': it must be true or false"),
        ("{{ messages[0].content }}{# enable_thinking #}", {"enable_thinking": False}, "no switch for thinking"),
        ("{{ messages[0].content }}", {"enable_thinking": True}, "no switch for thinking"),
        (
            "{% set enable_thinking = 1 %}{{ messages[0].content }}",
            {"enable_thinking": False},
            "no switch for thinking",
        ),
        ("{{ messages[0].content }}{% if enable_thinking %}{% endif %}", {"enable_thinking": False}, "no switch"),
    ],
)
def test_variables_that_change_nothing_are_refused(template, variables, said):
    assert said in one_line(lambda: render([HI], template, add_generation_prompt=True, **variables))


def test_variables_that_the_template_reads_are_taken():
    assert render([HI], SWITCH, add_generation_prompt=True, enable_thinking=False, mood="é") == "Hi<no>é"
    assert render([HI], SWITCH, add_generation_prompt=True, enable_thinking=True) == "Hi"
    assert render([HI], SWITCH, add_generation_prompt=True, enable_thinking=None, mood=None) == "Hi", "not said"
    assert render([HI], "{{ messages[0].content }}", enable_thinking=None, documents=None) == "Hi"
    later = "{{ messages[0].content }}{% set mood = mood | default('good') %}{{ mood }}"
    assert render([HI], later, mood="bad") == "Hibad" and render([HI], later) == "Higood"


OPTIONS = {
    "tokenize": (False, True), "return_dict": (False, True), "padding": (False, True), "truncation": (False, "longest"),
    "max_length": (None, 5), "return_tensors": (None, "pt"), "chat_template": (None, "x"),
    "tokenizer_kwargs": (None, {}), "sanitize_control_tokens": (False, True),
    "return_assistant_tokens_mask": (False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_transformers_are_done_or_refused(name):
    neutral, other = OPTIONS[name]
    assert render([HI], **{name: neutral}) == render([HI])
    assert f"{name} is {other!r}: only" in one_line(lambda: render([HI], **{name: other}))


def test_every_option_of_transformers_is_known():
    import inspect

    base = pytest.importorskip("transformers").PreTrainedTokenizerBase
    ours = inspect.signature(Tokenizer.encode_chat).parameters.keys() | OPTIONS.keys()
    theirs = inspect.signature(base.apply_chat_template).parameters.keys()
    assert theirs - ours - {"self", "conversation", "kwargs"} == {"documents"}, "documents is a variable"


CONTINUED = [HI, {"role": "assistant", "content": '{"a":'}]


@pytest.mark.parametrize("name", ["qwen3", "all", "stripped"])
@pytest.mark.parametrize("content", ['{"a":', "b ", " c\n", "", "<think>\nx\n</think>\n\nd"])
def test_the_last_message_is_continued_like_transformers(tmp_path, name, content):
    stripped = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}</s>{% endfor %}"
    template = {"qwen3": QWEN3, "all": ALL, "stripped": stripped}[name]
    messages = [HI, OK, HI, {"role": "assistant", "content": content}]
    folder = write_folder(tmp_path, {"chat_template": template})
    expected = auto_tokenizer(folder).apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert Tokenizer.from_folder(folder).apply_chat_template(messages, continue_final_message=True) == expected


def test_a_continued_message_stays_open():
    assert render(CONTINUED, continue_final_message=True, add_generation_prompt=None) == '<user>Hi<assistant>{"a":'
    assert render(CONTINUED, QWEN3, continue_final_message=True).endswith('</think>\n\n{"a":')
    assert render([HI], continue_final_message=True) == "<user>Hi"
    parts = [HI, {"role": "assistant", "content": ["a", "b"]}]
    assert render(parts, continue_final_message=True) == "<user>Hi<assistant>a\nb"
    listing = "{% for m in messages %}{% for part in m.content %}{{ part.text }};{% endfor %}{% endfor %}"
    assert render(parts[1:], listing, continue_final_message=True) == "a;b"


def test_reasoning_is_continued():
    messages = [HI, {"role": "assistant", "content": "", "reasoning": "so far"}]
    assert render(messages, QWEN3, continue_final_message="reasoning_content").endswith("<think>\nso far")
    assert render(messages, QWEN3, continue_final_message="reasoning").endswith("<think>\nso far")


@pytest.mark.parametrize(
    "messages, arguments, said",
    [
        (CONTINUED, {"add_generation_prompt": True}, "give one of them"),
        (CONTINUED, {"continue_final_message": 1}, "continue_final_message is 1"),
        (CONTINUED, {"continue_final_message": ""}, "continue_final_message is ''"),
        (CONTINUED, {"continue_final_message": "reasoning"}, "the last message has no 'reasoning' to continue"),
        ([HI, call({})], {}, "ends with tool calls"),
    ],
)
def test_what_cannot_be_continued_is_refused(messages, arguments, said):
    assert said in one_line(lambda: render(messages, **({"continue_final_message": True} | arguments)))


def test_a_continued_message_that_is_not_in_the_prompt_is_refused():
    listing = "{% for m in messages[:1] %}{{ m.content }}{% endfor %}"
    empty = [HI, {"role": "assistant", "content": ""}]
    assert "does not reach" in one_line(lambda: render(empty, listing, continue_final_message=True))


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
ODD = st.sampled_from([10**400, "\ud800", b"a"])
VALUES = st.recursive(
    SIMPLE | ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)
EVERYTHING = [ChatTemplate({"default": text + "{{ mood }}"}, {}, "m") for text in (ALL, QWEN3)]


def places(value, path=()):
    """Every path to a part of a value."""
    yield path
    for key in value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def planted(value, path, new):
    if not path:
        return new
    copied = value.copy()
    copied[path[0]] = planted(value[path[0]], path[1:], new)
    return copied


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_value_in_any_place_is_rendered_or_refused_in_one_line(data):
    """With a template that goes into everything, and one that adds all to texts."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    arguments = {
        "messages": [HI, call({"a": 1}) | {"content": [{"type": "text", "text": "a"}]}, OK],
        "tools": [tool],
        "mood": "good",
        "continue_final_message": False,
        "add_generation_prompt": True,
    }
    path = data.draw(st.sampled_from([place for place in places(arguments) if place]))
    arguments = planted(arguments, path, data.draw(VALUES))
    given_last = arguments["add_generation_prompt"], arguments["continue_final_message"]
    for chat in EVERYTHING:
        try:
            text = chat.render(arguments["messages"], arguments["tools"], {"mood": arguments["mood"]}, *given_last)
        except Qwen3Error as error:
            text = str(error).replace("\n", "not one line")
        assert isinstance(text, str) and "not one line" not in text


def test_what_the_template_writes_after_an_answer():
    def after(template: str) -> list[str]:
        return list(ChatTemplate({"default": template}, {}, "m").after_answers())

    assert after(QWEN3)[0] == "<|im_end|>\n" and after(QWEN3)[1].startswith("<|im_end|>\n<|im_start|>user")
    assert after("{{ messages[0].content }}") == after("{% if %}") == []
    turns = "{% for m in messages %}{{ m.content }}{{ '!' if not loop.last }}{% endfor %}"
    assert after(turns) == ["", "!a", "", "!a"]
    last = "{% if messages[-1].role != 'user' %}{{ raise_exception('no') }}{% endif %}"
    first = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}"
    assert after(last + turns) == ["!a", "!a"] and after(first + turns) == ["", "!a"]
    with pytest.raises(Qwen3Error):
        render([HI], "{% if %}")


def test_words_that_look_like_markers_are_text():
    """Each of them would be the marker if it were not there."""
    words = "".join(f"marker{word}0end markeraaaaamarker" for word in ("aaaaa", "aaaab", "aaaac", "x" * 10))
    for content in (words, [{"type": "text", "text": words}, {"type": "text", "text": "0a1end"}]):
        text = words if content is words else f"{words}\n0a1end"
        assert (
            render([HI | {"content": content}, OK], "{% for m in messages %}{{ m.content }}{% endfor %}") == f"{text}ok"
        )
    assert render([OK | {"content": f"{words} and"}], ALL, continue_final_message=True).endswith(f"{words} and")


@pytest.mark.slow
def test_parts_and_words_without_number_take_time_in_proportion():
    """With a comparison of each with all, hours."""
    parts = [{"type": "text", "text": f"{i}"} for i in range(100_000)]
    assert render([HI | {"content": parts}]).count("\n") == 99_999
    assert render([HI | {"content": "marker" + "x" * 1_000_000 + "markeraaaaa" * 100_000}])
