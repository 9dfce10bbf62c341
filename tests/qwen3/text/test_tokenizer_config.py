"""tokenizer_config.json and the files beside it: every key that transformers knows has a rule, and keeps it."""

import inspect
import json
import logging
import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest

from qwen3.errors import Qwen3Error
from qwen3.text.tokenizer import Tokenizer
from qwen3.text.tokenizer_config import KEYS, NO_EFFECT, USED

from .folders import auto_tokenizer, one_line, write_folder

VERSION = tuple(map(int, version("transformers").split(".")[:2])) if find_spec("transformers") else (0, 0)
since_5_21 = pytest.mark.skipif(VERSION < (5, 21), reason="tokenizers are as in transformers 5.21 and later")
TEXT = " Hi <|im_end|><note> </s> hello"
MESSAGES = [{"role": "user", "content": "Hi"}]


def ids_and_text(tokenizer) -> tuple:
    ids = tokenizer.encode(TEXT)
    return ids, tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)


# A value of each key that transformers takes and that would show, if the key had an effect.
VALUES = {
    "add_bos_token": True, "add_eos_token": True, "errors": "strict", "padding_side": "left", "truncation_side": "left",
    "model_max_length": 3, "max_len": 3, "max_length": 3, "clean_up_tokenization_spaces": True, "padding": True,
    "truncation": True, "pad_to_multiple_of": 8, "stride": 2, "use_fast": False, "legacy": False,
    "truncation_strategy": "only_first", "spaces_between_special_tokens": True, "return_token_type_ids": True,
    "model_input_names": ["input_ids"], "name_or_path": "x", "processor_class": "X", "tokenizer_class": "X",
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key, rule in KEYS.items() if rule == NO_EFFECT])
def test_keys_without_effect_change_nothing(tmp_path, key):
    plain = ids_and_text(Tokenizer.from_folder(write_folder(tmp_path, {"bos_token": "<s>", "eos_token": "</s>"})))
    value = VALUES.get(key, "x")
    folder = write_folder(tmp_path, {"bos_token": "<s>", "eos_token": "</s>", key: value})
    assert ids_and_text(Tokenizer.from_folder(folder)) == plain


@since_5_21
@pytest.mark.parametrize("key", sorted(VALUES.keys() - {"tokenizer_class"}))
def test_keys_without_effect_change_nothing_in_transformers(tmp_path, key):
    folder = write_folder(tmp_path, {"bos_token": "<s>", "eos_token": "</s>", key: VALUES[key]})
    assert ids_and_text(Tokenizer.from_folder(folder)) == ids_and_text(auto_tokenizer(folder))


@pytest.mark.parametrize("key", [key for key, rule in KEYS.items() if isinstance(rule, tuple)])
@pytest.mark.parametrize("value", [True, "false", 1, []], ids=str)
def test_keys_that_would_change_ids_are_refused(tmp_path, key, value):
    message = one_line(lambda: Tokenizer.from_folder(write_folder(tmp_path, {key: value})))
    assert f"tokenizer_config.json: {key} is {value!r}: it would change the token ids" in message
    for neutral in KEYS[key]:
        Tokenizer.from_folder(write_folder(tmp_path, {key: neutral}))


@since_5_21
def test_prefix_space(tmp_path):
    """With it, transformers' class for Qwen3 puts a space before every text."""
    folder = write_folder(tmp_path, {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True})
    assert auto_tokenizer(folder).encode("a") != auto_tokenizer(write_folder(tmp_path, {})).encode("a")
    folder = write_folder(tmp_path, {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True})
    assert "add_prefix_space is True" in one_line(lambda: Tokenizer.from_folder(folder))


