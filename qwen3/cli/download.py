"""`qwen3 download`: a model from the hub into models/."""

import argparse
import sys

from ..errors import Qwen3Error, shown
from .interrupt import ends_at_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="ID", help="such as Qwen/Qwen3-30B-A3B, or its address on the hub")
    parser.add_argument(
        "-m", "--model", "--repo_id", "--repo-id", dest="repo_id", metavar="ID", help="the model, as an option"
    )
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--token", help="access token of the hub (default: the environment's HF_TOKEN)")


def run(args: argparse.Namespace) -> int:
    named = [name for name in (args.model, args.repo_id) if name is not None]
    if len(named) != 1:
        raise Qwen3Error("download takes the id of one model, such as `qwen3 download Qwen/Qwen3-30B-A3B`")
    with ends_at_once():
        from ..load import hub
    folder = hub.download(named[0], revision=args.revision, token=args.token)
    print(shown(f"{named[0]} is in {folder}"), file=sys.stderr)
    return 0
