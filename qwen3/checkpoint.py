"""Official checkpoints into fused parameters: safetensors, one file or shards, strict both ways."""

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .errors import Qwen3Error
from .layers import SparseMoE
from .load.index import weight_files
from .load.reader import read_tensors
from .model import Qwen3


def published_tensors(model: Qwen3) -> dict[str, Tensor]:
    """Hugging Face's tensor names, each with the part of a fused parameter that it is (a view)."""
    config = model.config
    names = {"model.embed_tokens.weight": model.embed_tokens, "model.norm.weight": model.norm}
    if model.lm_head is not None:
        names["lm_head.weight"] = model.lm_head
    for i, layer in enumerate(model.layers):
        prefix, attention = f"model.layers.{i}.", layer.attention
        names[prefix + "input_layernorm.weight"] = layer.input_norm
        names[prefix + "post_attention_layernorm.weight"] = layer.post_attention_norm
        names[prefix + "self_attn.q_norm.weight"] = attention.q_norm
        names[prefix + "self_attn.k_norm.weight"] = attention.k_norm
        names[prefix + "self_attn.o_proj.weight"] = attention.o_weight
        sizes = (config.q_size, config.kv_size, config.kv_size)
        for part, weight in zip("qkv", attention.qkv_weight.split(sizes)):
            names[f"{prefix}self_attn.{part}_proj.weight"] = weight
        if config.attention_bias:
            names[prefix + "self_attn.o_proj.bias"] = attention.o_bias
            for part, bias in zip("qkv", attention.qkv_bias.split(sizes)):
                names[f"{prefix}self_attn.{part}_proj.bias"] = bias
        if isinstance(layer.mlp, SparseMoE):
            names[prefix + "mlp.gate.weight"] = layer.mlp.router_weight
            for e in range(config.num_experts):
                names |= _mlp(f"{prefix}mlp.experts.{e}.", layer.mlp.gate_up_weight[e], layer.mlp.down_weight[e])
        else:
            names |= _mlp(prefix + "mlp.", layer.mlp.gate_up_weight, layer.mlp.down_weight)
    return names


def _mlp(prefix: str, gate_up: Tensor, down: Tensor) -> dict[str, Tensor]:
    gate, up = gate_up.chunk(2)
    return {prefix + "gate_proj.weight": gate, prefix + "up_proj.weight": up, prefix + "down_proj.weight": down}


def stacked_tensors(model: Qwen3) -> dict[str, tuple[Tensor, list[str]]]:
    """The names under which newer files hold all experts in one tensor, and the published names that each stands for."""
    stacked = {}
    for i, layer in enumerate(model.layers):
        if isinstance(layer.mlp, SparseMoE):
            prefix, experts = f"model.layers.{i}.mlp.experts.", range(model.config.num_experts)
            both = [f"{prefix}{e}.{part}_proj.weight" for e in experts for part in ("gate", "up")]
            stacked[prefix + "gate_up_proj"] = (layer.mlp.gate_up_weight, both)
            stacked[prefix + "down_proj"] = (layer.mlp.down_weight, [f"{prefix}{e}.down_proj.weight" for e in experts])
    return stacked


@torch.no_grad()
def load_weights(model: Qwen3, folder: Path, progress: bool = False) -> None:
    """Fills every parameter of `model` from the safetensors files of `folder`, casting to the model's dtype.

    Raises Qwen3Error, which names it, for a tensor that is missing, not expected, given twice, of another shape or of
    a dtype that is not floating point, and for a file that is missing or cannot be read.
    """
    files = weight_files(folder)
    destinations: dict[str, tuple[Tensor, list[str]]] = {n: (t, [n]) for n, t in published_tensors(model).items()}
    missing = set(destinations)
    destinations |= stacked_tensors(model)
    tied_head = None
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="loading", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for file, name, tensor in read_tensors(files):
            if name == "lm_head.weight" and model.lm_head is None:
                # Some tied checkpoints hold the head all the same; it must be the embedding.
                tied_head = (file, tensor.clone())
                continue
            if name not in destinations:
                raise Qwen3Error(f"{file}: tensor {name!r} has no place in the model of {model.config.source}")
            destination, covers = destinations[name]
            if tensor.shape != destination.shape:
                got, want = list(tensor.shape), list(destination.shape)
                raise Qwen3Error(f"{file}: tensor {name!r} has shape {got}, {model.config.source} says {want}")
            if not missing.issuperset(covers):
                raise Qwen3Error(f"{file}: tensor {name!r} is given twice")
            missing.difference_update(covers)
            destination.copy_(tensor)
            bar.update(tensor.nbytes)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Qwen3Error(f"{folder}: tensor {min(missing)!r}{more} missing from the checkpoint: download it again")
    if tied_head is not None and not torch.equal(tied_head[1].to(model.embed_tokens), model.embed_tokens):
        raise Qwen3Error(
            f"{tied_head[0]}: 'lm_head.weight' differs from the embedding, but tie_word_embeddings is true"
        )
