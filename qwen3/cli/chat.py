"""`qwen3 chat`: a conversation on the terminal."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace

from ..engine.params import SamplingParams
from ..errors import Qwen3Error
from ..llm import LLM
from .options import (
    PromptOptions,
    add_answering,
    load_model,
    print_statistics,
    prompt_ids,
    prompt_options,
    sampling_params,
)

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_answering(parser)


def run(args: argparse.Namespace) -> int:
    params = sampling_params(args)
    llm = load_model(args)
    _converse(llm, params, prompt_options(args))
    print_statistics(args, llm)
    return 0


def _converse(llm: LLM, params: SamplingParams, options: PromptOptions) -> None:
    """Answers turns from stdin until it ends; Ctrl-C stops an answer, and the program when nothing runs."""
    if not llm.tokenizer.has_chat_template:
        raise Qwen3Error(f"{llm.folder} has no chat template, so it cannot chat: use `qwen3 generate`")
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
            print(_HELP, file=sys.stderr)
        elif command:
            turn = [*history, {"role": "user", "content": line.strip()}]
            try:
                text = _print_answer(llm.stream(prompt_ids(llm, options, messages=turn), params))
            except Qwen3Error as error:
                print(f"error: {error} (/reset starts a new conversation)", file=sys.stderr)
                continue
            history = [*turn, {"role": "assistant", "content": text}]


def _read_turn() -> str | None:
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line if line else None


def _print_answer(pieces: Iterator[str]) -> str:
    """Prints the answer piece by piece, thinking dimmed on a terminal; Ctrl-C ends it. Returns what was printed."""
    text = ""
    colour = sys.stdout.isatty()
    try:
        for piece in pieces:
            text += piece
            shown = piece
            if colour:
                shown = piece.replace("<think>", _DIM + "<think>").replace("</think>", "</think>" + _PLAIN)
            print(shown, end="", flush=True)
    except KeyboardInterrupt:
        print(" (stopped)", end="", file=sys.stderr)
    print(_PLAIN if colour else "", flush=True)
    return text
