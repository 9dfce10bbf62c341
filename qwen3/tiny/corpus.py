"""The text that `tiny` learns from: the Python standard library's own source, as tokens."""

import hashlib
import sysconfig
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor

VOCAB_SIZE = 4096
END_OF_TEXT = "<|endoftext|>"
# Qwen's pattern but for one thing: a line end is no part of the punctuation before it. In code most lines end in
# punctuation, and a prompt that does ("class Stack:") would otherwise end in a token that means "no line end follows".
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Tests, other people's packages, and files that are tables of data rather than code.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "__pycache__", "encodings", "pydoc_data"}


def read_sources() -> tuple[list[str], list[str]]:
    """Training and held-out files of this interpreter's standard library; a file in forty is held out, by its name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    training: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT & set(name.parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        held = hashlib.sha256(name.as_posix().encode()).digest()[0] < 256 // 40
        (held_out if held else training).append(text)
    return training, held_out


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of VOCAB_SIZE tokens; id 0 ends a text."""
    tokenizer = cut_by_pattern(Tokenizer(BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(END_OF_TEXT, special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def cut_by_pattern(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with PATTERN deciding where a token must end."""
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts in one row of token ids, [N] int64, each behind an end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids: list[int] = []
    assert end is not None, "the tokenizer has an end-of-text token"
    for encoding in tokenizer.encode_batch(texts):
        ids.append(end)
        ids.extend(encoding.ids)
    return torch.tensor(ids)


def bigram_loss(training: Tensor, held_out: Tensor, vocab_size: int) -> float:
    """Nats per token of a bigram model with interpolated add-one unigrams, the yardstick for `tiny`."""
    unigram = training.bincount(minlength=vocab_size) + 1.0
    unigram /= unigram.sum()
    pairs = (training[:-1] * vocab_size + training[1:]).bincount(minlength=vocab_size**2).view(vocab_size, vocab_size)
    # Witten-Bell: a context seen with many different successors trusts its own counts less.
    seen, kinds = pairs.sum(1), (pairs > 0).sum(1)
    first, second = held_out[:-1], held_out[1:]
    total = (seen + kinds)[first].clamp(min=1)
    own = pairs[first, second] / total
    back = torch.where(seen[first] > 0, kinds[first] / total, 1.0) * unigram[second]
    return -(own + back).log().mean().item()
