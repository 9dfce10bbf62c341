"""Official checkpoints into fused parameters: safetensors, one file or shards, strict both ways."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from ..config.hf import read_json
from ..errors import Qwen3Error
from ..model.qwen3 import Qwen3

_DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Pages of a mapped file count as resident until it is closed: it is opened anew after this many bytes.
_BYTES_PER_MAPPING = 64 << 20


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
        for file, name, tensor in _read(files):
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


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that model.safetensors.index.json names; all are there."""
    index = Path(folder) / "model.safetensors.index.json"
    if index.is_file():
        weight_map = read_json(index, "").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Qwen3Error(f"{index}: no weight_map: download the file again")
        files = [Path(folder) / name for name in sorted(set(weight_map.values()))]
    else:
        files = [Path(folder) / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise Qwen3Error(f"{file}: no such file: the checkpoint is not complete, download it again")
    return files


def weight_bytes(folder: Path) -> int:
    """Bytes of all tensors, from the index or else the file sizes; no tensor is read."""
    index = Path(folder) / "model.safetensors.index.json"
    if index.is_file():
        total = (read_json(index, "").get("metadata") or {}).get("total_size")
        if isinstance(total, int):
            return total
    return sum(file.stat().st_size for file in weight_files(folder))


def _read(files: list[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    """All tensors in the order in which they lie on disk; each is valid until the next is asked for."""
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                names = handle.offset_keys()
            while names:
                with ExitStack() as stack:
                    handle = stack.enter_context(safe_open(file, framework="pt"))
                    mapped = 0
                    while names and mapped < _BYTES_PER_MAPPING:
                        name = names.pop(0)
                        dtype = handle.get_slice(name).get_dtype()
                        if dtype not in _DTYPES:
                            allowed = ", ".join(_DTYPES)
                            raise Qwen3Error(f"{file}: tensor {name!r} has dtype {dtype}: only {allowed} are supported")
                        tensor = handle.get_tensor(name)
                        mapped += tensor.nbytes
                        yield file, name, tensor
                        del tensor
        except (SafetensorError, OSError) as error:
            raise Qwen3Error(f"{file}: cannot be read ({error}): download the file again") from None
