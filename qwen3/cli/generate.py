"""`qwen3 generate`: the answer to one prompt, or to every prompt of a JSONL file."""

import argparse
import os
import stat
import sys

from ..errors import Qwen3Error, brief, one_line
from .interrupt import ends_at_once
from .options import add_answering, prompt_ids, prompt_options, sampling_params, text
from .streams import require_stdout, say

# A prompt has no more bytes than the longest context has room for.
_MAX_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text", nargs="*", type=text, metavar="PROMPT", help="the prompt; - is stdin's text, alone or behind a prompt"
    )
    parser.add_argument("-p", "--prompt", type=text, metavar="PROMPT", help="the prompt, as an option")
    parser.add_argument(
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
    if len([word for word in args.text if word != "-"]) > 1 or args.text.count("-") > 1:
        raise Qwen3Error(
            f"the prompt has {len(args.text)} parts, {brief(args.text[1])} is the second: put it in quotes"
        )
    given = {"PROMPT": args.text or None, "--prompt": args.prompt, "--prompts-file": args.prompts_file}
    if len(ways := [name for name, value in given.items() if value is not None]) > 1:
        raise Qwen3Error(f"{ways[0]} and {ways[1]} were given: one of them is enough")
    if args.prompts_file is None and (args.output is not None or args.resume):
        flag = "--resume" if args.output is None else "--output"
        raise Qwen3Error(f"{flag} goes with --prompts-file: a single answer is printed")
    # Checks that need no model run before PyTorch is imported.
    params, options = sampling_params(args), prompt_options(args)
    if args.output in (None, "-"):
        require_stdout()
    if args.prompts_file is not None:
        with ends_at_once():
            from .jsonl.batch import answer_file
        return answer_file(args, params, options)
    prompt = _prompt(args.text or ([] if args.prompt is None else [args.prompt]))
    with ends_at_once():
        from .answer import report
        from .model import load_model, print_statistics
    llm = load_model(args, chats=False)
    if "-" not in args.text and args.prompt != "-" and _waits_in_a_pipe():
        say("the text in the pipe is not read: put a - behind the prompt to add it")
    stream = llm.stream(prompt_ids(llm, options, prompt=prompt), params)
    begun = False
    try:
        for piece in stream:
            begun = True
            print(piece, end="", flush=True)
    except BaseException:
        if begun:
            print(flush=True)  # the error message begins on a new line
        raise
    print(flush=True)
    report(llm, stream.completion, params)
    print_statistics(args, llm)
    return 0


def _prompt(given: list[str]) -> str:
    """Joins the parts of the prompt, a `-` replaced by stdin's text; without a part the prompt comes from a pipe."""
    ways = "give it as an argument, through a pipe, with --prompt, or many with --prompts-file"
    if not given and (sys.stdin is None or sys.stdin.isatty()):
        raise Qwen3Error(f"there is no prompt: {ways}")
    prompt = "\n\n".join(read_stdin(ways) if part == "-" else part for part in given or ["-"])
    if not prompt:
        raise Qwen3Error(f"the prompt is empty: {ways}")
    return prompt


def _waits_in_a_pipe() -> bool:
    """Tells whether stdin is a pipe that holds text, as far as the system can say without reading it."""
    try:
        import fcntl
        import termios

        waiting = bytearray(4)
        if not stat.S_ISFIFO(os.fstat(0).st_mode):
            return False
        fcntl.ioctl(0, termios.FIONREAD, waiting)
        return any(waiting)
    except (ImportError, OSError):
        return False


def read_stdin(advice: str) -> str:
    """Returns all of stdin without its last line end: `echo` and editors add one."""
    if sys.stdin is None:
        raise Qwen3Error(f"stdin is closed: {advice}")
    try:
        # A program that calls this one may have put a stream without bytes in place of stdin.
        stream = getattr(sys.stdin, "buffer", sys.stdin)
        data = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Qwen3Error(f"stdin cannot be read ({one_line(error)}): {advice}") from None
    if len(data) > _MAX_BYTES:
        raise Qwen3Error(f"stdin has more than {_MAX_BYTES / 1e6:.0f} MB, which no context has room for: {advice}")
    try:
        prompt = data if isinstance(data, str) else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Qwen3Error(f"stdin is not UTF-8 text ({one_line(error)}): convert it first") from None
    return prompt.removesuffix("\n").removesuffix("\r")
