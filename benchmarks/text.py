"""Real text for benchmarks: files of the Python standard library that the embedded model was not trained on."""

import random

from qwen3 import LLM
from qwen3.errors import Qwen3Error
from qwen3.tiny.corpus import read_sources


def windows(llm: LLM, count: int, tokens: int, seed: int) -> list[list[int]]:
    """`count` stretches of `tokens` tokens of the held-out files, none overlapping. Raises Qwen3Error for too many."""
    found = []
    for text in read_sources()[1]:
        ids = llm.tokenizer.encode(text)
        found += [ids[start : start + tokens] for start in range(0, len(ids) - tokens + 1, tokens)]
    if len(found) < count:
        raise Qwen3Error(f"the held-out files have {len(found)} windows of {tokens} tokens, {count} are asked for")
    return random.Random(seed).sample(found, count)
