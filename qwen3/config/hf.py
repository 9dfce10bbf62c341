"""A model's configuration from config.json: the only place with Hugging Face's key names.

Where two keys say the same, the winner is transformers': num_local_experts before num_experts, dtype before
torch_dtype, rope_scaling before rope_parameters, rope_type before type, an original_max_position_embeddings beside
rope_scaling before one within, and a rope_theta within before one beside. An eos_token_id of generation_config.json
wins over that of config.json. A key that is null says nothing.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import Qwen3Error, brief, shown
from . import facts, generation, values
from .files import read_json, read_json_if_there
from .model import DTYPES, ModelConfig, Yarn

log = logging.getLogger("qwen3")

ARCHITECTURES = {"qwen3_moe": "Qwen3Moe", "qwen3": "Qwen3"}
# Bounds with room above every model, so that no product of them overflows and no loop is endless.
MAX_COUNT, MAX_SIZE = 10_000, 10_000_000
_MISSING: Any = object()


def model_config(folder: Path) -> ModelConfig:
    """Reads config.json of a folder; an eos_token_id of generation_config.json wins."""
    path = Path(folder) / "config.json"
    advice = "a model folder holds config.json, tokenizer.json and safetensors files"
    config = from_hf(read_json(path, advice), str(path))
    path = Path(folder) / generation.FILE
    ends = read_json_if_there(path).get("eos_token_id")
    if ends is None:
        return config
    return replace(config, eos_token_ids=generation.eos_ids(ends, f"{path}: eos_token_id", config.vocab_size))


def from_hf(given: dict[str, Any], source: str = "config.json") -> ModelConfig:
    """Converts the values of config.json, in the dialect of transformers 4 or 5.

    Raises Qwen3Error for a value of the wrong kind and for a key that would change the output and is not implemented.
    """
    kind = given.get("model_type")
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise Qwen3Error(f"{source}: model_type is {brief(kind)}: only {' and '.join(ARCHITECTURES)} are supported")
    reader = _Reader(given, source)
    _check_architecture(reader, kind)
    layers = reader.whole("num_hidden_layers", 1, MAX_COUNT)
    _check_the_rest(reader, layers)
    heads = reader.whole("num_attention_heads", 1, MAX_COUNT)
    hidden = reader.whole("hidden_size", 1, MAX_SIZE // 10)
    # transformers' defaults. A dense model's null is as many as query heads.
    kv_heads = 4 if kind == "qwen3_moe" else heads if "num_key_value_heads" in given else 32
    kv_heads = reader.whole("num_key_value_heads", 1, MAX_COUNT, default=kv_heads)
    if heads % kv_heads:
        raise Qwen3Error(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = reader.whole("head_dim", 1, MAX_COUNT, default=128 if kind == "qwen3" else hidden // heads)
    if head_dim % 2 or not head_dim:
        raise Qwen3Error(f"{source}: head_dim {head_dim} is not even: rotary embedding needs pairs")
    vocab_size = reader.whole("vocab_size", 1, MAX_SIZE)
    max_positions = reader.whole("max_position_embeddings", 1)
    theta, yarn = _rope(reader, max_positions)
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.whole("intermediate_size", 1, MAX_SIZE),
        rope_theta=theta,
        max_positions=max_positions,
        rms_norm_eps=reader.take("rms_norm_eps", values.number, 0, 1, "", True, default=1e-6),
        tie_word_embeddings=reader.flag("tie_word_embeddings"),
        attention_bias=reader.flag("attention_bias"),
        yarn=yarn,
        dtype=_dtype(reader),
        eos_token_ids=reader.take("eos_token_id", generation.eos_ids, vocab_size, default=()),
        source=source,
        **(_experts(reader, layers) if kind == "qwen3_moe" else {}),
    )


def _check_architecture(reader: "_Reader", kind: str) -> None:
    """Refuses models with another head than a language model's; AutoModel's exports have none of their own."""
    known = [ARCHITECTURES[kind] + "ForCausalLM", ARCHITECTURES[kind] + "Model"]
    named = reader.take("architectures", values.texts, default=())
    if named and not any(name.removeprefix("FSDP") in known for name in named):
        raise Qwen3Error(f"{reader.source}: architectures is {brief(list(named))}: only {known[0]} is supported")
    layers = reader.take("layer_types", values.texts, default=())
    if any(layer != "full_attention" for layer in layers):
        raise Qwen3Error(f"{reader.source}: layer_types names a layer that is not 'full_attention': not supported")


def _check_the_rest(reader: "_Reader", layers: int) -> None:
    """Refuses keys that would change the output, and names those that are skipped."""
    given, source = reader.given, reader.source
    rest = sorted(given.keys() - facts.USED - facts.USED_BY_MOE - facts.NO_EFFECT)
    for key in rest:
        if facts.refused(key, given[key]) and not (key == "use_sliding_window" and _slides_nowhere(reader, layers)):
            advice = f", only {brief(facts.ONLY[key][0])}" if key in facts.ONLY else ": remove it if it changes nothing"
            raise Qwen3Error(f"{source}: field {brief(key)} = {brief(given[key])} is not supported{advice}")
    if skipped := [key for key in rest if key not in facts.ONLY]:
        log.info("%s: skipped %s", shown(source), brief(skipped, 400))


def _slides_nowhere(reader: "_Reader", layers: int) -> bool:
    """Whether use_sliding_window reaches no layer: as in transformers, the first max_window_layers have no window."""
    full = reader.whole("max_window_layers", 0, default=28)  # transformers' default
    named = reader.given.get("layer_types") is not None  # all of them full, or they are refused
    window = reader.whole("sliding_window", 0, default=None)
    return reader.given["use_sliding_window"] is True and (named or window is None or full >= layers)


def _dtype(reader: "_Reader") -> torch.dtype | None:
    names = [reader.take(key, _dtype_name, default=None) for key in ("dtype", "torch_dtype")]
    return next((DTYPES[name] for name in names if name), None)


def _dtype_name(value: Any, name: str) -> str | None:
    """The name of a dtype; "auto" says nothing."""
    plain = values.text(value, name).removeprefix("torch.")
    plain = {"float": "float32", "fp32": "float32", "half": "float16", "fp16": "float16", "bf16": "bfloat16"}.get(
        plain, plain
    )
    if plain == "auto":
        return None
    return plain if plain in DTYPES else values.refuse(value, name, f"one of {', '.join(DTYPES)}")


def _experts(reader: "_Reader", num_layers: int) -> dict[str, Any]:
    local = reader.whole("num_local_experts", 0, MAX_COUNT, default=None)
    named = reader.whole("num_experts", 0, MAX_COUNT, default=_MISSING if local is None else local)
    num_experts = named if local is None else local
    top_k = reader.whole("num_experts_per_tok", 1, MAX_COUNT)
    if num_experts and top_k > num_experts:
        raise Qwen3Error(f"{reader.source}: {num_experts} experts cannot serve num_experts_per_tok = {top_k}")
    step = reader.whole("decoder_sparse_step", 1, default=1)
    only = set(reader.take("mlp_only_layers", values.token_ids, default=()))
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "moe_intermediate_size": reader.whole("moe_intermediate_size", 1, MAX_SIZE),
        "norm_topk_prob": reader.flag("norm_topk_prob"),
        "dense_layers": frozenset(layer for layer in range(num_layers) if layer in only or (layer + 1) % step),
    }


def _rope(reader: "_Reader", max_positions: int) -> tuple[float, Yarn | None]:
    """Returns theta and YaRN, from rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5)."""
    old = reader.take("rope_scaling", _mapping, default={})
    new = reader.take("rope_parameters", _mapping, default={})
    rope = _Reader(dict(old or new), f"{reader.source}: {'rope_scaling' if old else 'rope_parameters'}", ".")
    # transformers forgets the theta of rope_parameters once there is a rope_scaling: here it counts.
    places = ((rope.given, rope.source), (reader.given, reader.source), (new, f"{reader.source}: rope_parameters"))
    said = [(given.get("rope_theta"), f"{source}: rope_theta") for given, source in places]
    thetas = [values.number(theta, name, 1, 1e36, above=True) for theta, name in said if theta is not None]
    if not thetas:
        raise Qwen3Error(
            f"{reader.source}: no rope_theta: it differs within this family, so there is no default: add the original "
            "model's (1000000 in most of Qwen3, 5000000 or 10000000 in the models of July 2025)"
        )
    rope_type = rope.take("rope_type", values.text, default=rope.take("type", values.text, default="default"))
    if rope_type not in facts.ROPE_USED:
        raise Qwen3Error(f"{rope.source}: rope_type {brief(rope_type)} is not supported, only 'default' and 'yarn'")
    for key, value in rope.given.items():
        if facts.rope_refused(key, value, rope_type):
            if key == "factor" and not {"rope_type", "type"} & rope.given.keys():
                raise Qwen3Error(f'{rope.source}: has a factor, but no rope_type: add "rope_type": "yarn" for YaRN')
            raise Qwen3Error(f"{rope.source}: field {brief(key)} = {brief(value)} is not supported")
    beside = reader.whole("original_max_position_embeddings", 1, default=None)
    return thetas[0], _yarn(rope, beside, max_positions) if rope_type == "yarn" else None


def _yarn(rope: "_Reader", beside: int | None, max_positions: int) -> Yarn:
    """beside: original_max_position_embeddings where it stands outside of the block."""
    name = "original_max_position_embeddings"
    if isinstance(given := rope.given.get(name), float) and given.is_integer():  # a product that a script wrote
        rope.given[name] = int(given)
    within = rope.whole(name, 1, default=None)
    original = within if beside is None else beside
    if original is None:
        original = max_positions
        said = "%s: no %s, so it is max_position_embeddings = %d, as in transformers (Qwen3's own is 32768)"
        log.warning(said, shown(rope.source), name, original)
    if "factor" in rope.given and rope.given["factor"] is None:
        rope.given["factor"] = max_positions / original
    factor = rope.take("factor", values.number, 1, 1e6)
    if factor * original >= 2**31:
        raise Qwen3Error(f"{rope.source}: factor {factor:g} times {name} = {original} is more than 2**31 tokens")
    attention = rope.take("attention_factor", values.number, 0, 100, "", True, default=None)
    mscale, all_dim = (rope.take(key, values.number, 0, 100, default=0) for key in ("mscale", "mscale_all_dim"))
    if attention is None and mscale and all_dim and factor > 1:
        attention = (0.1 * mscale * math.log(factor) + 1) / (0.1 * all_dim * math.log(factor) + 1)
    if rope.given.get("attn_factor") is not None:
        log.warning("%s: attn_factor has no effect, as in transformers", shown(rope.source))
    return Yarn(
        factor=factor,
        original_max_positions=original,
        beta_fast=rope.take("beta_fast", values.number, 0, 1e6, default=0) or 32.0,
        beta_slow=rope.take("beta_slow", values.number, 0, 1e6, default=0) or 1.0,
        attention_factor=attention,
        truncate=rope.take("truncate", values.flag, default=True),
    )


def _mapping(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        values.refuse(value, name, "an object, or null")
    return value


class _Reader:
    """Reads checked values of a JSON object; messages call them by `source`, `joint` and their key."""

    def __init__(self, given: dict[str, Any], source: str, joint: str = ": "):
        self.given, self.source, self.joint = given, source, joint

    def take(self, key: str, check: Callable, *bounds: Any, default: Any = _MISSING) -> Any:
        """The value of a key; `default` where it is absent or null."""
        name = f"{self.source}{self.joint}{key}"
        if (value := self.given.get(key)) is not None:
            return check(value, name, *bounds)
        if default is _MISSING:
            raise Qwen3Error(f"{name} is missing: the file is not complete")
        return default

    def whole(self, key: str, low: int, high: int = 2**31 - 1, default: Any = _MISSING) -> Any:
        return self.take(key, values.whole, low, high, default=default)

    def flag(self, key: str) -> bool:
        return self.take(key, values.flag, default=False)
