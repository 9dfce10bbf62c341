"""The picture of a terminal recording: an animated SVG without scripts; without animations it shows the whole text."""

import re
import textwrap
from collections.abc import Iterator
from html import escape

from .captions import caption
from .tables import where

COLUMNS = 100
# Pixels; a cell holds one character.
CELL_WIDTH, CELL_HEIGHT, MARGIN, TITLE_HEIGHT = 8, 19, 16, 34
# In real time the answer of the embedded model takes a fraction of a second.
SLOWER = 12
HOLD_SECONDS = 6
STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre }
.title, .stderr { fill: #8b949e }
.command { fill: #7ee787 }
.stdout { fill: #f0f6fc }
"""


def picture(record: dict) -> str:
    """The SVG that plays a recording in a loop, SLOWER times slower; the same recording, the same bytes."""
    fragments = list(_fragments(record))
    rows = 1 + max(row for row, *_ in fragments)
    width = COLUMNS * CELL_WIDTH + 2 * MARGIN
    height = TITLE_HEIGHT + rows * CELL_HEIGHT + 2 * MARGIN
    duration = record["figures"][-1]["seconds"] * SLOWER + HOLD_SECONDS
    texts, keyframes = [], {}
    for row, column, text, seconds, kind in fragments:
        # The share of the loop for which the text is hidden; without animations it is always visible.
        hidden = f"{100 * seconds * SLOWER / duration:.2f}"
        name = f"t{hidden.replace('.', '_')}"
        keyframes[name] = (
            f"@keyframes {name} {{ 0% {{ visibility: hidden }} {hidden}%, 100% {{ visibility: visible }} }}\n"
            f".{name} {{ animation: {name} {duration:.2f}s step-end infinite }}"
        )
        # Each character gets its cell in every font.
        texts.append(
            f'<text class="{kind} {name}" x="{MARGIN + column * CELL_WIDTH}" '
            f'y="{TITLE_HEIGHT + MARGIN + (row + 0.7) * CELL_HEIGHT:.1f}" '
            f'textLength="{len(text) * CELL_WIDTH}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        )
    buttons = [
        f'<circle cx="{20 + 20 * number}" cy="18" r="6" fill="{colour}"/>'
        for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    title = f"The embedded model on {where(record)}, {SLOWER} times slower than it ran"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{escape(caption("terminal", record) or "")}">',
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
    """Yields (row, column, text, seconds, kind) for the command and the lines of each event."""
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
