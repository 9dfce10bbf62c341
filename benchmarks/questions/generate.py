"""How fast are prefill and decode compared with Hugging Face transformers, and how near to the limit of the memory?

Both sides hold the same weights and alternate in one process (one after the other where the device cannot hold both).
Transformers gets its fastest attention and experts implementation for each cell, found first. A cell is timed only if
tokens and log-probabilities of the calls that are timed keep the contract: in float32 the same greedy tokens
and a difference of at most 1e-4; in bfloat16 an RMS error, from float32 of the same weights, of at most twice
transformers' own. The limit of a decode step is the time to copy as many bytes as it must read.
"""

import argparse
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor

from qwen3 import LLM, Completion
from qwen3.cli.speed import (
    BLOCK_SIZE,
    bytes_per_step,
    decode_seconds,
    greedy,
    prefill_seconds,
    random_prompts,
    require_room,
    room_for,
)
from qwen3.config.device import resolve_device
from qwen3.config.hf import model_config
from qwen3.config.model import DTYPES
from qwen3.load.resolve import resolve
from qwen3.measure.memory import available_bytes
from qwen3.model.footprint import planned_footprint

from ..common import CONFIGS, Answer, Timing, milliseconds, release_memory, seconds, side_by_side
from ..contract import errors
from ..random_checkpoint import random_checkpoint
from .bandwidth import bytes_per_second

CPU_DEFAULTS = {
    "model": "small",
    "dtypes": ["float32", "bfloat16"],
    "prefill": [512],
    "batch": [1, 8],
    "context": [128],
    "new_tokens": 16,
}
GPU_DEFAULTS = {
    "model": "Qwen3-30B-A3B",
    "dtypes": ["bfloat16"],
    "prefill": [512, 2048],
    "batch": [1, 8, 32],
    "context": [128, 2048],
    "new_tokens": 64,
}
ATTENTION = ("sdpa", "eager")
# batched_mm copies the weights of every token's experts: 19 GB for a prompt of 512 at the small shape.
EXPERTS = {"decode": ("grouped_mm", "batched_mm", "eager"), "prefill": ("grouped_mm", "eager")}
# Tokens that the gate looks at, and of each the log-probabilities of the most likely ones.
GATE_TOKENS, GATE_TOP = 8, 20
# Sequences at least in bfloat16, where rounding sends tokens to other experts, on either side: by chance, the error
# of the first token of one sequence is up to 2.1 times that of transformers, of eight tokens of eight 0.9 to 1.2 times.
GATE_SEQUENCES = 8
# Decode steps that show which implementation is the fastest.
TRIAL_TOKENS = 3


