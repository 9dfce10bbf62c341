"""`qwen3 download`: a model from the hub into models/."""

import argparse
import sys

from ..load import hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repo_id", "--repo-id", required=True, metavar="ID", help="such as Qwen/Qwen3-30B-A3B")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--token", help="access token of the hub (default: the environment's HF_TOKEN)")


def run(args: argparse.Namespace) -> int:
    folder = hub.download(args.repo_id, revision=args.revision, token=args.token)
    print(f"{args.repo_id} is in {folder}", file=sys.stderr)
    return 0
