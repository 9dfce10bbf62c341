"""`qwen3 info`: architecture and memory needs, from config.json and the safetensors index alone."""

import argparse

from ..config.device import resolve_device, resolve_dtype
from ..config.engine import EngineConfig
from ..config.hf import model_config
from ..config.model import ModelConfig, dtype_name
from ..load.hub import resolve
from ..load.index import weight_bytes
from ..measure.memory import available_bytes, gigabytes
from ..model.footprint import planned_footprint
from .options import add_engine

_UTILIZATION = EngineConfig.memory_utilization


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a folder, a downloaded hub id, or tiny")
    add_engine(parser, "device", "dtype")


def run(args: argparse.Namespace) -> int:
    print(_describe(args.model, args.device, args.dtype))
    return 0


def _describe(model: str | None, device_option: str, dtype_option: str) -> str:
    """Returns a short table: architecture, parameters, bytes, and the context that fits the device."""
    folder = resolve(model)
    config = model_config(folder)
    device, dtype = resolve_device(device_option), resolve_dtype(dtype_option, config)
    counted = planned_footprint(config, dtype)
    weights, per_token = counted.nbytes, config.kv_bytes_per_token(dtype)
    free = available_bytes(device)
    left = int(free * _UTILIZATION) - weights
    if left < per_token:
        context = f"none: the weights need {gigabytes(weights)}, {_UTILIZATION:.0%} of {gigabytes(free)} may be used"
    else:
        fits = min(config.max_context, left // per_token)
        limit = "the model's limit" if fits == config.max_context else "the memory's limit"
        context = f"{fits:,} tokens ({limit}; {gigabytes(free)} free)"
    width = dtype_name(dtype)
    rows = {
        "model": str(folder),
        "architecture": _architecture(config),
        "attention": f"{config.num_heads} query heads, {config.num_kv_heads} key/value heads of {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,} tokens, {'tied' if config.tie_word_embeddings else 'untied'} embeddings",
        "parameters": f"{counted.parameters:,} ({counted.active:,} active per token)",
        "weights": f"{gigabytes(weights)} in {width} ({gigabytes(weight_bytes(folder))} in the checkpoint)",
        "KV cache": f"{per_token:,} bytes per token in {width}",
        "context": f"{config.max_context:,} tokens{' with YaRN' if config.yarn else ''}",
        f"fits {device}": context,
    }
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def _architecture(config: ModelConfig) -> str:
    shape = f"{config.num_layers} layers, hidden size {config.hidden_size}"
    if not config.num_experts:
        return f"dense Qwen3, {shape}, MLP of {config.intermediate_size}"
    experts = f"{config.num_experts} experts of {config.moe_intermediate_size}, {config.top_k} per token"
    dense = f" ({len(config.dense_layers)} layers dense)" if config.dense_layers else ""
    return f"Qwen3 mixture of experts, {shape}, {experts}{dense}"
