"""The tokenizer against transformers' on the real Qwen vocabulary, and on a small one."""

import base64
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3.text.tokenizer import Tokenizer

from .folders import auto_tokenizer, ids_of, one_line, texts, write_folder

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


def test_every_token_has_the_bytes_of_the_published_vocabulary(qwen, ranks):
    assert len(ranks) == 151_643
    for line in ranks:
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


def test_a_chat_gets_no_second_beginning(folder_with_extras):
    (folder_with_extras / "chat_template.jinja").write_text("<s>{{ messages[0].content }}")
    tokenizer = Tokenizer.from_folder(folder_with_extras)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the fox"}])
    assert ids == tokenizer.encode("the fox") and ids.count(tokenizer.token_to_id("<s>")) == 1


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
    assert "chat_template.jinja: is not UTF-8" in one_line(lambda: Tokenizer.from_folder(tmp_path))


def test_errors_of_text(small):
    assert "character 1" in one_line(lambda: small.encode("a\udcff"))
    assert "list" in one_line(lambda: small.encode(["a"]))


def test_added_words_are_their_own_text(tmp_path):
    """Their letters are letters of the byte alphabet, too: é, đ and č would be other bytes."""
    folder = write_folder(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = ["café", "größe", "đem", "ča", "Ġx", "ĉ", " y", "naïve\n", "ÿ"]
    backend.add_tokens([tokenizers.AddedToken(word, normalized=False) for word in words])
    backend.add_special_tokens(["<|für|>"])
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    for word in (*words, "<|für|>", "".join(words)):
        ids = tokenizer.encode(word)
        assert tokenizer.decode(ids) == word and b"".join(map(tokenizer.token_bytes, ids)) == word.encode()
    assert tokenizer.decode(tokenizer.encode("a<|für|>"), skip_special_tokens=True) == "a"


def change_model(folder: Path, **changes) -> Path:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"] |= changes
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_panic_of_the_package_is_one_line(tmp_path):
    folder = change_model(write_folder(tmp_path), continuing_subword_prefix="false")
    assert "tokenizer.json: cannot be read" in one_line(lambda: Tokenizer.from_folder(folder))


def test_a_pattern_that_does_not_end_is_one_line(tmp_path):
    folder = write_folder(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a|aa)+$"), "isolated")
    backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert "tokenizer.json cannot encode" in one_line(lambda: tokenizer.encode("a" * 60 + "b"))


WRONG = [None, True, 1, 1.5, b"a", ["a"], {"a": 1}, object(), float("nan"), 10**400]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_every_argument_refuses_wrong_types(tmp_path, value):
    template = "{{ messages[0].content }}{{ mood }}{{ tools }}"
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, {"eos_token": "</s>"}, template))
    hi = [{"role": "user", "content": "Hi"}]
    calls = [
        lambda: tokenizer.encode(value),
        lambda: tokenizer.token_to_id(value),
        lambda: tokenizer.token_bytes(value if value != 1 or value is True else -1),
        lambda: tokenizer.apply_chat_template(value),
        lambda: tokenizer.encode_chat(hi, continue_final_message=value if value is not True else 1),
    ]
    if not isinstance(value, bool):
        calls += [
            lambda: tokenizer.encode("a", add_special_tokens=value),
            lambda: tokenizer.encode("a", sanitize_control_tokens=value),
            lambda: tokenizer.decode([1], skip_special_tokens=value),
            lambda: tokenizer.encode_chat(hi, sanitize_control_tokens=value),
        ]
        calls += [] if value is None else [lambda: tokenizer.encode_chat(hi, add_generation_prompt=value)]
    if value is not None:
        calls.append(lambda: tokenizer.encode_chat(hi, tools=value))
    calls += [lambda: tokenizer.decode(value)] if not isinstance(value, bytes) else []
    for call in calls:
        one_line(call)


def test_ids_as_other_packages_have_them(small):
    import numpy
    import torch

    ids = small.encode("the quick")
    assert small.decode(numpy.array(ids)) == small.decode(torch.tensor(ids)) == small.decode(tuple(ids)) == "the quick"
    assert "ids[0] is -1" in one_line(lambda: small.decode([-1]))


def test_the_tokens_that_end_a_turn(tmp_path):
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    for name, config, jinja, ends in (
        ("none", {}, None, []),
        ("eos", {"eos_token": "</s>"}, "{{ messages[0].content }}", ["</s>"]),
        ("template", {}, turns, ["<|im_end|>"]),
        ("both", {"eos_token": "</s>"}, turns, ["</s>", "<|im_end|>"]),
        ("the same", {"eos_token": "<|im_end|>"}, turns, ["<|im_end|>"]),
        ("spaces", {}, turns.replace("}}<|im_end|>", "}}\n <|im_end|>"), ["<|im_end|>"]),
        ("text", {}, turns.replace("<|im_end|>", "note"), []),
        ("added, not special", {}, turns.replace("<|im_end|>", "<note>"), ["<note>"]),
        ("between turns", {}, turns.replace("}}<|im_end|>", "}}{{ '<|im_end|>' if not loop.last }}"), ["<|im_end|>"]),
        ("of the next turn", {}, turns.replace("<|im_end|>\n", ""), ["<|im_start|>"]),
    ):
        tokenizer = Tokenizer.from_folder(write_folder(tmp_path / name, config, jinja))
        assert list(tokenizer.end_of_turn_ids) == [tokenizer.token_to_id(token) for token in ends]


def test_qwen_ends_its_turns(qwen):
    assert qwen.end_of_turn_ids == (151_645,)
