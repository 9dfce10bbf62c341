"""Small tokenizers, texts, and sequences of ids to try them on."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import strategies as st

from qwen3.errors import Qwen3Error
from qwen3.text.tokenizer import Tokenizer

# The chat template that is published with Qwen3 (Apache 2.0).
QWEN3 = (Path(__file__).parent / "qwen3_chat_template.jinja").read_text(encoding="utf-8")
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
WORDS = ["👩\u200d👩\u200d👧", "🏳️\u200d🌈", "e\u0301", "\u212b", "你好", "'ll", "  ", "\r\n", "\t", "<think>", *SPECIAL]


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


def auto_tokenizer(folder: Path):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


any_text, few_characters = st.text(st.characters(codec="utf-8"), max_size=8), st.text("ab 1\n🧿é你", max_size=4)
texts = st.lists(st.one_of(any_text, few_characters, st.sampled_from(WORDS)), max_size=12).map("".join)


def ids_of(tokenizer: Tokenizer, size: int):
    """Sequences of ids below `size`, many of them single bytes, special or without a token."""
    high_bytes = [tokenizer.token_to_id(c) for c in "ðŁĺĢâĢįïíĤĭÃéÀôĲ"]
    special = [tokenizer.token_to_id(t) for t in SPECIAL]
    some, unknown = st.sampled_from(high_bytes) | st.sampled_from(special), st.integers(tokenizer.vocab_size, size - 1)
    return st.lists(st.integers(0, size - 1) | some | unknown, max_size=40)
