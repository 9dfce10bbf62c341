"""`python -m benchmarks QUESTION`: each question is one module here; its result is printed and written as JSON."""

import argparse
from importlib import import_module

QUESTIONS = {
    "cpu": "versus_transformers",
    "cache": "kv_cache",
    "loading": "loading",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="QUESTION")
    for name, module in QUESTIONS.items():
        question = import_module(f"benchmarks.{module}")
        sub = commands.add_parser(name, help=question.__doc__.splitlines()[0], description=question.__doc__)
        question.add_arguments(sub)
        sub.set_defaults(run=question.run)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
