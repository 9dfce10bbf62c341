"""`qwen3 info`: architecture and memory needs of a model, without loading it."""

import argparse

from ..errors import Qwen3Error
from .interrupt import ends_at_once
from .options import add_engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "a folder, a hub id (fetches config.json alone where the model is not here), or tiny"
    parser.add_argument("model", nargs="?", metavar="MODEL", help=text)
    parser.add_argument("-m", "--model", "--repo_id", dest="repo_id", metavar="MODEL", help="the model, as an option")
    add_engine(parser, "device", "dtype")


def run(args: argparse.Namespace) -> int:
    if args.model is not None and args.repo_id is not None:
        raise Qwen3Error("MODEL and --model were given: one of them is enough")
    with ends_at_once():
        from .description import describe
    print(describe(args.model if args.repo_id is None else args.repo_id, args.device, args.dtype))
    return 0
