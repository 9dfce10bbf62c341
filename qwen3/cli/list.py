"""`qwen3 list`: the models on this machine, in models/ and in the cache of Hugging Face."""

import argparse

from .interrupt import ends_at_once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Takes no options."""


def run(args: argparse.Namespace) -> int:
    with ends_at_once():
        from .listing import lines
    for line in lines():
        print(line)
    return 0
