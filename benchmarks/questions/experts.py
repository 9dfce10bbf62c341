"""How many experts does a batch of tokens hit, how evenly, and what does that do to the bytes of a decode step?

The routing of every token of several windows of real text (files of the Python standard library that the embedded model
was not trained on), beside the formula for experts chosen at random: E * (1 - (1 - k/E)^B). A batch is B tokens of
unrelated places, as continuous batching makes it, or B neighbours, as a chunk of one prompt. The bytes of larger models
are computed with the formula, not measured.
"""

import argparse
from statistics import fmean

import torch
from torch import Tensor

from qwen3 import LLM
from qwen3.config.hf import model_config
from qwen3.config.model import ModelConfig
from qwen3.errors import Qwen3Error
from qwen3.model.footprint import planned_footprint

from ..common import Answer, config_folder, settings_of
from ..text import windows
from .trace import trace_ours

KINDS = ("unrelated", "neighbours")
EXTRAPOLATED = ("Qwen3-30B-A3B", "Qwen3-235B-A22B")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help="folder, downloaded hub id, or tiny")
    parser.add_argument("--windows", type=int, default=8, help="windows of text")
    parser.add_argument("--window-tokens", type=int, default=512, help="tokens of a window")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="tokens in a batch")
    parser.add_argument("--samples", type=int, default=200, help="sampled batches of each size")
    parser.add_argument("--seed", type=int, default=0, help="of the windows and the batches")


def run(args: argparse.Namespace) -> Answer:
    llm = LLM(args.model, max_num_seqs=1)
    config = llm.config
    if not config.num_experts:
        raise Qwen3Error(f"{args.model} has no experts: choose a mixture of experts")
    if max(args.batches) > args.window_tokens:
        raise Qwen3Error(f"a batch of {max(args.batches)} is longer than a window of {args.window_tokens} tokens")
    texts = windows(llm, args.windows, args.window_tokens, args.seed)
    traces = [trace_ours(llm, window).expert_ids for window in texts]
    figures = []
    for layer in traces[0]:
        chosen = torch.cat([trace[layer].cpu() for trace in traces])
        figures += distinct_figures(layer, chosen, config, args)
        figures.append(load_figures(layer, chosen, config.num_experts))
    measured = [f for f in figures if f["figure"] == "distinct"]
    for batch in args.batches:
        rows = [f for f in measured if f["tokens"] == batch]
        unrelated, neighbours = (fmean(f["mean"] for f in rows if f["batch"] == kind) for kind in KINDS)
        uniform = uniform_distinct(config.num_experts, config.top_k, batch)
        print(
            f"{batch:4} tokens: {unrelated:5.1f} experts of {config.num_experts} in unrelated places, "
            f"{neighbours:5.1f} in neighbours, {uniform:5.1f} at random"
        )
        figures.append(step_figures(args.model, config, batch, unrelated, "measured"))
        figures.append(step_figures(args.model, config, batch, uniform, "computed"))
    for name in EXTRAPOLATED:
        larger = model_config(config_folder(name))
        for batch in args.batches:
            hit = uniform_distinct(larger.num_experts, larger.top_k, batch)
            figures.append(step_figures(name, larger, batch, hit, "computed"))
    for load in (f for f in figures if f["figure"] == "load"):
        print(
            f"layer {load['layer']:2}: load entropy {load['entropy_bits']:.2f} of {load['uniform_entropy_bits']:.2f} "
            f"bits, the busiest expert has {load['max_over_mean']:.1f} times the mean"
        )
    for step in (f for f in figures if f["figure"] == "step" and f["model"] == EXTRAPOLATED[0]):
        print(
            f"{step['model']}, {step['tokens']} tokens: {step['weight_bytes'] / 1e9:.2f} GB of weights a step, "
            f"{step['weight_bytes_per_token'] / 1e9:.2f} GB a token (computed)"
        )
    return Answer(settings_of(args), figures)


def uniform_distinct(experts: int, top_k: int, tokens: int) -> float:
    """Distinct experts expected when each token chooses `top_k` of `experts` at random."""
    return experts * (1 - (1 - top_k / experts) ** tokens)


def distinct(expert_ids: Tensor) -> int:
    """Experts hit by at least one of the tokens. expert_ids [T, k]."""
    return expert_ids.unique().numel()


def distinct_figures(layer: int, expert_ids: Tensor, config: ModelConfig, args: argparse.Namespace) -> list[dict]:
    """Spread of `distinct` over batches sampled from expert_ids [T, k]."""
    generator = torch.Generator().manual_seed(args.seed)
    total, figures = len(expert_ids), []
    for tokens in args.batches:
        for batch in KINDS:
            counts = []
            for _ in range(args.samples):
                if batch == "unrelated":
                    rows = torch.randperm(total, generator=generator)[:tokens]
                else:
                    # A run of neighbours stays within its window.
                    window = int(torch.randint(total // args.window_tokens, (), generator=generator))
                    start = int(torch.randint(args.window_tokens - tokens + 1, (), generator=generator))
                    rows = window * args.window_tokens + start + torch.arange(tokens)
                counts.append(distinct(expert_ids[rows]))
            low, middle, high = torch.tensor(counts).double().quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()
            uniform = uniform_distinct(config.num_experts, config.top_k, tokens)
            figures.append(
                {
                    "figure": "distinct",
                    "layer": layer,
                    "tokens": tokens,
                    "batch": batch,
                    "mean": fmean(counts),
                    "median": middle,
                    "p20": low,
                    "p80": high,
                    "uniform": uniform,
                }
            )
    return figures


def load_figures(layer: int, expert_ids: Tensor, experts: int) -> dict:
    """How evenly the tokens spread over the experts of one layer; the entropy is that of the experts' shares."""
    counts = expert_ids.flatten().bincount(minlength=experts).double()
    share = counts / counts.sum()
    entropy = -torch.special.xlogy(share, share).sum() / torch.tensor(2.0).double().log()
    return {
        "figure": "load",
        "layer": layer,
        "tokens_per_expert": counts.long().tolist(),
        "entropy_bits": entropy.item(),
        "uniform_entropy_bits": torch.tensor(float(experts)).log2().item(),
        "max_over_mean": (counts.max() / counts.mean()).item(),
        "unused_experts": int((counts == 0).sum()),
    }


def step_figures(model: str, config: ModelConfig, tokens: int, experts_hit: float, source: str) -> dict:
    """Weights that one decode step reads when `experts_hit` experts are hit in each sparse layer; no keys and values.

    The rows of the embedding are left out, they are a few kilobytes; the output layer, tied or not, is read whole.
    """
    counted = planned_footprint(config, config.dtype or torch.bfloat16)
    sparse = sum(config.is_moe_layer(layer) for layer in range(config.num_layers))
    read = counted.shared_bytes + sparse * experts_hit * counted.expert_bytes
    return {
        "figure": "step",
        "model": model,
        "source": source,
        "tokens": tokens,
        "experts_hit": experts_hit,
        "weight_bytes": int(read),
        "weight_bytes_per_token": int(read / tokens),
    }
