"""Benchmarks, one module for each question: answers are printed and saved as records, tables are made from records."""

import argparse
import ast
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from qwen3.cli.parser import Parser
from qwen3.errors import Qwen3Error

from .common import RESULTS, save

QUESTIONS = (
    "bandwidth", "fits", "ops", "generate", "kv_cache", "load", "serve", "eventloop", "batching", "scheduler",
    "experts", "verify", "terminal", "dryrun", "host",
)  # fmt: skip
MODULES = {name: f"questions.{name}" for name in QUESTIONS} | {"report": "report.main"}


def main(arguments: list[str] | None = None) -> int:
    """Runs one question, or lists them; returns its exit code, 2 for errors that the user can fix, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        args = _parser(asked=arguments[:1]).parse_args(arguments or ["--help"])
        return args.run(args)
    except Qwen3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130


def _parser(asked: list[str]) -> argparse.ArgumentParser:
    """Imports only the question that is asked: others may need libraries that are slow or not installed."""
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(title="questions", required=True, metavar="QUESTION")
    for name, module in MODULES.items():
        text = _docstring(module)
        layout = argparse.RawDescriptionHelpFormatter
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text, formatter_class=layout)
        if name in asked:
            imported = _import(name)
            imported.add_arguments(sub)
            sub.set_defaults(run=imported.run)
            if name in QUESTIONS:
                sub.add_argument(
                    "--output",
                    type=Path,
                    default=RESULTS,
                    metavar="FOLDER",
                    help="where to write the record (default: benchmarks/results of a checkout, else ./results)",
                )
                sub.set_defaults(run=partial(ask, name, imported))
    return parser


def ask(name: str, module, args: argparse.Namespace) -> int:
    """Answers one question and saves the record; 1 where our side leaves the numbers contract."""
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Qwen3Error(f"--output {args.output}: cannot be made ({error.strerror}): name another folder") from None
    answer = module.run(args)
    # RUNS: what a question runs in other processes, or imports by name.
    modules = [module.__name__, *getattr(module, "RUNS", ())]
    path = save(answer.name or name, module.__doc__.splitlines()[0], answer, args.output, modules)
    print(f"written to {path}")
    return int(not answer.within)


def _docstring(module: str) -> str:
    source = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def _import(name: str):
    try:
        return import_module(f"benchmarks.{MODULES[name]}")
    except ModuleNotFoundError as error:
        message = f"{name} needs {error.name}, which is not installed: pip install {error.name}"
        raise Qwen3Error(message) from None


if __name__ == "__main__":
    sys.exit(main())
