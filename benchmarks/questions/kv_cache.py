"""How much time does the KV cache save? The cost of a token with and without it, as the text before it grows.

Real text of each length, continued by a few greedy tokens; without the cache, the whole text is computed again for each
token. Both sides alternate, and must give the same tokens (float32) before a length is timed.
"""

import argparse
from functools import partial

from qwen3 import LLM
from qwen3.cli.speed import BLOCK_SIZE, greedy, room_for
from qwen3.errors import Qwen3Error

from ..common import Answer, milliseconds, settings_of, side_by_side
from ..text import windows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024], help="tokens of the text")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens that each turn generates, 2 or more")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="which text")


def run(args: argparse.Namespace) -> Answer:
    if args.new_tokens < 2:
        raise Qwen3Error("--new-tokens must be 2 or more: the first token costs the same on both sides")
    options = {"device": args.device, "dtype": "float32", "max_num_seqs": 1, "kv_block_size": BLOCK_SIZE}
    options["max_model_len"] = room_for(max(args.lengths), args.new_tokens)
    llms = {name: LLM(args.model, kv_cache=kept, **options) for name, kept in (("with", True), ("without", False))}
    text = windows(llms["with"], 1, max(args.lengths), args.seed)[0]
    figures = []
    for length in args.lengths:
        row = compare(llms, text[:length], args.new_tokens, args.rounds)
        figures.append(row)
        print(
            f"{length:5} tokens: {row['with_ms']:.2f} ms a token with the cache, {row['without_ms']:.2f} ms without, "
            f"{row['ratio']:.1f} times as long",
            flush=True,
        )
    settings = settings_of(args) | {"device": str(llms["with"].device), "dtype": "float32"}
    return Answer(settings, figures)


def compare(llms: dict[str, LLM], prompt: list[int], new_tokens: int, rounds: int) -> dict:
    """One row; raises RuntimeError if the two sides give different tokens."""
    tokens = {name: llm.generate([prompt], greedy(new_tokens))[0].token_ids for name, llm in llms.items()}
    if tokens["with"] != tokens["without"]:
        raise RuntimeError(f"after {len(prompt)} tokens the cache changes what is generated: {tokens}")
    turns = {name: partial(token_seconds, llm, prompt, new_tokens) for name, llm in llms.items()}
    times = side_by_side(turns, rounds)
    row: dict = {"context": len(prompt), "ratio": times["without"].median / times["with"].median}
    for name, timing in times.items():
        row |= milliseconds(name, timing)
        row[f"{name}_tokens_per_second"] = 1 / timing.median
    return row


def token_seconds(llm: LLM, prompt: list[int], new_tokens: int) -> float:
    """Mean time of a token after the first; each takes one step, whether the engine counts it as decode or prefill."""
    metrics = llm.generate([prompt], greedy(new_tokens))[0].metrics
    return (metrics.total_seconds - metrics.time_to_first_token) / (new_tokens - 1)
