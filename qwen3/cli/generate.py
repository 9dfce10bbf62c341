"""`qwen3 generate`: the answer to one prompt, or to every prompt of a JSONL file."""

import argparse

from ..errors import Qwen3Error
from .jsonl.batch import answer_file
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
        metavar="IN.JSONL",
        help='one JSON object a line: {"prompt": TEXT} or {"messages": [...]}, with any sampling option and "id", or a '
        "line of OpenAI's batch files; - is stdin",
    )
    parser.add_argument("--output", metavar="OUT.JSONL", help="answers to --prompts-file; - is stdout (default)")
    parser.add_argument("--resume", action="store_true", help="go on with an --output whose run did not end")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    add_answering(parser)


def run(args: argparse.Namespace) -> int:
    if args.prompts_file is None and (args.output is not None or args.resume):
        flag = "--output" if args.output is not None else "--resume"
        raise Qwen3Error(f"{flag} goes with --prompts-file: a single answer is printed")
    if args.prompt is not None and not args.prompt:
        raise Qwen3Error("--prompt is empty: give some text")
    params, options = sampling_params(args), prompt_options(args)
    if args.prompts_file is not None:
        return answer_file(args, params, options)
    llm = load_model(args)
    for piece in llm.stream(prompt_ids(llm, options, prompt=args.prompt), params):
        print(piece, end="", flush=True)
    print()
    print_statistics(args, llm)
    return 0
