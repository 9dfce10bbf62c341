"""Which model fits which card, and how many tokens of KV cache? Computed from the configs, not measured."""

import argparse

import torch

from qwen3.config.hf import model_config
from qwen3.model.footprint import planned_footprint

from ..common import CONFIGS, Answer, config_folder

# Memory as the makers name it, in GB; the drivers report slightly more.
CARDS = {"RTX 4090": 24, "L40S": 48, "A100 or H100": 80, "H200": 141, "B200": 192}
MODELS = ("Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-235B-A22B")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory-utilization", type=float, default=0.9, help="share of the memory that may be used")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"folders of {CONFIGS.name}/")


def run(args: argparse.Namespace) -> Answer:
    figures = []
    for model in args.models:
        config = model_config(config_folder(model))
        weights = planned_footprint(config, torch.bfloat16).nbytes
        per_token = config.kv_bytes_per_token(torch.bfloat16)
        for card, gigabytes in CARDS.items():
            left = int(gigabytes * 1e9 * args.memory_utilization) - weights
            tokens = max(0, left // per_token)
            figures.append(
                {
                    "model": model,
                    "weight_bytes": weights,
                    "kv_bytes_per_token": per_token,
                    "card": card,
                    "memory_gb": gigabytes,
                    "tokens": tokens,
                }
            )
            print(f"{model} ({weights / 1e9:.1f} GB) on {card} ({gigabytes} GB): {tokens:,} tokens of KV cache")
    settings = {"dtype": "bfloat16", "memory_utilization": args.memory_utilization}
    return Answer(settings, figures)
