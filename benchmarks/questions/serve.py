"""How long do users wait at a given rate of requests?

Requests arrive at random (a Poisson process) and run together. Measured by the caller: the time to the first piece of
text, from the arrival of the request, so that a late start counts; then the time between one piece and the next (nearly
always one token). The streamed answers must be those of `LLM.generate` (float32, greedy).
"""

import argparse
import asyncio
import random
import time
from dataclasses import dataclass, field

from qwen3 import LLM, SamplingParams

from ..common import Answer, percentiles, settings_of
from ..text import windows

PROMPT_TOKENS, NEW_TOKENS = (16, 256), (16, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 8, 32], help="requests per second")
    parser.add_argument(
        "--requests", type=int, default=100, help="requests at each rate; a percentile needs ten beyond it"
    )
    parser.add_argument("--max-num-seqs", type=int, default=256, help="requests that run together at most")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, texts and lengths")


@dataclass
class Request:
    """A request, its arrival in seconds from the start, and the times at which pieces of the answer came."""

    arrival: float
    prompt: list[int]
    params: SamplingParams
    moments: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def time_to_first_piece(self) -> float:
        return self.moments[0] - self.arrival

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [later - earlier for earlier, later in zip(self.moments, self.moments[1:])]


def run(args: argparse.Namespace) -> Answer:
    longest = PROMPT_TOKENS[1] + NEW_TOKENS[1]
    llm = LLM(args.model, dtype="float32", max_num_seqs=args.max_num_seqs, max_model_len=longest, prefix_caching=False)
    texts = windows(llm, min(args.requests, 16), 2 * PROMPT_TOKENS[1], args.seed)
    figures = []
    for rate in args.rates:
        requests = make_trace(texts, args.requests, rate, args.seed)
        expected = llm.generate([r.prompt for r in requests], [r.params for r in requests])
        asyncio.run(play(llm, requests))
        check(requests, [answer.text for answer in expected])
        row = summary(rate, requests, sum(len(answer.token_ids) for answer in expected))
        figures.append(row)
        marks = [f"{key.removesuffix('_ms')} {value:.1f} ms" for key, value in row.items() if key.endswith("_ms")]
        print(f"{rate:6.1f} requests/s: {row['tokens_per_second']:7.1f} tokens/s, {', '.join(marks)}")
    settings = settings_of(args) | {"device": str(llm.device), "dtype": "float32"}
    return Answer(settings, figures)


def make_trace(texts: list[list[int]], count: int, rate: float, seed: int) -> list[Request]:
    """Arrivals `rate` a second on average; the same prompts and lengths at every rate."""
    generator = random.Random(seed)
    arrival, requests = 0.0, []
    for i in range(count):
        start, length = generator.randrange(PROMPT_TOKENS[1]), generator.randint(*PROMPT_TOKENS)
        params = SamplingParams(max_new_tokens=generator.randint(*NEW_TOKENS), temperature=0, ignore_eos=True)
        requests.append(Request(arrival, texts[i % len(texts)][start : start + length], params))
        arrival += generator.expovariate(rate)
    return requests


async def play(llm: LLM, requests: list[Request]) -> None:
    """Submits each request at its time and records when its pieces come."""
    started = time.perf_counter()

    async def one(request: Request) -> None:
        await asyncio.sleep(request.arrival - (time.perf_counter() - started))
        async for piece in llm.stream_async(request.prompt, request.params):
            request.moments.append(time.perf_counter() - started)
            request.text += piece

    await asyncio.gather(*(one(request) for request in requests))


def check(requests: list[Request], expected: list[str]) -> None:
    """Raises RuntimeError for an answer that is not the expected one."""
    pairs = zip(requests, expected, strict=True)
    if different := [i for i, (request, text) in enumerate(pairs) if request.text != text]:
        raise RuntimeError(f"streamed together, requests {different} get other answers than from generate")


def summary(rate: float, requests: list[Request], tokens: int) -> dict:
    """Throughput over the time from the first arrival to the last piece; waits over all requests."""
    duration = max(request.moments[-1] for request in requests) - requests[0].arrival
    first = [request.time_to_first_piece for request in requests]
    gaps = [gap for request in requests for gap in request.gaps]
    row = {"requests_per_second": rate, "requests": len(requests), "tokens": tokens, "duration_seconds": duration}
    row["tokens_per_second"] = tokens / duration
    return row | percentiles("first_piece", first) | percentiles("inter_piece", gaps)
