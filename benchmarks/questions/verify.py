"""Does the engine compute what transformers computes, layer by layer, from the same weights?

Real text goes through transformers (eager attention, eager experts) and through every backend that runs here.
In float32 the logits may differ by 1e-4, and a layer's output by 1e-4 times its root mean square (at least 1). In
bfloat16 the RMS error may be at most twice transformers' own, each measured from a float32 pass of the same weights
through the same experts: rounding decides between two experts that score nearly the same, on either side, and one token
with another expert outweighs all rounding. The choice is checked separately: the router's logits keep the contract too,
and the chosen experts are those with the largest. The first layer outside is named and the exit code is 1.
"""

import argparse
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import LLM
from qwen3.errors import Qwen3Error
from qwen3.load.resolve import resolve
from qwen3_kernels.backend import BACKENDS, backend

from ..common import Answer
from ..contract import errors
from ..text import windows
from .trace import Trace, trace_ours, trace_transformers

# Triton's interpreter takes seconds a layer.
INTERPRETED_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--tokens", type=int, help="tokens of text (default: 256, or 24 in Triton's interpreter)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="which text")


class Pass(NamedTuple):
    """A pass over the text, and the pass in float32 of the same weights through the same experts."""

    actual: Trace
    exact: Trace


def run(args: argparse.Namespace) -> Answer:
    figures = []
    for dtype in args.dtypes:
        # "auto" decides on the device once, for both sides.
        options = {"device": args.device, "dtype": dtype, "max_num_seqs": 1}
        llm = LLM(args.model, backend="reference", **options)
        device = llm.device
        others = [name for name in BACKENDS if name != "reference" and runs(name, device)]
        interpreted = "triton" in others and device.type == "cpu"
        token_ids = windows(llm, 1, args.tokens or (INTERPRETED_TOKENS if interpreted else 256), args.seed)[0]
        traces = {"reference": trace_ours(llm, token_ids)}
        for name in others:
            traces[name] = trace_ours(LLM(args.model, backend=name, **options), token_ids)
        del llm
        peer = Peer(args.model, device, dtype, token_ids)
        for name, trace in traces.items():
            rows = compare(Pass(trace, peer.exact(trace)), peer.own, dtype)
            print_table(f"{args.model} in {dtype}, {name} beside transformers, {len(token_ids)} tokens", rows)
            figures += [{"dtype": dtype, "backend": name} | row for row in rows]
    settings = {"model": args.model, "dtypes": args.dtypes, "device": str(device), "seed": args.seed}
    within = all(row["within"] for row in figures)
    return Answer(settings | {"tokens": len(token_ids)}, figures, within=within)


def runs(name: str, device: torch.device) -> bool:
    try:
        backend(name, device.type)
    except RuntimeError as error:
        print(f"{name} is left out: {error}")
        return False
    return True


class Peer:
    """Transformers' model: one pass in `dtype`, then passes in float32."""

    def __init__(self, name: str, device: torch.device, dtype: str, token_ids: list[int]):
        """Raises Qwen3Error without transformers."""
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import transformers
        except ImportError:
            raise Qwen3Error("verify needs transformers, which is not installed: pip install transformers") from None
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            resolve(name), dtype=getattr(torch, dtype), attn_implementation="eager"
        )
        if hasattr(model.config, "num_experts"):
            model.set_experts_implementation("eager")
        model = model.to(device).eval()
        self.dtype, self.token_ids = dtype, token_ids
        actual = trace_transformers(model, token_ids)
        self.model = model.float()
        self.own = Pass(actual, actual if dtype == "float32" else self.exact(actual))

    def exact(self, trace: Trace) -> Trace:
        """The pass in float32: of bfloat16 through the experts that `trace` chose, of float32 transformers' own."""
        if self.dtype == "float32":
            return self.own.actual
        return trace_transformers(self.model, self.token_ids, trace.expert_ids)


def compare(ours: Pass, theirs: Pass, dtype: str) -> list[dict]:
    """One row for each layer and one for the logits."""
    rows = []
    for layer, exact in enumerate(ours.exact.hidden):
        differences = (p.actual.hidden[layer] - p.exact.hidden[layer] for p in (ours, theirs))
        found = errors(*differences, dtype, scale_of(exact))
        row = {"place": f"layer {layer}"} | found
        if layer in ours.actual.expert_ids:
            row |= compare_routers(layer, ours, theirs, dtype)
            row["within"] = found["within"] and row["within"]
        rows.append(row)
    actual, own = ours.actual.logits, theirs.actual.logits
    last = {"place": "logits"} | errors(*(p.actual.logits - p.exact.logits for p in (ours, theirs)), dtype)
    last["kl_divergence_nats"] = F.kl_div(
        actual.double().log_softmax(-1), own.double().log_softmax(-1), reduction="batchmean", log_target=True
    ).item()
    last["same_argmax"] = (actual.argmax(-1) == own.argmax(-1)).double().mean().item()
    return [*rows, last]


def compare_routers(layer: int, ours: Pass, theirs: Pass, dtype: str) -> dict:
    """The part of a layer's row that is about its router."""
    logits, ids = ours.actual.router_logits[layer], ours.actual.expert_ids[layer]
    differences = (p.actual.router_logits[layer] - p.exact.router_logits[layer] for p in (ours, theirs))
    found = errors(*differences, dtype, scale_of(ours.exact.router_logits[layer]))
    return {
        "router_rms_error": found["rms_error"],
        "transformers_router_rms_error": found["transformers_rms_error"],
        "same_experts": same_experts(ids, theirs.actual.expert_ids[layer]),
        "within": found["within"] and are_largest(logits, ids),
    }


def are_largest(logits: Tensor, ids: Tensor) -> bool:
    """Whether `ids` [T, k] are k different experts with the largest logits [T, E], up to rounding in the softmax."""
    chosen, ids = logits.gather(-1, ids).double().sort(-1).values, ids.sort(-1).values
    largest = logits.double().topk(ids.shape[-1]).values.flip(-1)
    same = bool((largest - chosen).abs().max() <= 1e-6 * logits.abs().max().clamp(min=1))
    return same and bool((ids.diff(dim=-1) > 0).all())


def scale_of(exact: Tensor) -> float:
    """Root mean square, at least 1."""
    return max(1.0, exact.double().square().mean().sqrt().item())


def same_experts(ours: Tensor, theirs: Tensor) -> float:
    """Share of the tokens for which both sides choose the same set of experts. Both [T, k]."""
    return (ours.sort(-1).values == theirs.to(ours.device).sort(-1).values).all(-1).double().mean().item()


def first_outside(rows: list[dict]) -> str | None:
    """The first place that leaves the contract."""
    return next((row["place"] for row in rows if not row["within"]), None)


def print_table(title: str, rows: list[dict]) -> None:
    print(title)
    print(f"{'':10} {'max error':>10} {'RMS error':>10} {'theirs':>10} {'same experts':>13}")
    for row in rows:
        agreement = f"{row['same_experts']:13.1%}" if "same_experts" in row else " " * 13
        numbers = (row[name] for name in ("max_error", "rms_error", "transformers_rms_error"))
        line = " ".join(f"{number:10.2e}" for number in numbers)
        print(f"{row['place']:10} {line} {agreement}{'' if row['within'] else '  outside the contract'}")
    last = rows[-1]
    print(f"KL divergence {last['kl_divergence_nats']:.2e} nats, the same next token {last['same_argmax']:.1%}")
    place = first_outside(rows)
    print(f"{place} is the first outside the contract\n" if place else "all within the contract\n")
