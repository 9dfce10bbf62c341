"""Each question is one module here: its answer is printed and written as a record to benchmarks/results/."""

import argparse
import ast
import sys
from importlib import import_module
from pathlib import Path

from qwen3.cli.options import Parser
from qwen3.errors import Qwen3Error

QUESTIONS = (
    "fits", "ops", "generate", "kv_cache", "load", "serve", "batching", "scheduler",
    "experts", "verify", "terminal", "report",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs one question; returns its exit code, 2 for what the user can mend, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        args = _parser(asked=arguments[:1]).parse_args(arguments)
        return args.run(args) or 0
    except Qwen3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _parser(asked: list[str]) -> argparse.ArgumentParser:
    """Only the question that is asked is imported: libraries that others need may be slow, or not there."""
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(title="questions", required=True, metavar="QUESTION")
    for name in QUESTIONS:
        source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
        text = ast.get_docstring(ast.parse(source))
        layout = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=layout)
        if name in asked:
            question = _import(name)
            question.add_arguments(sub)
            sub.set_defaults(run=question.run)
    return parser


def _import(name: str):
    try:
        return import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as error:
        message = f"{name} needs {error.name}, which is not installed: pip install {error.name}"
        raise Qwen3Error(message) from None


if __name__ == "__main__":
    sys.exit(main())
