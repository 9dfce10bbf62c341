"""Streams one answer: `python examples/stream.py [MODEL]`. Without a MODEL the embedded one writes Python."""

import sys

from qwen3 import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "tiny")
prompt = "def read_lines(path):"
print(f"{llm.folder.name} on {llm.device}, {llm.backend} backend\n", file=sys.stderr)

# Each piece is text that later tokens cannot change: never half a character, never the start of a stop string.
params = SamplingParams(temperature=0.6, top_p=0.95, stop=("\ndef ", "\nclass "), seed=6)
print(prompt, end="")
for piece in llm.stream(prompt, params):
    print(piece, end="", flush=True)
print()
