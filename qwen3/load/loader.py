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
from .reader import Header, read_headers, read_tensors

log = logging.getLogger("qwen3")

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@torch.no_grad()
def load_weights(model: Qwen3, folder: Path, progress: bool = False) -> None:
    """Fills every parameter of `model` from the safetensors files of `folder`, casting to the model's dtype.

    Raises Qwen3Error, which names it, for a tensor that is missing, not expected, given twice, of another shape, of a
    dtype that is not floating point or too large for the model's, and for a file that is missing or cannot be read;
    all but values too large before the first tensor is read.
    Warns of values that are not finite: the engine refuses the answers that they reach.
    """
    files = weight_files(folder)
    headers = {file: read_headers(file) for file in files}
    places = _places(model, headers, folder)
    tied_head: tuple[Path, Tensor] | None = None
    not_finite: list[str] = []
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, desc="loading", unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
        for file in files:
            for name, tensor in read_tensors(file, [name for name in headers[file] if name in places]):
                destination = places[name]
                if destination is None:
                    tied_head = (file, tensor.clone())
                elif not _fill(destination, tensor, f"{file}: tensor {brief(name)}"):
                    not_finite.append(name)
                bar.update(tensor.nbytes)
    if tied_head is not None:
        embedding = model.embedding.weight.data
        if not torch.equal(tied_head[1].to(embedding), embedding):
            raise Qwen3Error(
                f"{tied_head[0]}: {HEAD!r} differs from the embedding, but tie_word_embeddings is true: if the head is "
                f"its own, set tie_word_embeddings to false in {model.config.source}"
            )
    if not_finite:
        log.warning(
            "%s: %s has values that are not finite%s: answers that they reach end with an error; download it again",
            folder,
            brief(not_finite[0]),
            f", as have {len(not_finite) - 1} more tensors" if len(not_finite) > 1 else "",
        )


def _places(model: Qwen3, headers: dict[Path, dict[str, Header]], folder: Path) -> dict[str, Tensor | None]:
    """Returns where each tensor of the files belongs; None is the head of a model that ties it to the embedding.

    Raises Qwen3Error for files that do not hold the model, all of it and nothing else.
    """
    published = published_names((name for found in headers.values() for name in found), str(folder))
    destinations = {name: (tensor, [name]) for name, tensor in model.published().items()}
    missing = set(destinations)
    destinations |= model.stacked()
    places: dict[str, Tensor | None] = {}
    tied = model.lm_head is None and EMBEDDING in published.values()
    for file, found in headers.items():
        for given in found:
            if given not in published:
                continue
            name, where = published[given], f"{file}: tensor {brief(given)}"
            if name == HEAD and model.lm_head is None:
                # Some tied checkpoints hold the head all the same, some instead of the embedding.
                name = EMBEDDING
            if name not in destinations:
                raise Qwen3Error(f"{where} {meaning(given) or _unexpected(name, model)}")
            found[given].check(where)
            destination, covers = destinations[name]
            if found[given].shape != destination.shape:
                got, want = list(found[given].shape), list(destination.shape)
                # Tokens were added without a change of config.json, or rows were padded.
                rows = name in (EMBEDDING, HEAD) and got[1:] == want[1:]
                advice = f": set vocab_size to {got[0]} there if the tokenizer belongs to the file" if rows else ""
                if 0 in got:
                    advice = ": it is empty, as DeepSpeed's ZeRO-3 saves what it has not gathered: run zero_to_fp32.py"
                raise Qwen3Error(f"{where} has shape {got}, {model.config.source} says {want}{advice}")
            if tied and published[given] == HEAD:
                places[given] = None
                continue
            if not missing.issuperset(covers):
                raise Qwen3Error(f"{where} is given twice")
            missing.difference_update(covers)
            places[given] = destination
    if missing:
        raise Qwen3Error(f"{folder}: {_missing(missing, model)}")
    return places


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


def _unexpected(name: str, model: Qwen3) -> str:
    """Returns the message for a tensor that the model does not have."""
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
    """Returns the message for tensors that no file holds."""
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
        return f"{said}: {layers}: download it again or correct that number"
    return f"{said}: download it again"
