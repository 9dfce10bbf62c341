"""The command `qwen3` and its exit codes. Text goes to stdout, everything else to stderr."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from .. import __version__
from ..errors import Qwen3Error
from . import bench, chat, download, generate, info
from .options import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for an error that the user can fix, 130 for Ctrl-C."""
    args = _parser().parse_args(arguments)
    try:
        with _messages_on_stderr(args.verbose):
            code = args.run(args)
        sys.stdout.flush()
        return code
    except Qwen3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the pipe has gone; the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def entry() -> NoReturn:
    """`main` as a process of its own."""
    code = main()
    # The engine's thread ends at its next layer; another Ctrl-C must not tear it down before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="qwen3", description="Run Qwen3 models, mixture of experts and dense.")
    parser.add_argument("--version", action="version", version=f"qwen3-triton {__version__}")
    verbose = "show what the model runs on, and other messages, on stderr"
    parser.add_argument("-v", "--verbose", action="store_true", help=verbose)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module, text in (
        (download, "fetch a model from the hub into models/, or resume fetching it"),
        (generate, "answer a prompt, or every prompt of a JSONL file"),
        (chat, "talk with a model: /reset, /system TEXT, /exit"),
        (bench, "measure the prefill and decode speed of a model on this device"),
        (info, "show size and memory needs of a model, without loading it"),
    ):
        command = commands.add_parser(module.__name__.rpartition(".")[2], help=text)
        module.add_arguments(command)
        # No default here: it would overwrite a -v before the command.
        command.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=verbose)
        command.set_defaults(run=module.run)
    return parser


@contextmanager
def _messages_on_stderr(verbose: bool) -> Iterator[None]:
    """Shows the messages of the logger "qwen3" on stderr: warnings, and with `verbose` all from INFO on."""
    log, handler = logging.getLogger("qwen3"), logging.StreamHandler(sys.stderr)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
