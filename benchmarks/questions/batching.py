"""How much faster are continuous batching and prefix caching?

The same requests, all submitted at once, to the engine; to the engine as a static batch, where the next group starts
when the whole last group has ended; and to transformers' continuous batching, with its fastest number of tokens a step.
Then requests with a common system prompt, with prefix caching and without it: one after the other, and all submitted at
once to an engine with an empty prefix cache. All sides must give the same greedy tokens (float32) before the timing.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from qwen3 import LLM, SamplingParams
from qwen3.errors import Qwen3Error
from qwen3.load.resolve import resolve

from ..common import Answer, milliseconds, percentiles, settings_of, side_by_side
from ..text import windows

PROMPT_TOKENS, NEW_TOKENS = (16, 256), (16, 128)
TAIL_TOKENS, PREFIX_NEW_TOKENS = (16, 64), 4
# Candidates for the tokens of one step of transformers.
BATCH_TOKENS = (512, 2048)
PAGE_SIZE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--requests", type=int, default=64, help="requests submitted at once")
    parser.add_argument("--max-num-seqs", type=int, default=8, help="requests that run together")
    parser.add_argument("--sharing", type=int, default=32, help="requests that share a system prompt")
    parser.add_argument("--system-tokens", type=int, default=512, help="tokens of that prompt")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each side takes")
    parser.add_argument("--seed", type=int, default=0, help="of the texts and lengths")


@dataclass
class Result:
    """One run over all requests: token ids in their order, seconds to each first token, seconds in all."""

    token_ids: list[list[int]]
    first_token_seconds: list[float]
    total_seconds: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.token_ids))


@dataclass
class Requests:
    """Prompts and the number of tokens wanted of each."""

    prompts: list[list[int]]
    new_tokens: list[int]
    params: list[SamplingParams] = field(init=False)

    def __post_init__(self):
        self.params = [SamplingParams(max_new_tokens=n, temperature=0, ignore_eos=True) for n in self.new_tokens]


def run(args: argparse.Namespace) -> Answer:
    longest = PROMPT_TOKENS[1] + NEW_TOKENS[1]
    llm = LLM(args.model, dtype="float32", max_num_seqs=args.max_num_seqs, max_model_len=longest, prefix_caching=False)
    requests = make_requests(llm, args.requests, args.seed)
    theirs = Transformers(args.model, llm.device, args.max_num_seqs, requests)
    sides = {
        "continuous": lambda: continuous(llm, requests),
        "static": lambda: static(llm, requests, args.max_num_seqs),
        "transformers": lambda: theirs.run(requests),
    }
    figures = batching_figures(sides, args.rounds)
    for row in figures:
        print(
            f"{row['side']:13} {row['tokens_per_second']:8.1f} tokens/s ({row['speed_of_static']:.2f} of static), "
            + ", ".join(f"{key.removesuffix('_ms')} {row[key]:.0f} ms" for key in row if key.startswith("first_token"))
        )
    shared = prefix_figures(args)
    for row in shared:
        print(
            f"{args.system_tokens} shared tokens, {row['arrival']}: first token after {row['with_ms']:.1f} ms, "
            f"without prefix caching {row['without_ms']:.1f} ms, {row['ratio']:.1f} times as long"
        )
    settings = settings_of(args) | {"device": str(llm.device), "dtype": "float32"} | theirs.settings
    return Answer(settings, [*figures, *shared])


def make_requests(llm: LLM, count: int, seed: int) -> Requests:
    """Prompts cut from real text; lengths uniform within PROMPT_TOKENS and NEW_TOKENS."""
    generator = random.Random(seed)
    texts = windows(llm, min(count, 16), PROMPT_TOKENS[1] * 2, seed)
    prompts, new_tokens = [], []
    for i in range(count):
        length = generator.randint(*PROMPT_TOKENS)
        start = generator.randrange(PROMPT_TOKENS[1])
        prompts.append(texts[i % len(texts)][start : start + length])
        new_tokens.append(generator.randint(*NEW_TOKENS))
    return Requests(prompts, new_tokens)


def continuous(llm: LLM, requests: Requests) -> Result:
    started = time.perf_counter()
    answers = llm.generate(requests.prompts, requests.params)
    total = time.perf_counter() - started
    return Result([a.token_ids for a in answers], [a.metrics.time_to_first_token for a in answers], total)


def static(llm: LLM, requests: Requests, group_size: int) -> Result:
    """Group by group; a request waits for the groups before its own."""
    started = time.perf_counter()
    token_ids, first_token = [], []
    for at in range(0, len(requests.prompts), group_size):
        waited = time.perf_counter() - started
        answers = llm.generate(requests.prompts[at : at + group_size], requests.params[at : at + group_size])
        token_ids += [a.token_ids for a in answers]
        first_token += [waited + a.metrics.time_to_first_token for a in answers]
    return Result(token_ids, first_token, time.perf_counter() - started)


class Transformers:
    """Its continuous batching manager, with blocks for all requests that run together; its start is not timed."""

    def __init__(self, name: str, device: torch.device, max_num_seqs: int, requests: Requests):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import transformers
        except ImportError:
            raise Qwen3Error("batching needs transformers, which is not installed: pip install transformers") from None
        transformers.utils.logging.disable_progress_bar()
        self.library, self.max_num_seqs = transformers, max_num_seqs
        model = transformers.AutoModelForCausalLM.from_pretrained(resolve(name), dtype=torch.float32)
        self.model = model.to(device).eval()
        few = slice(0, max_num_seqs)
        sample = Requests(requests.prompts[few], requests.new_tokens[few])
        tried = {}
        for tokens in BATCH_TOKENS:
            self.run(sample, tokens)  # warms up
            tried[tokens] = self.run(sample, tokens).total_seconds
        self.batch_tokens = min(tried, key=lambda tokens: tried[tokens])
        self.settings = {
            "transformers": transformers.__version__,
            "transformers_batch_tokens": self.batch_tokens,
            "transformers_tried_seconds": tried,
            "transformers_attention": self.model.config._attn_implementation,
            "transformers_experts": getattr(self.model.config, "_experts_implementation", None),
        }

    def run(self, requests: Requests, batch_tokens: int | None = None) -> Result:
        """Submits all requests at once; each is timed from then."""
        longest = max(len(p) + n for p, n in zip(requests.prompts, requests.new_tokens))
        config = self.library.ContinuousBatchingConfig(
            page_size=PAGE_SIZE,
            num_blocks=(self.max_num_seqs + 1) * (longest // PAGE_SIZE + 1),
            max_batch_tokens=batch_tokens or self.batch_tokens,
            max_requests_per_batch=self.max_num_seqs,
            allow_block_sharing=False,
        )
        most = max(requests.new_tokens)
        greedy = self.library.GenerationConfig(max_new_tokens=most, do_sample=False, eos_token_id=-1)
        # Its stop waits up to `timeout` seconds for a thread; it is not timed.
        with self.model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=config, block=True, timeout=5
        ) as manager:
            started = time.perf_counter()
            ids = [
                manager.add_request(prompt, max_new_tokens=n, record_timestamps=True)
                for prompt, n in zip(requests.prompts, requests.new_tokens)
            ]
            outputs = {}
            while len(outputs) < len(ids):
                output = manager.get_result(timeout=1)
                if output is not None and output.is_finished():
                    outputs[output.request_id] = output
                elif output is None and not manager.is_running():
                    raise RuntimeError("transformers' continuous batching ended before its requests")
            total = time.perf_counter() - started
        answers = [outputs[i] for i in ids]
        return Result([a.generated_tokens for a in answers], [a.timestamps[0] - started for a in answers], total)


def batching_figures(sides: dict[str, Callable[[], Result]], rounds: int) -> list[dict]:
    """One row for each side, including "static". Raises RuntimeError before the timing if tokens differ."""
    gate = {name: run() for name, run in sides.items()}
    expected = gate["static"].token_ids
    for name, result in gate.items():
        if different := [i for i, ids in enumerate(result.token_ids) if ids != expected[i]]:
            raise RuntimeError(f"{name} gives other tokens than the static batch for requests {different}")
    first_token: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> float:
        result = sides[name]()
        first_token[name] += result.first_token_seconds
        return result.total_seconds

    times = side_by_side({name: lambda name=name: timed(name) for name in sides}, rounds)
    return [
        {
            "figure": "batching",
            "side": name,
            "tokens": gate[name].tokens,
            "median_seconds": timing.median,
            "min_seconds": timing.low,
            "max_seconds": timing.high,
            "tokens_per_second": gate[name].tokens / timing.median,
            "speed_of_static": times["static"].median / timing.median,
        }
        | percentiles("first_token", first_token[name])
        for name, timing in times.items()
    ]


def prefix_figures(args: argparse.Namespace) -> list[dict]:
    """Time to the first token of prompts that begin alike, one row for each way in which they arrive."""
    longest = args.system_tokens + TAIL_TOKENS[1] + PREFIX_NEW_TOKENS
    options = {"dtype": "float32", "max_num_seqs": args.sharing, "max_model_len": longest}
    llms = {name: LLM(args.model, prefix_caching=on, **options) for name, on in (("with", True), ("without", False))}
    generator = random.Random(args.seed)
    system, *tails = windows(llms["with"], 9, max(args.system_tokens, TAIL_TOKENS[1]), args.seed)
    prompts = [
        system[: args.system_tokens] + tails[i % len(tails)][: generator.randint(*TAIL_TOKENS)]
        for i in range(args.sharing)
    ]
    params = SamplingParams(max_new_tokens=PREFIX_NEW_TOKENS, temperature=0, ignore_eos=True)
    answers: dict[str, list[list[int]]] = {name: [] for name in llms}

    def next_request(name: str) -> float:
        answer = llms[name].generate([prompts[len(answers[name])]], params)[0]
        answers[name].append(answer.token_ids)
        return answer.metrics.time_to_first_token

    def all_at_once(name: str) -> float:
        llms[name].reset_prefix_cache()
        done = llms[name].generate(prompts, params)
        if [answer.token_ids for answer in done] != answers["without"]:
            raise RuntimeError("prefix caching, or the batch, changes the tokens")
        return statistics.median(answer.metrics.time_to_first_token for answer in done)

    # The first request, which fills the cache, is not counted.
    for name in llms:
        next_request(name)
    alone = side_by_side({name: lambda name=name: next_request(name) for name in llms}, args.sharing - 1)
    if answers["with"] != answers["without"]:
        raise RuntimeError("prefix caching changes the tokens")
    together = side_by_side({name: lambda name=name: all_at_once(name) for name in llms}, args.rounds)
    rows = []
    for arrival, times in (("one after the other", alone), ("all at once", together)):
        row = {"figure": "prefix", "arrival": arrival, "requests": args.sharing, "system_tokens": args.system_tokens}
        for name, timing in times.items():
            row |= milliseconds(name, timing)
        rows.append(row | {"ratio": times["without"].median / times["with"].median})
    return rows
