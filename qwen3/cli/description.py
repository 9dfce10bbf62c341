"""Describes a model: architecture and memory needs, from config.json and the safetensors index alone."""

import tempfile
from pathlib import Path

from ..config.device import resolve_device, resolve_dtype
from ..config.engine import EngineConfig
from ..config.hf import model_config
from ..config.model import ModelConfig, dtype_name
from ..errors import Qwen3Error, shown
from ..load.contents import CONFIG
from ..load.hub import fetch_description
from ..load.index import weight_bytes
from ..load.resolve import cached, hub_name, model_name, resolve
from ..measure.memory import available_bytes, gigabytes
from ..model.footprint import planned_footprint

_UTILIZATION = EngineConfig.memory_utilization


def describe(model: str | None, device: str, dtype: str) -> str:
    """Describes a model on this machine, complete or not, else the one of that id on the hub."""
    try:
        folder = resolve(model)
    except Qwen3Error as error:
        name = None if model is None else hub_name(model)
        if name is None or Path(model or "").exists():
            raise
        # Another program may have cached config.json alone.
        known = cached(name.id, name.revision)
        if known is not None and (known / CONFIG).is_file():
            return _table(known, shown(str(known)), weight_bytes(known), device, dtype)
        with tempfile.TemporaryDirectory() as temporary:
            try:
                size = fetch_description(name.id, Path(temporary), name.revision)
            except Qwen3Error as reason:
                raise Qwen3Error(f"{error}; asked the hub for its config.json: {reason}") from None
            folder = Path(temporary)
            return _table(folder, f"{name.id} (on the hub, not here)", size or weight_bytes(folder), device, dtype)
    return _table(folder, shown(model_name(folder)), weight_bytes(folder), device, dtype)


def _table(folder: Path, name: str, checkpoint_bytes: int | None, device_option: str, dtype_option: str) -> str:
    """Returns a short table: architecture, parameters, bytes, and the context that fits the device."""
    config = model_config(folder)
    device, dtype = resolve_device(device_option), resolve_dtype(dtype_option, config)
    counted = planned_footprint(config, dtype)
    weights, per_token = counted.nbytes, config.kv_bytes_per_token(dtype)
    free = available_bytes(device)
    width = dtype_name(dtype)
    in_checkpoint = "" if checkpoint_bytes is None else f" ({gigabytes(checkpoint_bytes)} in the checkpoint)"
    rows = {
        "model": name,
        "architecture": _architecture(config),
        "attention": f"{config.num_heads} query heads, {config.num_kv_heads} key/value heads of {config.head_dim}",
        "vocabulary": f"{config.vocab_size:,} tokens, {'tied' if config.tie_word_embeddings else 'untied'} embeddings",
        "parameters": f"{counted.parameters:,} ({counted.active:,} active per token)",
        "weights": f"{gigabytes(weights)} in {width}{in_checkpoint}",
        "KV cache": f"{per_token:,} bytes per token in {width}",
        "context": f"{config.max_context:,} tokens{' with YaRN' if config.yarn else ''}",
        f"fits {device}": _fits(config.max_context, weights, per_token, free),
    }
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


def _fits(max_context: int, weights: int, per_token: int, free: int) -> str:
    """How many tokens of context fit beside the weights in `free` bytes, and what sets the limit."""
    left = int(free * _UTILIZATION) - weights
    if left < per_token:
        return f"none: the weights need {gigabytes(weights)}, {_UTILIZATION:.0%} of {gigabytes(free)} may be used"
    fits = min(max_context, left // per_token)
    limit = "the model's limit" if fits == max_context else "the memory's limit"
    return f"{fits:,} tokens ({limit}; {gigabytes(free)} free)"


def _architecture(config: ModelConfig) -> str:
    shape = f"{config.num_layers} layers, hidden size {config.hidden_size}"
    if not config.num_experts:
        return f"dense Qwen3, {shape}, MLP of {config.intermediate_size}"
    experts = f"{config.num_experts} experts of {config.moe_intermediate_size}, {config.top_k} per token"
    dense = f" ({len(config.dense_layers)} layers dense)" if config.dense_layers else ""
    return f"Qwen3 mixture of experts, {shape}, {experts}{dense}"
