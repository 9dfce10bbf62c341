"""How long is the event loop blocked while long prompts arrive at `LLM.stream_async`?

A coroutine that sleeps a millisecond at a time measures how late it wakes up: every other request of a server waits as
long. The longest delay of each round is taken, in four situations: nothing runs (what the machine itself adds); one
stream runs; others arrive during its prefill; a stream is closed during the prefill of another. A server wants at most
20 ms. The streamed texts must be those of `LLM.generate` (float32, greedy).
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from qwen3 import LLM, SamplingParams

from ..common import Answer, Timing, milliseconds, settings_of

TICK = 0.001
IDLE_SECONDS = 0.2
# Prompt of the stream that is closed before its end: short, so that it is soon in the middle of its answer.
CLOSED_PROMPT_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="tokens of each prompt")
    parser.add_argument("--new-tokens", type=int, default=4, help="tokens of each answer")
    parser.add_argument("--streams", type=int, default=3, help="streams that arrive one after the other")
    parser.add_argument("--interval-ms", type=float, default=20, help="time between their arrivals")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median and the maximum are taken")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")


def run(args: argparse.Namespace) -> Answer:
    longest = args.prompt_tokens + args.new_tokens
    options = {"device": args.device, "dtype": "float32", "prefix_caching": False}
    llm = LLM(args.model, max_num_seqs=args.streams + 1, max_model_len=longest, **options)
    load = Load(llm, args)
    measured: dict[str, list[float]] = {name: [] for name in load.situations}
    for _ in range(args.rounds):
        for name, situation in load.situations.items():
            measured[name].append(asyncio.run(longest_delay(situation())))
    figures = []
    for name, delays in measured.items():
        figures.append({"situation": name} | milliseconds("delay", Timing.of(delays)))
        print(
            f"{name:26} longest delay {figures[-1]['delay_ms']:.1f} ms (maximum {figures[-1]['delay_max_ms']:.1f} ms)"
        )
    return Answer(settings_of(args) | {"device": str(llm.device), "dtype": "float32"}, figures)


async def longest_delay(work: Awaitable) -> float:
    """Seconds by which a sleep of TICK ended too late, at most, while `work` ran on the same event loop."""
    task, longest = asyncio.ensure_future(work), 0.0
    while not task.done():
        started = time.perf_counter()
        await asyncio.sleep(TICK)
        longest = max(longest, time.perf_counter() - started - TICK)
    await task
    return longest


class Load:
    """The work of each situation."""

    def __init__(self, llm: LLM, args: argparse.Namespace):
        self.llm, self.interval = llm, args.interval_ms / 1e3
        ids = range(llm.config.vocab_size)
        generator = random.Random(args.seed)
        self.prompts = [generator.choices(ids, k=args.prompt_tokens) for _ in range(args.streams)]
        self.params = SamplingParams(max_new_tokens=args.new_tokens, temperature=0, ignore_eos=True)
        self.expected = [answer.text for answer in llm.generate(self.prompts, self.params)]
        self.situations: dict[str, Callable[[], Awaitable]] = {
            "nothing runs": lambda: asyncio.sleep(IDLE_SECONDS),
            "one stream": lambda: self.read(0),
            "streams arrive": self.arrivals,
            "a stream is closed": self.closing,
        }

    async def read(self, number: int, delay: float = 0.0) -> None:
        """Reads one stream; raises RuntimeError for another text than that of `generate`."""
        await asyncio.sleep(delay)
        text = "".join([piece async for piece in self.llm.stream_async(self.prompts[number], self.params)])
        if text != self.expected[number]:
            raise RuntimeError(f"stream {number} gives another text than generate: {text!r}")

    async def arrivals(self) -> None:
        await asyncio.gather(*(self.read(i, i * self.interval) for i in range(len(self.prompts))))

    async def closing(self) -> None:
        """The first stream is closed while the prompt of the second is computed."""
        prompt = self.prompts[0][:CLOSED_PROMPT_TOKENS]
        params = SamplingParams(max_new_tokens=self.llm.max_model_len - len(prompt), temperature=0, ignore_eos=True)
        stream = self.llm.stream_async(prompt, params)
        await anext(stream)
        other = asyncio.ensure_future(self.read(-1))
        await asyncio.sleep(self.interval)
        await stream.aclose()
        await other
