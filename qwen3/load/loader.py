"""Fills a model from published checkpoints: every tensor has one place, and every place gets its tensor."""

from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import Qwen3Error
from ..model.qwen3 import Qwen3
from .index import weight_files
from .reader import read_tensors


@torch.no_grad()
def load_weights(model: Qwen3, folder: Path, progress: bool = False) -> None:
    """Fills every parameter of `model` from the safetensors files of `folder`, casting to the model's dtype.

    Raises Qwen3Error, which names it, for a tensor that is missing, not expected, given twice, of another shape or of
    a dtype that is not floating point, and for a file that is missing or cannot be read.
    """
    files = weight_files(folder)
    destinations = {name: (tensor, [name]) for name, tensor in model.published().items()}
    missing = set(destinations)
    destinations |= model.stacked()
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
    embedding = destinations["model.embed_tokens.weight"][0]
    if tied_head is not None and not torch.equal(tied_head[1].to(embedding), embedding):
        raise Qwen3Error(
            f"{tied_head[0]}: 'lm_head.weight' differs from the embedding, but tie_word_embeddings is true"
        )
