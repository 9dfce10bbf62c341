"""What does the KV cache buy? The cost per token with and without it, as the text grows, on the embedded model."""

import argparse

from qwen3 import LLM, SamplingParams

from .common import save, side_by_side

LENGTHS = (128, 512, 1024)
PROMPT = "def fibonacci(n):"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=1, help="turns that each side takes")


def run(args: argparse.Namespace) -> None:
    sides = {name: LLM("tiny", kv_cache=kept) for name, kept in (("with", True), ("without", False))}
    rows = []
    for length in LENGTHS:
        times = side_by_side({name: lambda llm=llm: milliseconds(llm, length) for name, llm in sides.items()}, args.rounds)
        rows.append({"new_tokens": length, "with_ms": times["with"], "without_ms": times["without"]})
        ratio = times["without"] / times["with"]
        print(f"{length:5} new tokens: {times['with']:.2f} ms a token with the cache, {ratio:.1f} times that without")
    save("kv_cache", {"question": "cache", "model": "tiny", "rows": rows})


def milliseconds(llm: LLM, new_tokens: int) -> float:
    """Mean time per generated token after the first, in milliseconds."""
    before = llm.stats.decode_seconds
    params = SamplingParams(max_new_tokens=new_tokens, temperature=0, ignore_eos=True)
    llm.generate(PROMPT, params)
    return (llm.stats.decode_seconds - before) / (new_tokens - 1) * 1e3
