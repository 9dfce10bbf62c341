"""Which experts the router chose: load, entropy and distinct experts per step of every layer, and a picture of it."""

import importlib.util
import json
import math
import os
from pathlib import Path

import torch
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import Qwen3Error
from ..model.blocks import Routing


class ExpertLoad:
    """Counts on the device, layer by layer, without making it wait; only layers with experts count."""

    def __init__(self, config: ModelConfig, device: torch.device | str):
        self.layers = [layer for layer in range(config.num_layers) if config.is_moe_layer(layer)]
        self.num_experts, self.top_k = config.num_experts, config.top_k
        self.load = torch.zeros((len(self.layers), config.num_experts), dtype=torch.int64, device=device)
        self._distinct = torch.zeros((2, len(self.layers)), dtype=torch.int64, device=device)
        self._steps = [0, 0]

    def count(self, routing: list[Routing], decode: bool) -> None:
        """Adds one step. routing: that of every layer with experts; the last layer may have computed fewer tokens."""
        load = torch.zeros_like(self.load)
        for counts, (_, expert_ids) in zip(load, routing):
            chosen = expert_ids.flatten()
            counts.scatter_add_(0, chosen, torch.ones_like(chosen))
        self.load += load
        self._distinct[int(decode)] += (load > 0).sum(1)
        self._steps[decode] += 1

    def distinct(self, decode: bool) -> list[float]:
        """Mean number of distinct experts that a step hits, for each layer of `layers`; 0 where no step was counted."""
        return (self._distinct[int(decode)] / max(1, self._steps[decode])).tolist()

    def report(self) -> dict:
        """Everything as plain values. Entropy is in nats; log(num_experts) is that of a level load."""
        share = self.load / self.load.sum(1, keepdim=True).clamp(min=1)
        entropy = torch.special.entr(share.double()).sum(1).tolist()
        rows = zip(self.layers, self.load.tolist(), entropy, self.distinct(False), self.distinct(True))
        return {
            "num_experts": self.num_experts,
            "experts_per_token": self.top_k,
            "entropy_of_level_load": math.log(self.num_experts),
            "prefill_steps": self._steps[False],
            "decode_steps": self._steps[True],
            "layers": [
                {
                    "layer": layer,
                    "load": load,
                    "entropy": nats,
                    "distinct_experts_per_prefill_step": prefill,
                    "distinct_experts_per_decode_step": decode,
                }
                for layer, load, nats, prefill, decode in rows
            ],
        }


def check_expert_stats(path: Path) -> None:
    """Raises Qwen3Error, before any work is done, when `write_expert_stats` could not write to `path`."""
    if importlib.util.find_spec("matplotlib") is None:
        raise Qwen3Error("--expert-stats draws with matplotlib, which is not installed: pip install matplotlib")
    if path.suffix != ".json":
        raise Qwen3Error(
            f"--expert-stats {path}: the name must end in .json; the heat map goes to the same name in .png"
        )
    if not path.absolute().parent.is_dir():
        raise Qwen3Error(f"--expert-stats {path}: its folder does not exist: make it first")
    for file in (path, path.with_suffix(".png")):
        if file.exists() and not (file.is_file() and os.access(file, os.W_OK)):
            raise Qwen3Error(f"--expert-stats {file}: is there and no file that can be written: name another one")


def write_expert_stats(experts: ExpertLoad, path: Path) -> None:
    """Writes the report to `path` (.json) and the heat map of the load beside it (.png)."""
    try:
        path.write_text(json.dumps(experts.report(), indent=1) + "\n", encoding="utf-8")
        draw_heat_map(experts.load, experts.layers, path.with_suffix(".png"))
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be written ({error.strerror})") from None


def draw_heat_map(load: Tensor, layers: list[int], path: Path) -> None:
    """load [layers, experts] -> a picture in which 1 is an expert's fair share of its layer's tokens."""
    from matplotlib.figure import Figure

    relative = load.double().cpu()
    relative = relative / relative.mean(1, keepdim=True).clamp(min=1e-9)
    count, experts = relative.shape
    figure = Figure(figsize=(min(12, 3 + experts / 8), min(10, 1.5 + count / 4)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(relative.numpy(), aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.set(xlabel="expert", ylabel="layer", title="tokens per expert, relative to a level load")
    shown = range(0, count, max(1, count // 12))
    axes.set_yticks(list(shown), [str(layers[i]) for i in shown])
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=150)
