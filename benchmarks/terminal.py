"""What does `qwen3 generate` look like in a terminal? Runs it and records what it prints and when.

The report draws that: the picture is an animated SVG without scripts; where animations are off, it shows the whole text.
"""

import argparse
import codecs
import os
import re
import selectors
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

from .common import save

ROOT = Path(__file__).parent.parent
COLUMNS = 100
# Pixels; a cell holds one character.
CELL_WIDTH, CELL_HEIGHT, MARGIN, TITLE_HEIGHT = 8, 19, 16, 34
# In real time the embedded model's answer is there within a blink.
SLOWER = 12
HOLD_SECONDS = 6
STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }
.title, .stderr { fill: #8b949e }
.command { fill: #7ee787 }
.stdout { fill: #f0f6fc }
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", default="def fibonacci(n):", help="what the embedded model continues")
    parser.add_argument("--seed", type=int, default=10, help="draws the answer")
    parser.add_argument("--max-new-tokens", type=int, default=58, help="tokens to generate at most")


def run(args: argparse.Namespace) -> None:
    command = ["generate", "--prompt", args.prompt, "--dtype", "float32", "--seed", str(args.seed)]
    command += ["--max-new-tokens", str(args.max_new_tokens), "--stats"]
    settings = {"command": shlex.join(["qwen3", *command]), "device": "cpu"}
    save("terminal", __doc__.splitlines()[0], settings, play(command))


def play(arguments: list[str]) -> list[dict]:
    """Runs `qwen3 ARGUMENTS` in an empty folder, so with the embedded model unless another one is named.

    Returns the events: stream ("stdout" or "stderr"), seconds since the first output, text. Paths into this repository are made relative to it. Raises RuntimeError with what was printed when the command
    fails.
    """
    command = [sys.executable, "-m", "qwen3", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
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
                    text = decode(chunk).replace(f"{ROOT}{os.sep}", "")
                    events.append({"stream": name, "seconds": time.perf_counter(), "text": text})
                else:
                    selector.unregister(key.fileobj)
        if process.wait():
            raise RuntimeError(f"{shlex.join(command)} failed: {''.join(event['text'] for event in events)}")
    first = events[0]["seconds"]
    for event in events:
        event["seconds"] = round(event["seconds"] - first, 4)
    return events


def draw(record: dict) -> str:
    """The SVG that plays a recording in a loop, SLOWER times slower; the same recording, the same bytes."""
    fragments = list(_fragments(record))
    rows = 1 + max(row for row, *_ in fragments)
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = TITLE_HEIGHT + rows * CELL_HEIGHT + 2 * MARGIN
    duration = record["figures"][-1]["seconds"] * SLOWER + HOLD_SECONDS
    texts, keyframes = [], {}
    for row, column, text, seconds, kind in fragments:
        # The share of the loop for which the text is hidden. Whatever plays no animations never hides it.
        hidden = f"{100 * seconds * SLOWER / duration:.2f}"
        name = f"t{hidden.replace('.', '_')}"
        keyframes[name] = (
            f"@keyframes {name} {{ 0% {{ visibility: hidden }} {hidden}%, 100% {{ visibility: visible }} }}\n"
            f".{name} {{ animation: {name} {duration:.2f}s step-end infinite }}"
        )
        # Whatever font there is, each character gets its cell.
        texts.append(
            f'<text class="{kind} {name}" x="{MARGIN + column * CELL_WIDTH}" '
            f'y="{TITLE_HEIGHT + MARGIN + (row + 0.7) * CELL_HEIGHT:.1f}" '
            f'textLength="{len(text) * CELL_WIDTH}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
    buttons = [
        f'<circle cx="{20 + 20 * number}" cy="18" r="6" fill="{colour}"/>'
        for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    title = f"{record['machine']['cpu']}, {record['machine']['threads']} threads, {SLOWER} times slower than it ran"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(record["settings"]["command"])}">',
        f"<style>{STYLE}@media (prefers-reduced-motion: no-preference) {{",
        *keyframes.values(),
        "}\n</style>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#0d1117"/>',
        *buttons,
        f'<text class="title" x="{width / 2}" y="22" text-anchor="middle">{escape(title)}</text>',
        *texts,
        "</svg>\n",
    ]
    return "\n".join(lines)


def _fragments(record: dict) -> Iterator[tuple[int, int, str, float, str]]:
    """(row, column, text, seconds, kind) of all that is to be seen: the command, then each event, line by line."""
    command = {"stream": "command", "seconds": 0, "text": f"$ {record['settings']['command']}\n"}
    row = column = 0
    for event in (command, *record["figures"]):
        for number, line in enumerate(_wrapped(event).split("\n")):
            if number:
                row, column = row + 1, 0
            if text := line.strip():
                yield row, column + len(line) - len(line.lstrip()), text, event["seconds"], event["stream"]
            column += len(line)


def _wrapped(event: dict) -> str:
    """The text of an event; of stderr, whose events are whole lines, no line longer than the terminal."""
    if event["stream"] != "stderr":
        return event["text"]
    # Lines break before or after the dots between the parts, at no other space.
    kept_together = re.sub("(?<!·) (?!·)", "\xa0", event["text"])
    lines = [textwrap.fill(line, COLUMNS) for line in kept_together.split("\n")]
    return "\n".join(lines).replace("\xa0", " ")
