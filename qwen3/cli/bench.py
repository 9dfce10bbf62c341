"""`qwen3 bench`: prefill and decode speed of a model on this device, over batch sizes and context lengths."""

import argparse
from itertools import product
from pathlib import Path

from ..errors import Qwen3Error, counted
from .interrupt import ends_at_once
from .options import add_engine, add_model, engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_mutually_exclusive_group()
    add_model(model)
    model.add_argument(
        "--random-weights",
        type=Path,
        metavar="CONFIG",
        help="a config.json or its folder: a model of that shape with random weights, nothing to download",
    )
    parser.add_argument(
        "--batch", type=whole_numbers, default=[1, 8], metavar="N,N", help="sequences that run together (default: 1,8)"
    )
    parser.add_argument(
        "--context",
        type=whole_numbers,
        default=[128, 1024],
        metavar="N,N",
        help="tokens of each prompt (default: 128,1024)",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=32, metavar="N", help="tokens to generate for each prompt (default: 32)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="runs of which the median is taken (default: 3)"
    )
    add_engine(parser, "device", "dtype", "backend")


def whole_numbers(text: str) -> list[int]:
    """ "1,8" -> [1, 8], for argparse."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if 0 in numbers:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers, 1 or more, with commas between them")
    return numbers


def run(args: argparse.Namespace) -> int:
    if args.new_tokens < 2 or args.rounds < 1:
        raise Qwen3Error("--new-tokens must be 2 or more, the first token is the prefill's; --rounds must be 1 or more")
    with ends_at_once():
        import torch

        from ..config.model import dtype_name
        from ..llm import LLM
        from ..load.resolve import model_name
        from ..measure.roofline import copy_bandwidth
        from . import speed
        from .model import size_text
    llm = LLM(
        speed.config_folder(args.random_weights) if args.random_weights else args.repo_id,
        **engine_options(args),
        max_num_seqs=max(args.batch),
        max_num_batched_tokens=max(8192, max(args.batch) * speed.BLOCK_SIZE),
        kv_block_size=speed.BLOCK_SIZE,
        max_model_len=speed.room_for(max(args.context), args.new_tokens),
        random_weights=args.random_weights is not None,
    )
    speed.require_room(llm, max(args.batch))
    bandwidth = copy_bandwidth(llm.device)
    print(f"{model_name(llm.folder)} · {size_text(llm)}{' · random weights' * llm.random_weights}")
    card = (
        torch.cuda.get_device_name(llm.device)
        if llm.device.type == "cuda"
        else counted(torch.get_num_threads(), "thread")
    )
    place = f"{llm.device} ({card}) · {dtype_name(llm.dtype)} · {llm.backend} backend"
    print(f"{place} · a copy moves {bandwidth / 1e9:,.1f} GB/s")
    print(f"medians of {counted(args.rounds, 'run')} of {args.new_tokens} new tokens, after one to warm up", flush=True)
    print("  ".join(speed.COLUMNS))
    for batch, context in product(args.batch, args.context):
        measured = speed.measure(llm, batch, context, args.new_tokens, args.rounds)
        print(speed.table_row(measured, bandwidth), flush=True)
    return 0
