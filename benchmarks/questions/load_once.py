"""One start, measured in a process of its own: `python -m benchmarks.questions.load_once SIDE FOLDER DEVICE`."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from qwen3.measure.memory import peak_bytes

PROMPT = list(range(64))


def main(side: str, folder: str, device: torch.device) -> dict:
    """Seconds to load the weights and to the first token, peak memory added, bytes read from storage; for JSON."""
    load = {"ours": ours, "theirs": theirs}[side](folder, device)
    if device.type == "cuda":
        torch.zeros(1, device=device)
    # The memory of the libraries is not counted.
    before, read_before = resident_bytes() if device.type == "cpu" else 0, storage_bytes()
    started = time.perf_counter()
    first_token = load()
    loaded = time.perf_counter()
    token = first_token()
    ended = time.perf_counter()
    read = None if read_before is None else storage_bytes() - read_before
    return {
        "load_seconds": loaded - started,
        "total_seconds": ended - started,
        "peak_bytes": peak_bytes(device) - before,
        "storage_bytes": read,
        "token": token,
    }


def ours(folder: str, device: torch.device) -> Callable:
    from qwen3 import LLM
    from qwen3.cli.speed import greedy

    def load() -> Callable[[], int]:
        llm = LLM(folder, device=str(device), max_num_seqs=1, max_model_len=2 * len(PROMPT))
        return lambda: llm.generate([PROMPT], greedy(1))[0].token_ids[0]

    return load


def theirs(folder: str, device: torch.device) -> Callable:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # The library imports a model only when it is named.
    _ = transformers.Qwen3MoeForCausalLM
    placement = {"device_map": device} if device.type == "cuda" else {}

    def load() -> Callable[[], int]:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", **placement).eval()
        return lambda: first_token(model)

    @torch.inference_mode()
    def first_token(model: torch.nn.Module) -> int:
        return model(torch.tensor([PROMPT], device=device), logits_to_keep=1).logits.argmax().item()

    return load


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def storage_bytes() -> int | None:
    """Bytes that the kernel fetched from storage for this process; None on systems that do not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], torch.device(sys.argv[3]))))
