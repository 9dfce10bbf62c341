"""`qwen3 generate`: the answer to one prompt, or to every prompt of a JSONL file."""

import argparse
from pathlib import Path

from ..errors import Qwen3Error
from .jsonl import answer_lines, read_lines, whole_or_nothing
from .options import (
    add_answering,
    load_model,
    print_statistics,
    prompt_ids,
    prompt_options,
    sampling_params,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="the prompt")
    what.add_argument(
        "--prompts-file",
        type=Path,
        metavar="IN.JSONL",
        help='one JSON object a line: {"prompt": TEXT} or {"messages": [...]}, with any of "id", "max_new_tokens", '
        '"temperature", "top_k", "top_p", "min_p", "seed", "stop", ...',
    )
    parser.add_argument("--output", type=Path, metavar="OUT.JSONL", help="answers to --prompts-file (default: stdout)")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    add_answering(parser)


def run(args: argparse.Namespace) -> int:
    if args.output and not args.prompts_file:
        raise Qwen3Error("--output goes with --prompts-file: a single answer is printed")
    if args.prompt is not None and not args.prompt:
        raise Qwen3Error("--prompt is empty: give some text")
    params, options = sampling_params(args), prompt_options(args)
    code = 0
    if args.prompts_file:
        lines = read_lines(args.prompts_file)
        # The output is opened before the model is loaded: minutes may lie between.
        with whole_or_nothing(args.output) as write:
            llm = load_model(args)
            code = answer_lines(llm, lines, write, params, options, str(args.prompts_file))
    else:
        llm = load_model(args)
        for piece in llm.stream(prompt_ids(llm, options, prompt=args.prompt), params):
            print(piece, end="", flush=True)
        print()
    print_statistics(args, llm)
    return code
