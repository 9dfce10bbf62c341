"""The tokenizer against transformers' on the real Qwen vocabulary, and its own promises on a small one."""

import base64
import json
import re
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.errors import Qwen3Error
from qwen3.text.stream import IncrementalDecoder
from qwen3.text.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[2].parent / "shared"

TEXTS = {
    "empty": "",
    "prose": "It's a truth universally acknowledged, that they'll say: \u201cdon't!\u201d \u2014 won't we?",
    "code": "def f(x: int):\n    return f'{x:>08b}' if x else \"\"  # 100%\n\n\tif (a && b[i++] != 0x1F) { end; }\r\n",
    "cjk": "我能吞下玻璃而不伤身体。日本語のテキスト、ｶﾀｶﾅ。 한국어 문장입니다.",
    "emoji": "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 👍🏽 🇨🇦 🧿 ❤️ 1️⃣ 🫠",
    "digits": "3.14159 1234567890 1,000,000 ٠١٢٣ ½ ² 2026-01-31T23:59:60Z",
    "whitespace": "  a   b\t\t c\n\n\n   d \r\n\r\n \u00a0\u3000e \n",
    "special": "<|im_start|>user\nhi<|im_end|>\n<think>hm</think> <|endoftext|><tool_call> <|im_end| > <|im_start|>",
    "combining": "e\u0301 \u00e9 A\u030a \u212b o\u0302\u0323 \u1112\u1161\u11ab \ufb01 q\u0307\u0323",
    "mixed": "Привет, κόσμε! שלום עולם مرحبا नमस्ते สวัสดี Ünïcödé \U0001d518\U0001d52b\U0001d526",
    "controls": "\x00\x01\x7f\x85\u2028\ufeff\ufffd\U0010ffff",
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WORDS = ["👩\u200d👩\u200d👧", "🏳️\u200d🌈", "e\u0301", "\u212b", "你好", "'ll", "  ", "\r\n", "\t", "<think>", *SPECIAL]

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


def write_folder(folder: Path, config: dict | None = None, jinja: str | None = None) -> Path:
    """A model folder with a small byte-level tokenizer; <note> and "two wörds" are added tokens but not special."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the quick brown fox 👩\u200d👩\u200d👧 你好 déjà vu"] * 20, trainer)
    for name in ("<s>", "</s>", *SPECIAL, "<note>", "two wörds"):
        special = name not in ("<note>", "two wörds")
        backend.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False)])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return folder


def one_line(call) -> str:
    """The message of the Qwen3Error that a call raises, which must be one line."""
    with pytest.raises(Qwen3Error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 400
    return message


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("small"), {"eos_token": "</s>"}))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    tool = SHARED / "tools" / "build_qwen_tokenizer.py"
    if not tool.is_file():
        pytest.skip("the Qwen vocabulary is not here (../shared)")
    folder = tmp_path_factory.mktemp("qwen")
    subprocess.run([sys.executable, str(tool), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def qwen(qwen_folder) -> Tokenizer:
    return Tokenizer.from_folder(qwen_folder)


def auto_tokenizer(folder: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


@pytest.fixture(scope="session")
def theirs(qwen_folder):
    return auto_tokenizer(qwen_folder)


any_text, few_characters = st.text(st.characters(codec="utf-8"), max_size=8), st.text("ab 1\n🧿é你", max_size=4)
texts = st.lists(st.one_of(any_text, few_characters, st.sampled_from(WORDS)), max_size=12).map("".join)


def ids_of(tokenizer: Tokenizer, size: int):
    """Sequences of ids below `size`, many of them single bytes, special or without a token."""
    high_bytes = [tokenizer.token_to_id(c) for c in "ðŁĺĢâĢįïíĤĭÃéÀôĲ"]
    special = [tokenizer.token_to_id(t) for t in SPECIAL]
    some, unknown = st.sampled_from(high_bytes) | st.sampled_from(special), st.integers(tokenizer.vocab_size, size - 1)
    return st.lists(st.integers(0, size - 1) | some | unknown, max_size=40)


# Same ids, same text


@pytest.mark.parametrize("name", TEXTS)
def test_encodes_and_decodes_like_transformers(qwen, theirs, name):
    ids = qwen.encode(TEXTS[name])
    assert ids == theirs.encode(TEXTS[name]) == qwen.encode(TEXTS[name], add_special_tokens=False)
    for skip in (False, True):
        assert qwen.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_generated_text_and_ids_like_transformers(qwen, theirs):
    @settings(max_examples=300, deadline=None)
    @given(text=texts, ids=ids_of(qwen, 151_936), skip=st.booleans())
    def check(text, ids, skip):
        assert qwen.encode(text) == theirs.encode(text)
        assert qwen.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()


def test_every_token_has_the_bytes_of_the_published_vocabulary(qwen):
    lines = (SHARED / "data" / "qwen.tiktoken").read_bytes().splitlines()
    assert len(lines) == 151_643
    for line in lines:
        token, rank = line.split()
        assert qwen.token_bytes(int(rank)) == base64.b64decode(token)


def test_qwen_facts(qwen):
    assert qwen.vocab_size == 151_669
    assert qwen.token_to_id("<|im_end|>") == qwen.eos_token_id == 151_645
    assert qwen.token_to_id("no such token") is None
    assert qwen.encode("<|im_start|>user") == [151_644, 872]
    assert qwen.encode("e\u0301") == qwen.encode("\u00e9")
    assert qwen.decode([151_644, 872, 151_667, 151_645]) == "<|im_start|>user<think><|im_end|>"
    assert qwen.decode([151_644, 872, 151_667, 151_645], skip_special_tokens=True) == "user<think>"


def test_an_id_without_a_token_is_no_text_wherever_it_stands(qwen):
    hi = qwen.encode("🧿 hi")
    for unknown in (151_669, 151_935):
        assert qwen.decode([unknown]) == ""
        for at in range(len(hi) + 1):
            assert qwen.decode(hi[:at] + [unknown] + hi[at:]) == "🧿 hi"


def test_small_tokenizer_like_transformers(tmp_path):
    folder = write_folder(tmp_path, {"eos_token": "</s>", "clean_up_tokenization_spaces": True})
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    assert ours.vocab_size == len(theirs) and ours.eos_token_id == theirs.eos_token_id
    for text in [*TEXTS.values(), "<s>a <note> , b ! two wörds</s> do n't"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_round_trip(small, text):
    assert small.decode(small.encode(text)) == tokenizers.normalizers.NFC().normalize_str(text)


@pytest.fixture
def folder_with_extras(tmp_path) -> Path:
    """A tokenizer.json that prepends <s>, truncates to 3 tokens and pads to 64."""
    write_folder(tmp_path, {"eos_token": "</s>"})
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    bos = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_post_processor_adds_tokens_but_nothing_truncates_or_pads(folder_with_extras):
    tokenizer = Tokenizer.from_folder(folder_with_extras)
    ids = tokenizer.encode("the quick brown fox")
    assert tokenizer.decode(ids) == "<s>the quick brown fox" and len(ids) > 3
    assert tokenizer.encode("the quick brown fox", add_special_tokens=False) == ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the quick brown fox"


def test_post_processor_like_transformers(folder_with_extras):
    ours, theirs = Tokenizer.from_folder(folder_with_extras), auto_tokenizer(folder_with_extras)
    for text in TEXTS.values():
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "config, eos",
    [
        (None, None),
        ({}, None),
        ({"eos_token": None}, None),
        ({"eos_token": "</s>"}, "</s>"),
        ({"eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True}}, "<|im_end|>"),
        ({"eos_token": "not in the vocabulary"}, None),
    ],
)
def test_eos_token(tmp_path, config, eos):
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, config))
    assert tokenizer.eos_token_id == (None if eos is None else tokenizer.token_to_id(eos))
    assert (tokenizer.eos_token_id is None) == (eos is None)


# One token at a time


def check_pieces(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    """The pieces, after checking that they add up and that each comes as soon as it is certain and no sooner."""
    decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip)
    pieces = []
    for count, token_id in enumerate(ids, 1):
        pieces.append(decoder.push(token_id))
        so_far, whole = "".join(pieces), tokenizer.decode(ids[:count], skip_special_tokens=skip)
        # Only the start of a character is held back: one U+FFFD in the whole, or two if it starts like a surrogate.
        assert whole.startswith(so_far) and whole[len(so_far) :] in ("", "\ufffd", "\ufffd\ufffd")
    pieces.append(decoder.finish())
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)
    return pieces


def test_pieces_add_up_for_any_ids(small):
    @settings(max_examples=400, deadline=None)
    @given(ids=ids_of(small, 400), skip=st.booleans())
    def check(ids, skip):
        check_pieces(small, ids, skip)

    check()


def test_pieces_add_up_for_any_qwen_ids(qwen):
    @settings(max_examples=300, deadline=None)
    @given(ids=ids_of(qwen, 151_936), skip=st.booleans())
    def check(ids, skip):
        check_pieces(qwen, ids, skip)

    check()


@settings(max_examples=200, deadline=None)
@given(text=texts.filter(lambda text: "\ufffd" not in text))
def test_pieces_of_text_hold_no_broken_character(small, text):
    pieces = check_pieces(small, small.encode(text), skip=False)
    assert not any("\ufffd" in piece for piece in pieces) and pieces[-1] == ""


def test_a_split_emoji_comes_whole(qwen):
    ids = qwen.encode("a 🧿b")
    assert len(ids) == 5
    assert check_pieces(qwen, ids, skip=True) == ["a", " ", "", "🧿", "b", ""]


def test_bytes_of_a_split_character(small):
    smile = [small.token_to_id(c) for c in "ðŁĺĢ"]  # F0 9F 98 80
    end, unknown, letter = small.token_to_id("<|im_end|>"), small.vocab_size + 5, small.token_to_id("a")
    assert check_pieces(small, smile, skip=True) == ["", "", "", "😀", ""]
    assert check_pieces(small, [smile[0], unknown, end, *smile[1:]], skip=True) == ["", "", "", "", "", "😀", ""]
    assert check_pieces(small, [*smile[:3], end], skip=False) == ["", "", "", "\ufffd<|im_end|>", ""]
    assert check_pieces(small, [*smile[:3], letter], skip=True) == ["", "", "", "\ufffda", ""]
    assert check_pieces(small, smile[:3], skip=True) == ["", "", "", "\ufffd"]
    assert check_pieces(small, smile[1:], skip=True) == ["\ufffd", "\ufffd", "\ufffd", ""]
    assert check_pieces(small, [], skip=True) == [""]


def test_skipping_special_tokens_is_the_default(small):
    decoder = IncrementalDecoder(small)
    assert decoder.push(small.token_to_id("<|im_end|>")) == "" and decoder.push(small.token_to_id("<note>")) == "<note>"


@pytest.mark.parametrize("token", ["a", "ð", "Ģ"], ids=["letters", "lead bytes", "continuation bytes"])
def test_the_cost_of_a_token_does_not_grow(small, token):
    decoder, token_id = IncrementalDecoder(small), small.token_to_id(token)
    windows = []
    for _ in range(60):
        start = time.perf_counter()
        for _ in range(1000):
            decoder.push(token_id)
        windows.append(time.perf_counter() - start)
    assert min(windows[-20:]) < 4 * min(windows[:20])


# Chat templates


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [], [TOOL, TOOL]], ids=["no tools", "empty tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False}, {"enable_thinking": True}], ids=str)
def test_chat_template_like_transformers(qwen, theirs, name, add_generation_prompt, tools, variables):
    arguments = dict(add_generation_prompt=add_generation_prompt, tools=tools, **variables)
    text = qwen.apply_chat_template(CONVERSATIONS[name], **arguments)
    assert text == theirs.apply_chat_template(CONVERSATIONS[name], tokenize=False, **arguments)
    ids = theirs.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=False, **arguments)
    assert qwen.encode(text, add_special_tokens=False) == ids


def test_chat_template_of_qwen(qwen):
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


@pytest.mark.parametrize("name", HELPERS)
def test_template_helpers_like_transformers(tmp_path, name):
    bos = {"__type": "AddedToken", "content": "<s>"}
    folder = write_folder(tmp_path, {"bos_token": bos, "eos_token": "</s>", "chat_template": HELPERS[name]})
    messages = [
        {"role": "user", "content": "<b>&\"'é", "name": None},
        {"role": "assistant", "content": "ok", "reasoning": "r"},
    ]
    arguments = dict(add_generation_prompt=True, tools=None, mood="😀<", extra={"deep": [1, "two"]})
    expected = auto_tokenizer(folder).apply_chat_template(messages, tokenize=False, **arguments)
    assert Tokenizer.from_folder(folder).apply_chat_template(messages, **arguments) == expected != ""


def render(folder: Path, template: str, **arguments) -> str:
    tokenizer = Tokenizer.from_folder(write_folder(folder, {"chat_template": template}))
    return tokenizer.apply_chat_template([{"role": "user", "content": "<é>"}], **arguments)


def test_template_helpers_alone(tmp_path):
    assert render(tmp_path, "{{ messages[0] | tojson }}") == '{"role": "user", "content": "<é>"}'
    assert render(tmp_path, "{% for i in [1, 2] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "1"
    assert render(tmp_path, "a{% generation %}b{% endgeneration %}c") == "abc"
    assert render(tmp_path, "{{ mood }}", mood="good") == "good"
    assert render(tmp_path, "{{ eos_token }}", eos_token="mine") == "mine"


def test_strftime_now(tmp_path):
    before = datetime.now()
    text = render(tmp_path, "{{ strftime_now('%Y-%m-%d %H:%M:%S') }}")
    assert before.replace(microsecond=0) <= datetime.strptime(text, "%Y-%m-%d %H:%M:%S") <= datetime.now()


MESSAGES = [{"role": "user", "content": "Hi"}]


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools | length }}"}]
WHICH = {
    "list": ({"chat_template": NAMED}, None, ["plain", "with 0", "with 1"]),
    "list without tool_use": ({"chat_template": NAMED[:1]}, None, ["plain"] * 3),
    "string": ({"chat_template": "text"}, None, ["text"] * 3),
    "file over string": ({"chat_template": "text"}, "file", ["file"] * 3),
    "file over list": ({"chat_template": NAMED}, "file", ["file"] * 3),
    "file alone": ({}, "file é", ["file é"] * 3),
}


@pytest.mark.parametrize("name", WHICH)
def test_which_template(tmp_path, name):
    config, jinja, expected = WHICH[name]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, config, jinja))
    assert tokenizer.has_chat_template
    assert [tokenizer.apply_chat_template(MESSAGES, tools=tools) for tools in (None, [], [TOOL])] == expected


@pytest.mark.parametrize("name", WHICH)
def test_which_template_says_transformers(tmp_path, name):
    config, jinja, expected = WHICH[name]
    theirs = auto_tokenizer(write_folder(tmp_path, config, jinja))
    assert [theirs.apply_chat_template(MESSAGES, tools=t, tokenize=False) for t in (None, [], [TOOL])] == expected


def test_template_file_without_tokenizer_config(tmp_path):
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, None, "file"))
    assert tokenizer.apply_chat_template(MESSAGES) == "file"


def test_the_messages_of_the_caller_stay_as_they_are(tmp_path):
    messages = [{"role": "user", "content": "Hi", "reasoning": "r", "name": None}]
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, {"chat_template": "x"}))
    tokenizer.apply_chat_template(messages, tools=[TOOL])
    assert messages == [{"role": "user", "content": "Hi", "reasoning": "r", "name": None}]


def test_content_may_be_absent_beside_tool_calls(tmp_path):
    template = "{{ messages[0].tool_calls | length }}"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, {"chat_template": template}))
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        assert tokenizer.apply_chat_template([message | {"tool_calls": [CALL]}]) == "1"


# What goes wrong


def test_errors_of_files(tmp_path):
    assert "tokenizer.json: no such file" in one_line(lambda: Tokenizer.from_folder(tmp_path))
    write_folder(tmp_path, {})
    whole = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(whole[:1000], encoding="utf-8")
    assert "tokenizer.json: cannot be read" in one_line(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(whole) | {"decoder": None}), encoding="utf-8")
    assert "only ByteLevel is supported" in one_line(lambda: Tokenizer.from_folder(tmp_path))
    write_folder(tmp_path, {"chat_template": ["not a dict"]})
    assert "chat_template is a list" in one_line(lambda: Tokenizer.from_folder(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    assert "tokenizer_config.json: cannot be read" in one_line(lambda: Tokenizer.from_folder(tmp_path))
    write_folder(tmp_path, {})
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja: cannot be read" in one_line(lambda: Tokenizer.from_folder(tmp_path))


def test_errors_of_text(small):
    assert "character 1" in one_line(lambda: small.encode("a\udcff"))
    assert "list" in one_line(lambda: small.encode(["a"]))


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
        ({"not": "a string"}, "chat template cannot render"),
    ],
)
def test_a_template_that_raises(tmp_path, template, said):
    assert said in one_line(lambda: render(tmp_path, template))


def test_errors_of_chat(tmp_path):
    plain = Tokenizer.from_folder(write_folder(tmp_path / "none", {}))
    assert not plain.has_chat_template
    assert re.search(r"none: .*no chat template.*--raw", one_line(lambda: plain.apply_chat_template(MESSAGES)))
    named = {"chat_template": [{"name": "rag", "template": "x"}]}
    named = Tokenizer.from_folder(write_folder(tmp_path / "named", named))
    assert "rag" in one_line(lambda: named.apply_chat_template(MESSAGES))

    chat = Tokenizer.from_folder(write_folder(tmp_path / "chat", {"chat_template": "x"})).apply_chat_template
    for messages, said in [
        ("Hi", "list"),
        ([], "at least one"),
        ({"role": "user", "content": "Hi"}, "list"),
        (["Hi"], "messages[0] is a str"),
        ([*MESSAGES, [*MESSAGES]], "messages[1] is a list"),
        ([{"content": "Hi"}], "messages[0] has no role"),
        ([{"role": None, "content": "Hi"}], "messages[0] has no role"),
        ([{"role": "user"}], "messages[0] has no content"),
        ([{"role": "user", "content": None}], "messages[0] has no content"),
        ([{"role": "user", "content": b"Hi"}], "messages can hold JSON values only"),
    ]:
        assert said in one_line(lambda: chat(messages))
    assert "tools[0] is a function" in one_line(lambda: chat(MESSAGES, tools=[one_line]))
    assert "tools is a dict" in one_line(lambda: chat(MESSAGES, tools=TOOL))
    assert "JSON values only" in one_line(lambda: chat(MESSAGES, tools=[{"f": one_line}]))
    assert "JSON values only" in one_line(lambda: chat(MESSAGES, opener=open))