@since_5_21
def test_every_key_that_transformers_reads_has_a_rule():
    transformers = pytest.importorskip("transformers")
    base = transformers.PreTrainedTokenizerBase
    read = set()
    for kind in (base, transformers.PreTrainedTokenizerFast):
        for line in inspect.getsource(kind.__init__).splitlines():
            for opening in ('kwargs.pop("', 'kwargs.get("', 'kwargs.setdefault("', 'key == "', '" in kwargs'):
                if opening in line:
                    part = line.split('" in kwargs')[0].split('"')[-1:] if opening == '" in kwargs' else [
                        piece.split('"')[0] for piece in line.split(opening)[1:]
                    ]  # fmt: skip
                    read |= set(part)
    of_the_caller = {"gguf_file", "post_processor", "tokenizer", "tokenizer_object", "tokenizer_padding",
                     "tokenizer_truncation", "unk_id", "vocab", "merges", "_json_truncation", "_json_padding",
                     "_spm_precompiled_charsmap"}  # fmt: skip
    assert len(read) > 30 and read - of_the_caller - KEYS.keys() == set()
    assert KEYS.keys() >= set(base.SPECIAL_TOKENS_ATTRIBUTES)


def test_an_unknown_key_is_skipped_and_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "qwen3"):
        Tokenizer.from_folder(write_folder(tmp_path, {"unsloth\x1b_version": "x", "image_token": "<i>", "errors": "x"}))
    skipped = [record.getMessage() for record in caplog.records]
    assert len(skipped) == 1 and "skipped unsloth\\x1b_version = 'x'" in skipped[0]


def test_named_tokens_reach_the_template(tmp_path):
    named = {
        "eos_token": {"content": "</s>"},
        "pad_token": "<p>",
        "image_token": "<i>",
        "unk_token": None,
        "add_bos_token": 1,
    }
    template = "{{ eos_token }}{{ pad_token }}{{ image_token }}{{ audio_token }}{{ unk_token }}{{ add_bos_token }}"
    config = named | {
        "extra_special_tokens": {"audio_token": "<a>"},
        "chat_template": template + "{{ messages[0].content }}",
    }
    folder = write_folder(tmp_path, config)
    assert Tokenizer.from_folder(folder).apply_chat_template(MESSAGES) == "</s><p><i><a>Hi"


@pytest.mark.parametrize("key", [key for key, rule in KEYS.items() if rule == USED and key.endswith("_token")])
@pytest.mark.parametrize("value", [5, ["</s>"], {"content": 5}, True], ids=str)
def test_a_named_token_must_be_text(tmp_path, key, value):
    assert f": {key} is " in one_line(lambda: Tokenizer.from_folder(write_folder(tmp_path, {key: value})))


