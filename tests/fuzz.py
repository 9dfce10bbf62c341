"""Fuzzes the JSON files of a model folder: loads it, and answers.

    python -m tests.fuzz [--examples 2000] [--seed 0] [--file config.json]

One place of one file is replaced by a value of the wrong kind, removed, doubled, or a key is added. Right is the answer
of the unchanged folder, or one line that says what is wrong. Prints a count and the smallest example of each failure,
and exits with 1 if there was one. The fast tests run 30 examples of each file.
"""

import argparse
import collections
import copy
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from qwen3 import LLM, Qwen3Error, SamplingParams

from .qwen3.conftest import write_checkpoint

FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
GENERATION = {"eos_token_id": 300, "do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.95, "min_p": 0.01}
TOKENIZER = {
    "eos_token": "!",
    "pad_token": {"content": "?", "special": True},
    "model_max_length": 256,
    "tokenizer_class": "Qwen2Tokenizer",
    "added_tokens_decoder": {},
    "chat_template": TEMPLATE,
}
# What json.dumps does not write.
RAW = {"@1e400": "1e400", "@5000 digits": "9" * 5000, "@5000 brackets": "[" * 5000 + "]" * 5000}
WRONG: dict[str, Any] = {
    "text": "x", "empty text": "", "number as text": "1", "false as text": "false", "list": [], "list of one": [1],
    "list of null": [None], "list of text": ["x"], "list of lists": [[1]], "list of dicts": [{"a": 1}], "dict": {},
    "dict of one": {"a": 1}, "true": True, "false": False, "null": None, "negative": -1, "zero": 0, "fraction": 0.5,
    "10**30": 10**30, "10**9": 10**9, "2**31": 2**31, "2**63": 2**63, "NaN": float("nan"), "Infinity": float("inf"),
    "-Infinity": -float("inf"), "lone surrogate": "\ud800", "NUL": "a\x00b", "very long text": "y" * 100_000,
    "escape": "\x1b[31m\x1b]0;title\x07\nsecond line", **{key: key for key in RAW},
}  # fmt: skip
NEW_KEYS = (
    "unknown", "num_shared_experts", "quantization_config", "mrope_section", "sliding_window", "layer_types", "dtype",
    "rope_scaling", "min_tokens", "no_repeat_ngram_size", "bad_words_ids", "chat_template_", "architectures_", "",
    "suppress_tokens", "bos_token", "\x1b[31m", "num_local_experts", "original_max_position_embeddings", "max_length",
)  # fmt: skip


def write_folder(folder: Path) -> None:
    """A small checkpoint in two shards, with every optional file."""
    write_checkpoint(folder, shard_size="300KB")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER))


def dumps(value: Any) -> str:
    text = json.dumps(value)
    for key, raw in RAW.items():
        text = text.replace(f'"{key}"', raw)
    return text


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place of a JSON value; of long dicts and lists the first six."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        entries = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, entry in entries[: 6 if len(entries) > 40 else None]:
            yield from places(entry, (*path, key))


@st.composite
def mutations(draw: Callable, base: dict) -> tuple[str, str, str]:
    """What was done, the key of the file that it was done to, and the text of the file."""
    kind = draw(st.sampled_from(["replace"] * 6 + ["remove", "double", "add", "top"]))
    label = draw(st.sampled_from(sorted(WRONG)))
    if kind == "top":
        return f"the whole file := {label}", "", dumps(WRONG[label])
    value = copy.deepcopy(base)
    if kind == "add":
        key = draw(st.sampled_from(NEW_KEYS))
        value[key] = WRONG[label]
        return f"+ {key!r} = {label}", key, dumps(value)
    path = draw(st.sampled_from(list(places(base))))
    shown, key = ".".join(map(str, path)), path[0]
    if kind == "double" and len(path) == 1:
        return (
            f"{shown} twice, the last {label}",
            key,
            dumps(base)[:-1] + f", {json.dumps(key)}: {dumps(WRONG[label])}}}",
        )
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    if kind == "remove":
        del holder[path[-1]]
        return f"- {shown}", key, dumps(value)
    holder[path[-1]] = WRONG[label]
    return f"{shown} = {label}", key, dumps(value)


def answers(folder: Path) -> str:
    """What the model of a folder answers to a text and to a message."""
    llm = LLM(folder, device="cpu", dtype="float32", num_kv_blocks=20)
    try:
        params = SamplingParams(max_new_tokens=4, seed=7)
        chat = llm.chat([{"role": "user", "content": "hi"}], params)
        return repr((llm.generate(["a b c"], params)[0].token_ids, chat.prompt_token_ids, chat.token_ids))
    finally:
        llm.loop.close()


# A legal value of these may change the answer; a traceback or several lines are wrong all the same.
MAY_DIFFER = {
    "config.json": {
        "eos_token_id", "max_position_embeddings", "norm_topk_prob", "rms_norm_eps", "rope_parameters", "rope_scaling",
        "original_max_position_embeddings",
    },
    "generation_config.json": {
        "", *GENERATION, "bad_words_ids", "max_length", "no_repeat_ngram_size", "suppress_tokens",
    },
    "tokenizer_config.json": {"eos_token", "chat_template"},
    "tokenizer.json": {"added_tokens", "decoder", "model", "normalizer", "post_processor", "pre_tokenizer"},
    "model.safetensors.index.json": set(),
}  # fmt: skip


def failure(folder: Path, may_differ: bool, expected: str) -> str | None:
    """None where the outcome is right, else what is wrong with it."""
    try:
        found = answers(folder)
    except Qwen3Error as error:
        message = str(error)
        if not message.isprintable() or "\n" in message:
            return f"a message with control characters: {message!r}"
        # Its own text without the folder's name.
        length = len(message.replace(str(folder), ""))
        return None if 20 < length < 700 else f"a message of {length} characters: {message!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return None if found == expected or may_differ else "another answer, and nothing said"


def fuzz(folder: Path, name: str, examples: int, number: int | None = None) -> dict[str, tuple[int, str]]:
    """The failures of one file: how often each was seen, and an example. Restores the file."""
    logging.getLogger("qwen3").setLevel(logging.ERROR)
    original = (folder / name).read_bytes()
    base, expected = json.loads(original), answers(folder)
    counts: collections.Counter[str] = collections.Counter()
    smallest: dict[str, str] = {}

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(base))
    def one(case: tuple[str, str, str]) -> None:
        what, key, text = case
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        if kind := failure(folder, key in MAY_DIFFER[name], expected):
            counts[kind] += 1
            smallest[kind] = min(smallest.get(kind, what), what, key=len)

    try:
        (one if number is None else seed(number)(one))()
    finally:
        (folder / name).write_bytes(original)
        logging.getLogger("qwen3").setLevel(logging.NOTSET)
    return {kind: (count, smallest[kind]) for kind, count in counts.most_common()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", choices=FILES, action="append")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, wrong = Path(tempfile.mkdtemp()), 0
    try:
        write_folder(folder)
        for name in args.file or FILES:
            found = fuzz(folder, name, args.examples, args.seed)
            wrong += len(found)
            print(f"{name}: {args.examples} cases, {sum(count for count, _ in found.values())} wrong", flush=True)
            for kind, (count, example) in found.items():
                print(f"{count:5d}  {kind}  e.g. {example}", flush=True)
    finally:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
