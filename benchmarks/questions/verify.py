"""Does the engine compute what transformers computes, layer by layer, from the same weights?

Real text goes through transformers (eager attention, eager experts), the reference path and, where it can run, Triton.
In float32 the logits may differ by 1e-4, and a layer's output by 1e-4 times its root mean square (at least 1). In
bfloat16 the RMS error against float32 of the same weights may be at most twice transformers' own. The first layer
outside is named and the exit code is 1.
"""

import argparse
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3 import LLM
from qwen3.errors import Qwen3Error
from qwen3.hub import resolve
from qwen3_kernels.backend import backend

from ..common import Answer
from ..text import windows
from .trace import Trace, trace_ours, trace_transformers

FLOAT32_LIMIT = 1e-4
BFLOAT16_RATIO = 2.0
# Triton's interpreter takes seconds a layer.
INTERPRETED_TOKENS = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--tokens", type=int, help="tokens of text (default: 256, or 24 in Triton's interpreter)")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="which text")


@dataclass(frozen=True)
class Peer:
    """Transformers' pass over the text, and the pass in float32 of the same weights."""

    own: Trace
    exact: Trace


def run(args: argparse.Namespace) -> Answer:
    figures = []
    for dtype in args.dtypes:
        # "auto" decides on the device once, for both sides.
        options = {"device": args.device, "dtype": dtype, "max_num_seqs": 1}
        reference = LLM(args.model, backend="reference", **options)
        backends = ["reference"] + ["triton"] * triton_runs(reference.device)
        interpreted = "triton" in backends and reference.device.type == "cpu"
        token_ids = windows(reference, 1, args.tokens or (INTERPRETED_TOKENS if interpreted else 256), args.seed)[0]
        peer = load_peer(args.model, reference.device, dtype, token_ids)
        for name in backends:
            llm = reference if name == "reference" else LLM(args.model, backend=name, **options)
            rows = compare(trace_ours(llm, token_ids), peer, dtype)
            print_table(f"{args.model} in {dtype}, {name} beside transformers, {len(token_ids)} tokens", rows)
            figures += [{"dtype": dtype, "backend": name} | row for row in rows]
    settings = {"model": args.model, "dtypes": args.dtypes, "device": str(reference.device), "seed": args.seed}
    within = all(row["within"] for row in figures)
    return Answer(settings | {"tokens": len(token_ids)}, figures, within=within)


def triton_runs(device: torch.device) -> bool:
    try:
        backend("triton", device.type)
    except RuntimeError as error:
        print(f"triton is left out: {error}")
        return False
    return True


def load_peer(name: str, device: torch.device, dtype: str, token_ids: list[int]) -> Peer:
    """Raises Qwen3Error where transformers is not installed."""
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
    own = trace_transformers(model, token_ids)
    return Peer(own, own if dtype == "float32" else trace_transformers(model.float(), token_ids))


def compare(ours: Trace, peer: Peer, dtype: str) -> list[dict]:
    """One row for each layer and one for the logits; errors are those from float32, each side's own."""
    rows = []
    for layer, (actual, own, exact) in enumerate(zip(ours.hidden, peer.own.hidden, peer.exact.hidden, strict=True)):
        row = {"place": f"layer {layer}"} | errors(actual, own, exact, dtype, float32_scale(exact))
        if layer in ours.expert_ids:
            row["same_experts"] = same_experts(ours.expert_ids[layer], peer.own.expert_ids[layer])
        rows.append(row)
    actual, own, exact = ours.logits, peer.own.logits, peer.exact.logits
    last = {"place": "logits"} | errors(actual, own, exact, dtype, 1.0)
    last["kl_divergence_nats"] = F.kl_div(
        actual.double().log_softmax(-1), own.double().log_softmax(-1), reduction="batchmean", log_target=True
    ).item()
    last["same_argmax"] = (actual.argmax(-1) == own.argmax(-1)).double().mean().item()
    return rows + [last]


def float32_scale(hidden: Tensor) -> float:
    return max(1.0, hidden.double().square().mean().sqrt().item())


def errors(actual: Tensor, own: Tensor, exact: Tensor, dtype: str, scale: float) -> dict:
    """Max and RMS distance from `exact`, beside transformers' own RMS; `within` the contract (NaN never is)."""
    difference, their_difference = actual.double() - exact.double(), own.double() - exact.double()
    largest, rms = difference.abs().max().item(), difference.square().mean().sqrt().item()
    their_rms = their_difference.square().mean().sqrt().item()
    within = largest <= FLOAT32_LIMIT * scale if dtype == "float32" else rms <= BFLOAT16_RATIO * their_rms
    return {"max_error": largest, "rms_error": rms, "transformers_rms_error": their_rms, "within": within}


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
