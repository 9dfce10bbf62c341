"""`qwen3 chat`: a conversation on the terminal."""

import argparse
import re
import sys
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from ..engine.params import SamplingParams
from ..errors import Qwen3Error
from .interrupt import ends_at_once
from .options import PromptOptions, add_answering, prompt_ids, prompt_options, sampling_params
from .streams import StreamError, require_stdout, say, style

if TYPE_CHECKING:
    from ..llm import LLM

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends"
# No turn has more characters than the longest context has room for.
_MAX_LINE = 16 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_answering(parser)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    require_stdout()
    with ends_at_once():
        from .model import load_model, print_statistics
    llm = load_model(args, chats=True)
    _converse(llm, params, prompt_options(args))
    print_statistics(args, llm)
    return 0


def _converse(llm: "LLM", params: SamplingParams, options: PromptOptions) -> None:
    """Answers turns from stdin until it ends; Ctrl-C stops an answer, and the program when nothing runs."""
    print(_HELP, file=sys.stderr)
    history: list[dict] = []
    while (line := _read_turn()) is not None:
        command, _, rest = line.strip().partition(" ")
        if command in ("/exit", "/quit"):
            break
        elif command == "/reset":
            history = []
        elif command == "/system":
            options = replace(options, system=rest.strip() or None)
            print("system message set" if options.system else "system message removed", file=sys.stderr)
        elif command.startswith("/"):
            say(_HELP if command == "/help" else f"there is no command {command}: {_HELP}")
        elif command:
            turn = [*history, {"role": "user", "content": line.strip()}]
            try:
                text = _print_answer(llm, prompt_ids(llm, options, messages=turn), params)
            except StreamError:
                raise
            except Qwen3Error as error:
                say(f"error: {error} (/reset starts a new conversation)")
                continue
            history = [*turn, {"role": "assistant", "content": text}]


def _read_turn() -> str | None:
    """Returns the next line of stdin, None at its end."""
    if sys.stdin is None:
        return None
    if sys.stdin.isatty() and sys.stdout.isatty():
        return _edited_line()
    print("> ", end="", file=sys.stderr, flush=True)
    try:
        line = sys.stdin.readline(_MAX_LINE + 1)
    except UnicodeDecodeError:
        raise Qwen3Error("stdin is not text in the encoding of the terminal: convert it to UTF-8") from None
    if len(line) > _MAX_LINE:
        raise Qwen3Error(f"stdin has a line of more than {_MAX_LINE} characters, which no context has room for")
    return line if line else None


def _edited_line() -> str | None:
    """Reads a line with the keys of readline where Python has it: a terminal by itself cuts a line at 4,095 bytes."""
    with suppress(ImportError):
        import_module("readline")  # which gives its keys to input()
    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        return None
    except UnicodeDecodeError:
        raise Qwen3Error("stdin is not text in the encoding of the terminal: convert it to UTF-8") from None


def _print_answer(llm: "LLM", token_ids: list[int], params: SamplingParams) -> str:
    """Prints the answer piece by piece, thinking dimmed on a terminal; Ctrl-C ends it. Returns it for the history."""
    from .answer import report

    stream, text = llm.stream(token_ids, params), ""
    try:
        for piece in stream:
            text += piece
            for part in re.split("(<think>|</think>)", piece):
                if part == "<think>":
                    style(_DIM)
                print(part, end="", flush=True)
                if part == "</think>":
                    style(_PLAIN)
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=sys.stderr)
    finally:
        style(_PLAIN)
        print(flush=True)
    report(llm, stream.completion, params)
    # Reasoning that was cut is closed: the template takes it out of the history like any other.
    return text + "\n</think>\n\n" if "<think>" in text and "</think>" not in text else text
