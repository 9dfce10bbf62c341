"""Fills a model from published checkpoints: every tensor has one place, and every place gets its tensor."""

import logging
import math
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..config.model import dtype_name
from ..errors import Qwen3Error, brief
from ..model.qwen3 import Qwen3
from .index import weight_files
from .names import meaning, published_names
from .reader import read_tensors, tensor_names

log = logging.getLogger("qwen3")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@torch.no_grad()
def load_weights(model: Qwen3, folder: Path, progress: bool = False) -> None:
    """Fills every parameter of `model` from the safetensors files of `folder`, casting to the model's dtype.

    Raises Qwen3Error, which names it, for a tensor that is missing, not expected, given twice, of another shape, of a
    dtype that is not floating point or too large for the model's, and for a file that is missing or cannot be read.
    Warns of values that are not finite: the engine refuses the answers that they reach.
    """
    files = weight_files(folder)
    names = {file: tensor_names(file) for file in files}
    published = published_names((name for found in names.values() for name in found), str(folder))
    destinations = {name: (tensor, [name]) for name, tensor in model.published().items()}
    missing = set(destinations)
    destinations |= model.stacked()
    tied_head: tuple[Path, Tensor] | None = None
    not_finite: list[str] = []
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="loading", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for file in files:
            for given, tensor in read_tensors(file, [name for name in names[file] if name in published]):
                name, where = published[given], f"{file}: tensor {brief(given)}"
                if name == HEAD and model.lm_head is None:
                    # Some tied checkpoints hold the head all the same; it must be the embedding.
                    tied_head = (file, tensor.clone())
                    continue
                if name not in destinations:
                    raise Qwen3Error(f"{where} {meaning(given) or _unexpected(name, model)}")
                destination, covers = destinations[name]
                if tensor.shape != destination.shape:
                    got, want = list(tensor.shape), list(destination.shape)
                    raise Qwen3Error(f"{where} has shape {got}, {model.config.source} says {want}")
                if not missing.issuperset(covers):
                    raise Qwen3Error(f"{where} is given twice")
                missing.difference_update(covers)
                if not _fill(destination, tensor, where):
                    not_finite.append(given)
                bar.update(tensor.nbytes)
    if tied_head is not None:
        _tie(tied_head, destinations[EMBEDDING][0], missing, model)
    if missing:
        raise Qwen3Error(f"{folder}: {_missing(missing, model)}")
    if not_finite:
        log.warning(
            "%s: %s has values that are not finite%s: answers that they reach end with an error; download it again",
            folder,
            brief(not_finite[0]),
            f", as have {len(not_finite) - 1} more tensors" if len(not_finite) > 1 else "",
        )


def _fill(destination: Tensor, tensor: Tensor, where: str) -> bool:
    """Copies and casts a tensor; returns whether all values are finite, raises Qwen3Error if the cast lost one."""
    destination.copy_(tensor)
    # A sum is not finite where a value is not; it reads the tensor once and is exact enough to look closer.
    if math.isfinite(destination.sum().item()):
        return True
    count, before = (int((~t.isfinite()).sum()) for t in (destination, tensor))
    if count > before:
        most, name = tensor[tensor.isfinite()].abs().max().item(), dtype_name(destination.dtype)
        raise Qwen3Error(
            f"{where} has {count - before} values too large for {name}, up to {most:.3g}: use dtype bfloat16 or float32"
        )
    return before == 0


def _tie(head: tuple[Path, Tensor], embedding: Tensor, missing: set[str], model: Qwen3) -> None:
    """Checks the head of a checkpoint that ties it to the embedding, or takes it where the file holds it alone."""
    file, tensor = head
    if EMBEDDING in missing and tensor.shape == embedding.shape:
        missing.discard(EMBEDDING)
        _fill(embedding, tensor, f"{file}: tensor {HEAD!r}")
    elif EMBEDDING not in missing and not torch.equal(tensor.to(embedding), embedding):
        raise Qwen3Error(
            f"{file}: {HEAD!r} differs from the embedding, but tie_word_embeddings is true: if the head is its own, "
            f"set tie_word_embeddings to false in {model.config.source}"
        )


def _unexpected(name: str, model: Qwen3) -> str:
    """What to say of a tensor that the model has no place for."""
    config = model.config
    parts = name.split(".")
    if parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdecimal() and len(parts[2]) < 9:
        if int(parts[2]) >= config.num_layers:
            return f"is of layer {parts[2]}: num_hidden_layers is {config.num_layers} in {config.source}"
        if parts[3:4] == ["self_attn"] and parts[-1] == "bias" and not config.attention_bias:
            return f"is a bias, but attention_bias is false in {config.source}: set it to true if the model has biases"
        if "experts" in parts and not config.num_experts:
            return f"is of an expert, but {config.source} is of a dense model"
    return f"has no place in the model of {config.source}"


def _missing(missing: set[str], model: Qwen3) -> str:
    """What to say of tensors that no file holds."""
    source, more = model.config.source, f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    said = f"tensor {min(missing)!r}{more} missing from the checkpoint"
    if missing == {HEAD}:
        return f"{said}: if this model ties its embeddings, set tie_word_embeddings to true in {source}"
    if all(name.endswith(".bias") for name in missing):
        return f"{said}: if this model has no biases, set attention_bias to false in {source}"
    if all(name.endswith((".q_norm.weight", ".k_norm.weight")) for name in missing):
        return f"{said}: without norms of q and k it is not a Qwen3 model (Qwen2 has none)"
    first = min(int(name.split(".")[2]) if name.startswith("model.layers.") else 0 for name in missing)
    last = tuple(f"model.layers.{layer}." for layer in range(first, model.config.num_layers))
    if first and missing == {name for name in model.published() if name.startswith(last)}:
        layers = f"num_hidden_layers is {model.config.num_layers} in {source}, the files end before layer {first}"
        return f"{said}: {layers}: download it again or mend that number"
    return f"{said}: download it again"