@pytest.mark.parametrize(
    "config, said",
    [
        ({"added_tokens_decoder": []}, "added_tokens_decoder is []"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "added_tokens_decoder['x'] is 'x'"),
        ({"added_tokens_decoder": {"9" * 5000: {"content": "a"}}}, "it must be a whole number"),
        ({"added_tokens_decoder": {"5": "a"}}, "added_tokens_decoder['5'] is 'a'"),
        ({"added_tokens_decoder": {"5": {"content": 5}}}, "added_tokens_decoder['5'].content is 5"),
        (
            {"added_tokens_decoder": {"5": {"content": "a", "special": "no"}}},
            "['5'].special is 'no': it must be true or",
        ),
        ({"added_tokens_decoder": {"5": {"content": "</s>"}}}, "'</s>' has not the id 5"),
        ({"added_tokens_decoder": {"9999": {"content": "<new>"}}}, "'<new>' has not the id 9999"),
        ({"additional_special_tokens": 5}, "extra_special_tokens is 5"),
        ({"extra_special_tokens": [5]}, "extra_special_tokens[0] is 5"),
        ({"chat_control_tokens": "x"}, "chat_control_tokens is 'x'"),
        ({"chat_template": 5}, "chat_template 'default' is 5"),
        ({"chat_template": {"default": ["x"]}}, "chat_template 'default' is ['x']"),
        ({"chat_template": [{"name": "a"}]}, "chat_template is a list, but not of names and templates"),
        ({"chat_template": [{"name": 5, "template": "x"}]}, "chat_template, a name is 5"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_that_cannot_be_meant(tmp_path, config, said):
    assert said in one_line(lambda: Tokenizer.from_folder(write_folder(tmp_path, config)))


@since_5_21
def test_added_tokens_of_tokenizer_config_are_added_like_transformers(tmp_path):
    size = Tokenizer.from_folder(write_folder(tmp_path)).vocab_size
    added = {str(size): {"content": "<new>", "special": True}, str(size - 2): {"content": "<note>", "special": True}}
    folder = write_folder(tmp_path, {"eos_token": "</s>", "added_tokens_decoder": added})
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    assert ours.vocab_size == len(theirs) == size + 1 and ours.encode("a<new>") == theirs.encode("a<new>")
    assert ours.encode("<new>") == [size]
    assert ids_and_text(ours) == ids_and_text(theirs)
    assert ours.decode(ours.encode("a<note>b"), skip_special_tokens=True) == "ab", "special, says tokenizer_config.json"


@since_5_21
def test_named_tokens_are_special_like_transformers(tmp_path):
    folder = write_folder(tmp_path, {"eos_token": "q", "additional_special_tokens": ["u"]})
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    ids = ours.encode("equip")
    assert ids == theirs.encode("equip") and ours.eos_token_id == theirs.eos_token_id
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True) == "eip"


@since_5_21
@pytest.mark.parametrize("added", [True, False])
def test_special_tokens_map_wins_without_added_tokens_like_transformers(tmp_path, added):
    folder = write_folder(tmp_path, {"eos_token": "<s>"} | ({"added_tokens_decoder": {}} if added else {}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "pad_token": "<s>"}))
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    assert ours.eos_token_id == theirs.eos_token_id == ours.token_to_id("<s>" if added else "</s>")


@since_5_21
def test_additional_chat_templates_like_transformers(tmp_path):
    hi = "{{ messages[0].content }}"
    folder = write_folder(tmp_path, {"chat_template": "unused"}, hi + "plain{{ tools }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(hi + "{{ tools | length }}")
    ours, theirs = Tokenizer.from_folder(folder), auto_tokenizer(folder)
    for tools, text in ((None, "HiplainNone"), ([{}], "Hi1")):
        assert ours.apply_chat_template(MESSAGES, tools=tools) == text
        assert theirs.apply_chat_template(MESSAGES, tools=tools, tokenize=False) == text


@pytest.mark.parametrize("config", [{}, {"added_tokens_decoder": {}}])
def test_added_tokens_json_adds_what_tokenizer_json_lacks_like_transformers(tmp_path, config):
    folder = write_folder(tmp_path, {"eos_token": "</s>"} | config)
    size = Tokenizer.from_folder(folder).vocab_size
    older = {"<new>": size, "<newer>": size + 1, "</s>": 7}
    (folder / "added_tokens.json").write_text(json.dumps(older))
    ours, theirs, text = Tokenizer.from_folder(folder), auto_tokenizer(folder), "a<new>b<newer></s>"
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert (size in ours.encode(text)) == (not config)
    for skip in (False, True):
        ids = ours.encode(text)
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    for wrong in ({"<new>": size + 5}, {"<new>": "x"}, {"<new>": -1}):
        (folder / "added_tokens.json").write_text(json.dumps(wrong))
        if not config:
            with pytest.raises(Qwen3Error, match="added_tokens.json") as refused:
                Tokenizer.from_folder(folder)
            assert "<new>" in str(refused.value)


FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "kind", ["folder", "pipe", "dangling link", "loop", "zero bytes", "UTF-16", "nested", "device"]
)
def test_what_stands_in_the_place_of_a_file(tmp_path, name, kind):
    path = write_folder(tmp_path, None) / name
    path.unlink(missing_ok=True)
    {
        "folder": lambda: path.mkdir(),
        "pipe": lambda: os.mkfifo(path),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "loop": lambda: path.symlink_to(name),
        "zero bytes": lambda: path.write_bytes(b"\0" * 9),
        "UTF-16": lambda: path.write_text("{}", encoding="utf-16"),
        "nested": lambda: path.write_text("[" * 100_000),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    if name == "chat_template.jinja" and kind in ("zero bytes", "nested"):
        Tokenizer.from_folder(tmp_path)  # any text is a template
    else:
        assert name in one_line(lambda: Tokenizer.from_folder(tmp_path))


def test_a_byte_order_mark_is_no_text(tmp_path):
    folder = write_folder(tmp_path, {"eos_token": "</s>"}, "{{ messages[0].content }}")
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_id is not None and tokenizer.apply_chat_template(MESSAGES) == "Hi"


def test_vocab_json_alone_says_how_to_convert_it(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    assert "AutoTokenizer.from_pretrained" in one_line(lambda: Tokenizer.from_folder(tmp_path))
