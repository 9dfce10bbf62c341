"""What does scheduling cost? Host time per decode step over the number of running sequences, without a model."""

import argparse
import time

from qwen3.engine.blocks import BlockPool
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Scheduler
from qwen3.engine.sequence import Sequence

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
        marks = {"median": timing.median, "min": timing.low, "max": timing.high}
        microseconds = {f"{name}_us": value * 1e6 for name, value in marks.items()}
        figures.append({"sequences": count} | microseconds | {"us_per_sequence": timing.median * 1e6 / count})
        print(
            f"{count:5} sequences: {timing.median * 1e3:.3f} ms a step, {timing.median * 1e6 / count:.2f} us a sequence"
        )
    settings = {"rounds": args.rounds, "prompt_tokens": PROMPT_TOKENS, "block_size": BLOCK_SIZE, "device": "cpu"}
    return Answer(settings, figures)


def decode_step(count: int, rounds: int):
    """Returns a function that schedules and commits one decode step of `count` running sequences -> seconds."""
    longest = PROMPT_TOKENS + rounds + 2
    pool = BlockPool(count * (longest // BLOCK_SIZE + 2), BLOCK_SIZE)
    # All prompts are computed in the first step, so that every sequence is at the same token.
    scheduler = Scheduler(pool, count, count * PROMPT_TOKENS)
    for i in range(count):
        scheduler.add(Sequence([i] * PROMPT_TOKENS, Sampling(), frozenset(), longest))
    commit(scheduler)

    def step() -> float:
        started = time.perf_counter()
        scheduled = commit(scheduler)
        seconds = time.perf_counter() - started
        if len(scheduled.work) != count or not scheduled.is_decode:
            raise RuntimeError(f"{len(scheduled.work)} of {count} sequences were scheduled")
        return seconds

    return step


def commit(scheduler: Scheduler) -> Scheduled:
    """Schedules one step and commits it, every token being 1."""
    scheduled = scheduler.schedule()
    samples = len(scheduled.sampling)
    scheduler.commit(scheduled, [1] * samples, [None] * samples)
    return scheduled
