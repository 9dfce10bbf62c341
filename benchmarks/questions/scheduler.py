"""What does scheduling cost? Host time per decode step over the number of running sequences, without a model."""

import argparse
import time

from qwen3 import SamplingParams
from qwen3.kv_cache import BlockPool
from qwen3.scheduler import Scheduler
from qwen3.sequence import Sequence

from ..common import Answer, side_by_side

BLOCK_SIZE, PROMPT_TOKENS = 16, 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sequences", type=int, nargs="+", default=[16, 64, 256, 1024], help="sequences that run together"
    )
    parser.add_argument("--rounds", type=int, default=100, help="steps that are timed for each number")


def run(args: argparse.Namespace) -> Answer:
    steps = {count: decode_step(count, args.rounds) for count in args.sequences}
    figures = []
    for count, timing in side_by_side(steps, args.rounds).items():
        microseconds = {f"{name}_us": getattr(timing, name) * 1e6 for name in ("median", "p20", "p80")}
        figures.append({"sequences": count} | microseconds | {"us_per_sequence": timing.median * 1e6 / count})
        print(
            f"{count:5} sequences: {timing.median * 1e3:.3f} ms a step, {timing.median * 1e6 / count:.2f} us a sequence"
        )
    settings = {"rounds": args.rounds, "prompt_tokens": PROMPT_TOKENS, "block_size": BLOCK_SIZE, "device": "cpu"}
    return Answer(settings, figures)


def decode_step(count: int, rounds: int):
    """Returns a function that schedules and commits one decode step of `count` running sequences -> seconds."""
    params = SamplingParams(max_new_tokens=rounds + 1)
    longest = PROMPT_TOKENS + rounds + 1
    pool = BlockPool(count * (longest // BLOCK_SIZE + 2), BLOCK_SIZE)
    scheduler = Scheduler(pool, count, 8192)
    sequences = [Sequence([i] * PROMPT_TOKENS, params, frozenset(), longest) for i in range(count)]
    for sequence in sequences:
        scheduler.add(sequence)
    while any(sequence.computed < PROMPT_TOKENS for sequence in sequences):
        scheduler.computed(scheduler.schedule())

    def step() -> float:
        for sequence in sequences:
            sequence.token_ids.append(1)
        started = time.perf_counter()
        work = scheduler.schedule()
        scheduler.computed(work)
        scheduler.drawn([sequence for sequence, _ in work])
        seconds = time.perf_counter() - started
        if len(work) != count or any(tokens != 1 for _, tokens in work):
            raise RuntimeError(f"{len(work)} of {count} sequences were scheduled")
        return seconds

    return step
