"""The safetensors files of a checkpoint: one file, or the shards that an index names."""

import re
from pathlib import Path

from ..config.files import is_there, read_json
from ..errors import Qwen3Error

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def shard_names(index: dict, source: str) -> list[str]:
    """Returns the names of the shards in `weight_map`; refuses a name that is not of a file beside the index."""
    weight_map = index.get("weight_map")
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise Qwen3Error(f"{source}: weight_map must name safetensors files beside it, not {names[:1]}")
    return names


def weight_names(folder: Path) -> list[str]:
    """Returns the names of the weight files that a model folder needs, whether they are there or not."""
    path = folder / INDEX
    return shard_names(read_json(path), str(path)) if is_there(path) else [WEIGHTS]


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a model folder; raises Qwen3Error if one is missing."""
    files = [folder / name for name in weight_names(folder)]
    for file in files:
        if not file.is_file():
            raise Qwen3Error(f"{file}: no such file: the checkpoint is not complete, download it again")
    return files


def weight_bytes(folder: Path) -> int:
    """Returns the bytes of all tensors by the index, else the sizes of the files; reads no tensor."""
    path = folder / INDEX
    if is_there(path):
        total = (read_json(path).get("metadata") or {}).get("total_size")
        if isinstance(total, int):
            return total
    return sum(file.stat().st_size for file in weight_files(folder))