@dataclass(frozen=True)
class Cell:
    """A prefill of `batch` prompts of `context` tokens, or one decode step after them."""

    phase: str
    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.phase}, batch {self.batch}, {self.context} tokens"

    def prompts(self, vocab_size: int) -> list[list[int]]:
        return random_prompts(vocab_size, self.batch, self.context)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a shape of configs/ with random weights, a folder or a downloaded hub id")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"))
    parser.add_argument("--prefill", type=int, nargs="+", help="tokens of the prompts whose prefill is timed")
    parser.add_argument("--batch", type=int, nargs="+", help="sequences that decode together")
    parser.add_argument("--context", type=int, nargs="+", help="tokens before the decode steps")
    parser.add_argument("--new-tokens", type=int, help="decode steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(args: argparse.Namespace) -> Answer:
    device = resolve_device(args.device)
    settings = dict(GPU_DEFAULTS if device.type == "cuda" else CPU_DEFAULTS)
    settings |= {name: value for name in settings if (value := getattr(args, name))}
    copied = bytes_per_second(device, getattr(args, "output", None))
    settings |= {"rounds": args.rounds, "device": str(device), "copy_bytes_per_second": copied}
    print(f"{settings['model']} on {device}, a large copy moves {settings['copy_bytes_per_second'] / 1e9:.1f} GB/s")
    figures, how = [], set()
    for dtype in settings["dtypes"]:
        with checkpoint(settings["model"], DTYPES[dtype], device) as folder:
            together = fits_twice(folder, DTYPES[dtype], device)
            how.add("together" if together else "one after the other")
            compare = in_turns if together else apart
            for row in compare(folder, dtype, device, settings):
                print_row(row)
                figures.append(row)
        release_memory(device)
    name = f"generate_{Path(settings['model']).name}"
    return Answer(settings | {"both_sides_loaded": " or ".join(sorted(how))}, figures, name=name)


def checkpoint(model: str, dtype: torch.dtype, device: torch.device):
    """A context manager of the folder with the weights that both sides load."""
    if (CONFIGS / model / "config.json").is_file():
        return random_checkpoint(model, dtype, device)
    return nullcontext(resolve(model))


def fits_twice(folder: Path, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the weights of both sides fit, with a quarter more for activations and caches."""
    weights = planned_footprint(model_config(folder), dtype).nbytes
    return 2.5 * weights < available_bytes(device)


def cells(settings: dict) -> list[Cell]:
    sizes = itertools.product(settings["batch"], settings["context"])
    decode = [Cell("decode", batch, context) for batch, context in sizes]
    return decode + [Cell("prefill", 1, context) for context in settings["prefill"]]


def in_turns(folder: Path, dtype: str, device: torch.device, settings: dict) -> Iterator[dict]:
    """A row for each cell; every turn of ours is followed by one of theirs."""
    ours, theirs = Ours(folder, dtype, device, settings), Theirs(folder, dtype, device)
    in_engine = ours.llm.loop.call
    for cell in cells(settings):
        gate = theirs.gate(cell, ours.answers(cell))
        # In the engine's thread: a second thread's OpenMP team would slow down both sides.
        turn = in_engine(partial(theirs.turn, cell, settings["new_tokens"]))
        sides = {"ours": ours.turn(cell), "theirs": partial(in_engine, turn)}
        times = side_by_side(sides, settings["rounds"])
        yield row_of(cell, dtype, times, ours.read(cell), gate | theirs.settings(), settings)


def apart(folder: Path, dtype: str, device: torch.device, settings: dict) -> Iterator[dict]:
    """The same rows if the device holds one side at a time: ours takes all its turns, then is freed."""
    ours, measured = Ours(folder, dtype, device, settings), {}
    for cell in cells(settings):
        answers = ours.answers(cell)
        measured[cell] = answers, side_by_side({"ours": ours.turn(cell)}, settings["rounds"]), ours.read(cell)
    del ours
    release_memory(device)
    theirs = Theirs(folder, dtype, device)
    for cell, (answers, times, read) in measured.items():
        gate = theirs.gate(cell, answers)
        times |= side_by_side({"theirs": theirs.turn(cell, settings["new_tokens"])}, settings["rounds"])
        yield row_of(cell, dtype, times, read, gate | theirs.settings(), settings)


class Ours:
    """This engine, through the calls that a user makes."""

    def __init__(self, folder: Path, dtype: str, device: torch.device, settings: dict):
        longest = max(*settings["prefill"], *settings["context"])
        self.new_tokens = settings["new_tokens"]
        self.llm = LLM(
            folder,
            device=str(device),
            dtype=dtype,
            max_num_seqs=max(settings["batch"]),
            kv_block_size=BLOCK_SIZE,
            max_model_len=room_for(longest, max(self.new_tokens, GATE_TOKENS)),
        )
        require_room(self.llm, max(settings["batch"]))

    def prompts(self, cell: Cell) -> list[list[int]]:
        return cell.prompts(self.llm.config.vocab_size)

    def answers(self, cell: Cell) -> list[Completion]:
        """Answers for the gate, `cell.batch` at a time; the first are those of the prompts that are timed."""
        self.llm.reset_prefix_cache()
        groups = 1 if self.llm.dtype == torch.float32 else -(-GATE_SEQUENCES // cell.batch)
        prompts = random_prompts(self.llm.config.vocab_size, groups * cell.batch, cell.context)
        params, starts = greedy(GATE_TOKENS, GATE_TOP), range(0, len(prompts), cell.batch)
        return [answer for i in starts for answer in self.llm.generate(prompts[i : i + cell.batch], params)]

    def turn(self, cell: Cell) -> Callable[[], float]:
        """Returns the call that is timed, warmed up; the prompts of a decode are cached."""
        prompts = self.prompts(cell)
        prefill_seconds(self.llm, prompts)
        if cell.phase == "prefill":
            return lambda: prefill_seconds(self.llm, prompts)
        decode_seconds(self.llm, prompts, TRIAL_TOKENS)
        return lambda: decode_seconds(self.llm, prompts, self.new_tokens)

    def read(self, cell: Cell) -> float | None:
        """Bytes that a decode step must read."""
        if cell.phase == "prefill":
            return None
        prompts = self.prompts(cell)
        prefill_seconds(self.llm, prompts)
        return bytes_per_step(self.llm, prompts, self.new_tokens)


class Theirs:
    """Transformers' model in a minimal greedy loop: no generate(), no sampling code, only forward and argmax."""

    def __init__(self, folder: Path, dtype: str, device: torch.device):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
        self.model, self.device, self.dtype = model.to(device).eval(), device, dtype
        self.sparse = hasattr(model.config, "num_experts")
        # Renamed in transformers 5.24.
        self.cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self.chosen = ""
        self.tried_ms: dict[str, float] = {}

    def use(self, attention: str, experts: str) -> None:
        self.model.set_attn_implementation(attention)
        if self.sparse:
            self.model.set_experts_implementation(experts)
        self.chosen = f"{attention} + {experts}" if self.sparse else attention

    def settings(self) -> dict:
        """What was chosen for the last cell, and the time of everything that was tried for it."""
        return {"transformers": self.chosen, "transformers_tried_ms": self.tried_ms}

    def tensor(self, prompts: list[list[int]]) -> Tensor:
        return torch.tensor(prompts, device=self.device)

    @torch.inference_mode()
    def gate(self, cell: Cell, answers: list[Completion]) -> dict:
        """The errors of our log-probabilities; raises RuntimeError where they or the tokens leave the contract."""
        self.use("sdpa", "eager")
        sampled = self.tensor([answer.token_ids for answer in answers])
        tokens = self.tensor([answer.prompt_token_ids + answer.token_ids[:-1] for answer in answers])

        def forward() -> Tensor:
            return self.model(tokens, use_cache=False, logits_to_keep=sampled.shape[1]).logits.float()

        own = forward()
        with in_float32(self.model):
            exact = own if self.dtype == "float32" else forward()
        if self.dtype == "float32" and not torch.equal(exact.argmax(-1), sampled):
            raise RuntimeError(f"{cell} in float32: other greedy tokens than transformers")
        top = [[token.top for token in answer.logprobs] for answer in answers]
        ids = self.tensor([[[token for token, _ in best] for best in row] for row in top])
        ours = torch.tensor([[[logprob for _, logprob in best] for best in row] for row in top], device=self.device)
        own, exact = (logits.log_softmax(-1).gather(-1, ids) for logits in (own, exact))
        found = errors(ours - exact, own - exact, self.dtype)
        if not found["within"]:
            raise RuntimeError(f"{cell} in {self.dtype}: log-probabilities outside the contract: {found}")
        return found

    def turn(self, cell: Cell, new_tokens: int) -> Callable[[], float]:
        """Switches to the fastest implementation for this cell; each is tried after a warm-up."""
        tokens = self.tensor(cell.prompts(self.model.config.vocab_size))
        if cell.phase == "decode":
            measure = partial(self.decode, *self.prompt(tokens))
        else:
            measure = partial(self.prefill, tokens)
        tried, self.tried_ms = {}, {}
        for implementation in itertools.product(ATTENTION, EXPERTS[cell.phase] if self.sparse else ("",)):
            self.use(*implementation)
            measure(1)
            tried[implementation] = measure(TRIAL_TOKENS)
            self.tried_ms[self.chosen] = tried[implementation] * 1e3
        self.use(*min(tried, key=tried.__getitem__))
        return lambda: measure(new_tokens)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, steps: int = 1) -> float:
        """Seconds of one prefill, however many `steps` a decode would take."""

        def forward() -> list[int]:
            return self.model(tokens, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist()

        return seconds(forward, self.device)

    @torch.inference_mode()
    def prompt(self, tokens: Tensor) -> tuple[transformers.Cache, Tensor]:
        """The cache after the prompts, and the token that each of them gets."""
        self.use("sdpa", "eager")
        out = self.model(tokens, use_cache=True, logits_to_keep=1)
        return getattr(out, self.cache_name), out.logits.argmax(-1)

    @torch.inference_mode()
    def decode(self, cache: transformers.Cache, tokens: Tensor, steps: int) -> float:
        """Seconds per step; the cache holds the prompts alone again afterwards."""

        def generate() -> None:
            step = tokens
            for _ in range(steps):
                step = self.model(step, **{self.cache_name: cache}, use_cache=True).logits.argmax(-1)
                step.tolist()

        taken = seconds(generate, self.device)
        cache.crop(-steps)
        return taken / steps


@contextmanager
def in_float32(model: torch.nn.Module) -> Iterator[None]:
    """Inside, `model` computes in float32; its weights are widened one layer at a time, so that a large model fits."""
    base, dtype, hooks = model.model, model.dtype, []

    def widen(part: torch.nn.Module, inputs: tuple) -> None:
        part.float()

    def narrow(part: torch.nn.Module, inputs: tuple, output: object) -> None:
        part.to(dtype)

    for part in (base.embed_tokens, *base.layers, base.norm, model.lm_head):
        hooks += [part.register_forward_pre_hook(widen), part.register_forward_hook(narrow)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def row_of(cell: Cell, dtype: str, times: dict[str, Timing], read: float | None, found: dict, settings: dict) -> dict:
    """One row of the record. A time is that of a decode step or of a whole prefill; ratio: of the two medians."""
    tokens = cell.batch if cell.phase == "decode" else cell.batch * cell.context
    row = {"dtype": dtype, "phase": cell.phase, "batch": cell.batch, "context": cell.context}
    row["ratio"] = times["theirs"].median / times["ours"].median
    for side, timing in times.items():
        row |= milliseconds(side, timing)
        row[f"{side}_tokens_per_second"] = tokens / timing.median
    if read is not None:
        limit = read / settings["copy_bytes_per_second"]
        row |= {"bytes_per_step": int(read), "fraction_of_copy": limit / times["ours"].median}
    return row | found


def print_row(row: dict) -> None:
    cell = Cell(row["phase"], row["batch"], row["context"])
    line = f"{row['dtype']:9} {cell!s:32} {row['ratio']:.2f} times transformers ({row['transformers']}); "
    line += f"ours {row['ours_ms']:.2f} ms, {row['ours_tokens_per_second']:,.1f} tokens/s"
    if "fraction_of_copy" in row:
        line += f", {row['fraction_of_copy']:.0%} of the copy bandwidth"
    print(line, flush=True)
