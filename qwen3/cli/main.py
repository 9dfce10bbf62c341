"""The command `qwen3` and its exit codes. Text goes to stdout, everything else to stderr."""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from .. import __version__
from ..errors import Qwen3Error, one_line, shown
from .parser import Parser
from .streams import discard, guarded, say

# The module of a command is imported when the command is asked for.
COMMANDS = {
    "download": "fetch a model from the hub into models/, or resume fetching it",
    "list": "show the models on this machine",
    "generate": "answer a prompt, or every prompt of a JSONL file",
    "chat": "talk with a model: /reset, /system TEXT, /exit",
    "bench": "measure the prefill and decode speed of a model on this device",
    "info": "show size and memory needs of a model, without loading it",
}


def main(arguments: list[str] | None = None, then_exits: bool = False) -> int:
    """Runs one command; returns the exit code: 0, 2 for an error that the user can fix, 130 for Ctrl-C.

    The reader of a pipe may go away: a streamed answer ends silently then.
    then_exits: nothing follows in this process, so that another Ctrl-C is ignored while the first one ends the command.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    kept = sys.stdout
    with guarded():
        try:
            try:
                args = _parser(words).parse_args(words)
                with _messages_on_stderr(args.verbose):
                    code = args.run(args)
            except SystemExit as done:  # argparse, after --help or an error
                code = int(done.code or 0)
            sys.stdout.flush()
            return code
        except Qwen3Error as error:
            return _failed(str(error))
        except KeyboardInterrupt:
            if then_exits:
                # Before the model is dropped: the process must not exit before the thread has ended at its next layer.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            print(file=sys.stderr)
            return 130
        except BrokenPipeError:
            discard(kept)
            return 0
        except OSError as error:
            return _failed(f"the system refused something: {one_line(error)}")
        except ImportError as error:
            return _failed(f"a module cannot be imported ({one_line(error)}): install qwen3-triton again")
        except MemoryError:
            return _failed("out of memory: use a smaller model, a shorter context or fewer prompts")


def _failed(message: str) -> int:
    say(f"error: {message}")
    return 2


def _parser(words: list[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="qwen3",
        description="Run Qwen3 models, mixture of experts and dense.",
        epilog='`qwen3 COMMAND --help` shows the options of a command. To begin: qwen3 generate "def fibonacci(n):"',
    )
    parser.add_argument("--version", action="version", version=f"qwen3-triton {__version__}")
    verbose = "show what the model runs on, the speed of each answer and other messages, on stderr"
    parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
    parser.set_defaults(run=lambda args: _help(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == asked:
            module = import_module(f".{name}", __package__)
            module.add_arguments(command)
            # No default here: it would overwrite a -v before the command.
            command.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=verbose)
            command.set_defaults(run=module.run)
    return parser


def _help(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0


class _OneLine(logging.Formatter):
    """Keeps names from outside within the line of their message."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


@contextmanager
def _messages_on_stderr(verbose: bool) -> Iterator[None]:
    """Shows the messages of the logger "qwen3" on stderr: warnings, and with `verbose` all from INFO on."""
    log, handler = logging.getLogger("qwen3"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
