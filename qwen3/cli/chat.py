"""From messages to streamed text: one answer, or a conversation on the terminal."""

import sys
from collections.abc import Iterator

from ..errors import Qwen3Error
from ..llm import LLM
from ..engine.params import SamplingParams

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends"


def prompt_ids(llm: LLM, messages: list[dict], raw: bool, thinking: bool) -> list[int]:
    """The tokens of a prompt; the last message as it stands when raw or when the model has no chat template."""
    if not raw and llm.tokenizer.has_chat_template:
        return llm.render(messages, **({} if thinking else {"enable_thinking": False}))
    if len(messages) > 1 or not thinking:
        what = "more than one message" if len(messages) > 1 else "--no-thinking"
        why = "--raw was given" if raw else f"{llm.folder} has none"
        raise Qwen3Error(f"{what} needs a chat template, and {why}")
    return llm.tokenizer.encode(messages[-1]["content"])


def with_system(system: str | None, messages: list[dict]) -> list[dict]:
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def answer(llm: LLM, prompt: str, params: SamplingParams, options: dict) -> Iterator[str]:
    """Streams the answer to one prompt. options: raw, system, thinking, as the command line has them."""
    messages = with_system(options["system"], [{"role": "user", "content": prompt}])
    return llm.stream(prompt_ids(llm, messages, options["raw"], options["thinking"]), params)


def converse(llm: LLM, params: SamplingParams, system: str | None, template: dict) -> int:
    """Reads turns from stdin until it ends; Ctrl-C stops an answer, and the program when nothing runs."""
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
            system = rest.strip() or None
            print("system message set" if system else "system message removed", file=sys.stderr)
        elif command.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif command:
            turn = [*history, {"role": "user", "content": line.strip()}]
            try:
                text = _print_answer(llm.stream(llm.render(with_system(system, turn), **template), params))
            except Qwen3Error as error:
                print(f"error: {error} (/reset starts anew)", file=sys.stderr)
                continue
            history = [*turn, {"role": "assistant", "content": text}]
    return 0


def _read_turn() -> str | None:
    print("> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line if line else None


def _print_answer(pieces: Iterator[str]) -> str:
    """Prints the answer as it comes, thinking dimmed on a terminal; Ctrl-C ends it. Returns what was printed."""
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
