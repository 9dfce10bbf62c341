"""A model's configuration from config.json: the only place with Hugging Face's key names."""

import json
from pathlib import Path

from ..errors import Qwen3Error
from .files import read_json, read_json_if_there
from .model import DTYPES, ModelConfig, Yarn

ARCHITECTURES = {"qwen3_moe": "Qwen3MoeForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Fields that change the output and are not implemented: only these values are accepted.
_REQUIRED_VALUES = {"hidden_act": ("silu",), "use_sliding_window": (False, None), "quantization_config": (None,)}

# Fields that do not affect the forward pass.
_HARMLESS = {
    "architectures", "attention_dropout", "auto_map", "bos_token_id", "chunk_size_feed_forward", "id2label",
    "initializer_range", "is_encoder_decoder", "label2id", "layer_types", "max_window_layers", "model_type",
    "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id", "problem_type", "return_dict",
    "router_aux_loss_coef", "sliding_window", "transformers_version", "use_cache", "_name_or_path",
    "_attn_implementation_autoset", "_experts_implementation",
}  # fmt: skip


def model_config(folder: Path) -> ModelConfig:
    """Reads config.json of a folder; the eos_token_id of generation_config.json wins."""
    path = Path(folder) / "config.json"
    values = read_json(path, "a model folder holds config.json, tokenizer.json and safetensors files")
    eos = read_json_if_there(Path(folder) / "generation_config.json").get("eos_token_id")
    values = values | ({} if eos is None else {"eos_token_id": eos})
    return from_hf(values, str(path))


def from_hf(values: dict, source: str = "config.json") -> ModelConfig:
    """Converts the values of config.json, in the dialect of transformers 4 or 5; refuses fields not implemented."""
    reader = _Reader(values, source)
    kind = reader.take("model_type", default=None)
    if kind not in ARCHITECTURES:
        raise Qwen3Error(f"{source}: model_type is {kind!r}: only {' and '.join(ARCHITECTURES)} are supported")
    named = values.get("architectures") or [ARCHITECTURES[kind]]
    if named != [ARCHITECTURES[kind]]:
        raise Qwen3Error(f"{source}: architectures is {named}: only {ARCHITECTURES[kind]} is supported")
    for key, allowed in _REQUIRED_VALUES.items():
        if (value := reader.take(key, default=allowed[0])) not in allowed:
            raise Qwen3Error(f"{source}: {key} = {json.dumps(value)} is not supported, only {json.dumps(allowed[0])}")
    if any(t != "full_attention" for t in values.get("layer_types") or ()):
        raise Qwen3Error(f"{source}: layer_types names a layer that is not 'full_attention', which is not supported")
    num_layers = reader.count("num_hidden_layers")
    heads = reader.count("num_attention_heads")
    hidden = reader.count("hidden_size")
    kv_heads = reader.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise Qwen3Error(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = reader.count("head_dim", default=128 if kind == "qwen3" else hidden // heads)
    if head_dim % 2:
        raise Qwen3Error(f"{source}: head_dim {head_dim} is odd: rotary embedding needs pairs")
    theta, yarn = _rope(reader)
    dtype = reader.first("dtype", "torch_dtype", default=None)
    if dtype is not None and str(dtype).removeprefix("torch.") not in DTYPES:
        raise Qwen3Error(f"{source}: dtype {dtype!r} is not supported, only {', '.join(DTYPES)}")
    eos = reader.take("eos_token_id", default=None)
    config = ModelConfig(
        vocab_size=reader.count("vocab_size"),
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=reader.count("intermediate_size"),
        rope_theta=theta,
        max_positions=reader.count("max_position_embeddings"),
        rms_norm_eps=float(reader.take("rms_norm_eps", default=1e-6)),
        tie_word_embeddings=bool(reader.take("tie_word_embeddings", default=False)),
        attention_bias=bool(reader.take("attention_bias", default=False)),
        yarn=yarn,
        dtype=None if dtype is None else DTYPES[str(dtype).removeprefix("torch.")],
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        source=source,
        **(_experts(reader, num_layers) if kind == "qwen3_moe" else {}),
    )
    reader.refuse_the_rest()
    return config


def _experts(reader: "_Reader", num_layers: int) -> dict:
    num_experts = reader.first("num_experts", "num_local_experts")
    top_k = reader.count("num_experts_per_tok")
    if not isinstance(num_experts, int) or num_experts < 0 or (num_experts and top_k > num_experts):
        raise Qwen3Error(f"{reader.source}: {num_experts} experts cannot serve num_experts_per_tok = {top_k}")
    step = reader.count("decoder_sparse_step", default=1)
    only = reader.take("mlp_only_layers", default=None) or []
    dense = {layer for layer in range(num_layers) if layer in only or (layer + 1) % step}
    return {
        "num_experts": num_experts,
        "top_k": top_k,
        "moe_intermediate_size": reader.count("moe_intermediate_size"),
        "norm_topk_prob": bool(reader.take("norm_topk_prob", default=False)),
        "dense_layers": frozenset(dense),
    }


def _rope(reader: "_Reader") -> tuple[float, Yarn | None]:
    """Returns theta and YaRN, from rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5)."""
    old, new = reader.take("rope_scaling", default=None), reader.take("rope_parameters", default=None)
    scaling = dict(new or old or {})
    theta = reader.take("rope_theta", default=None)
    theta = scaling.pop("rope_theta", theta)
    if theta is None:
        raise Qwen3Error(f"{reader.source}: no rope_theta: it differs within this family, so there is no default")
    legacy = scaling.pop("type", "default")
    rope_type = scaling.pop("rope_type", legacy)
    if rope_type == "default":
        _nothing_left(reader, scaling)
        return float(theta), None
    if rope_type != "yarn":
        raise Qwen3Error(f"{reader.source}: rope_type {rope_type!r} is not supported, only 'default' and 'yarn'")
    for key in ("factor", "original_max_position_embeddings"):
        if not scaling.get(key):
            raise Qwen3Error(f"{reader.source}: rope_type 'yarn' needs {key}")
    attention_factor = scaling.pop("attention_factor", None)
    yarn = Yarn(
        factor=float(scaling.pop("factor")),
        original_max_positions=int(scaling.pop("original_max_position_embeddings")),
        beta_fast=float(scaling.pop("beta_fast", None) or 32),
        beta_slow=float(scaling.pop("beta_slow", None) or 1),
        attention_factor=None if attention_factor is None else float(attention_factor),
        truncate=bool(scaling.pop("truncate", True)),
    )
    _nothing_left(reader, scaling)
    return float(theta), yarn


def _nothing_left(reader: "_Reader", scaling: dict) -> None:
    left = {k: v for k, v in scaling.items() if v is not None and (k, v) != ("partial_rotary_factor", 1.0)}
    if left:
        raise Qwen3Error(f"{reader.source}: rope field {next(iter(left))!r} is not supported")


class _Reader:
    """Takes fields out of the values of config.json and keeps those that nobody took."""

    def __init__(self, values: dict, source: str):
        self.left, self.source = dict(values), source

    def take(self, key: str, **default):
        if key in self.left:
            return self.left.pop(key)
        if "default" in default:
            return default["default"]
        raise Qwen3Error(f"{self.source}: no field {key!r}: the file is not complete")

    def first(self, *keys: str, **default):
        """Takes all of the names; returns the value of the first that is present."""
        found = [self.left.pop(key) for key in keys if key in self.left]
        return found[0] if found else self.take(keys[0], **default)

    def count(self, key: str, **default) -> int:
        value = self.take(key, **default)
        if value is None and "default" in default:
            value = default["default"]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Qwen3Error(f"{self.source}: {key} is {json.dumps(value)}, a positive whole number is needed")
        return value

    def refuse_the_rest(self) -> None:
        for key, value in self.left.items():
            if key not in _HARMLESS and value not in (None, False, [], {}):
                raise Qwen3Error(f"{self.source}: field {key!r} = {json.dumps(value)} is not supported")
