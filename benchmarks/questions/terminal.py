"""What does `qwen3 generate` look like in a terminal? Runs it and records its output with times.

The command is the one that the README shows first.
The report makes an animated SVG of the record.
"""

import argparse
import codecs
import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import time

from ..common import REPOSITORY, Answer

RUNS = ("qwen3.cli.main", "qwen3.cli.generate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="def fibonacci(n):", help="what the embedded model continues")
    parser.add_argument("--seed", type=int, default=7, help="of the sampled answer")
    parser.add_argument("--max-new-tokens", type=int, default=60, help="tokens to generate at most")


def run(args: argparse.Namespace) -> Answer:
    command = ["generate", "--prompt", args.prompt, "--max-new-tokens", str(args.max_new_tokens)]
    command += ["--seed", str(args.seed), "--stats"]
    settings = {"command": shlex.join(["qwen3", *command]), "device": "cpu"}
    return Answer(settings, play(command))


def play(arguments: list[str]) -> list[dict]:
    """Runs `qwen3 ARGUMENTS` in an empty folder: without downloads, the embedded model is the default.

    Returns the events: stream ("stdout" or "stderr"), seconds since the first output, text. Paths in this repository
    are relative to it. Raises RuntimeError with the output when the command fails.
    """
    command = [sys.executable, "-m", "qwen3", *arguments]
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    events = []
    with tempfile.TemporaryDirectory() as folder, selectors.DefaultSelector() as selector:
        process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
        for name in pipes:
            decode = codecs.getincrementaldecoder("utf-8")().decode
            selector.register(getattr(process, name), selectors.EVENT_READ, (name, decode))
        while selector.get_map():
            for key, _ in selector.select():
                chunk = os.read(key.fd, 65536)
                name, decode = key.data
                if chunk:
                    text = decode(chunk).replace(f"{REPOSITORY}{os.sep}", "")
                    events.append({"stream": name, "seconds": time.perf_counter(), "text": text})
                else:
                    selector.unregister(key.fileobj)
        if process.wait():
            raise RuntimeError(f"{shlex.join(command)} failed: {''.join(event['text'] for event in events)}")
    first = events[0]["seconds"]
    for event in events:
        event["seconds"] = round(event["seconds"] - first, 4)
    return events
