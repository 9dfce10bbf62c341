"""How fast does a checkpoint load, and how much memory does that take, beside transformers' from_pretrained?

A checkpoint of about 1 GB in one file; each load is a fresh process and the two take turns.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers

from .common import save, side_by_side
from .generate import SHAPES, write_tokenizer

_MEASURE = """
import json, sys, time, torch
from qwen3.memory import peak_bytes
folder = sys.argv[2]
if sys.argv[1] == "ours":
    from qwen3 import LLM
    load = lambda: LLM(folder, device="cpu")
else:
    import transformers
    load = lambda: transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    transformers.Qwen3MoeForCausalLM
before = int(open("/proc/self/statm").read().split()[1]) * 4096
started = time.perf_counter()
model = load()
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "added": peak_bytes(torch.device("cpu")) - before}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="turns that each side takes")


def run(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # 505 million bfloat16 parameters, in the experts most of them, under the published names.
        config = transformers.Qwen3MoeConfig(**SHAPES["small"] | {"num_hidden_layers": 5})
        transformers.Qwen3MoeForCausalLM(config).bfloat16().save_pretrained(folder)
        write_tokenizer(Path(folder))
        size = (Path(folder) / "model.safetensors").stat().st_size
        added: dict[str, list[int]] = {"ours": [], "theirs": []}

        def load(side: str) -> float:
            command = [sys.executable, "-c", _MEASURE, side, folder]
            measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            added[side].append(measured["added"])
            return measured["seconds"]

        times = side_by_side({side: lambda side=side: load(side) for side in added}, args.rounds)
    peaks = {side: max(values) for side, values in added.items()}
    largest = SHAPES["small"]["vocab_size"] * SHAPES["small"]["hidden_size"] * 2
    beyond = peaks["ours"] - size - largest
    print(f"{size / 1e9:.2f} GB: {times['theirs'] / times['ours']:.2f} times as fast as from_pretrained")
    print(f"memory added at the peak: ours {peaks['ours'] / 1e6:,.0f} MB, theirs {peaks['theirs'] / 1e6:,.0f} MB")
    print(f"ours is the model, its largest tensor of {largest / 1e6:.0f} MB, and {beyond / 1e6:+,.0f} MB")
    result = {"question": "loading", "checkpoint_bytes": size, "largest_tensor_bytes": largest}
    save("loading", result | {"seconds": times, "peak_added_bytes": peaks, "transformers": transformers.__version__})
