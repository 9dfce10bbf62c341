"""The safetensors files of a checkpoint: one file, the shards that an index names, or shards without an index."""

import logging
import os
import re
from pathlib import Path
from typing import Any

from ..config.files import is_there, read_json
from ..errors import Qwen3Error, brief
from .contents import ADAPTER, instead, names_in

log = logging.getLogger("qwen3")

INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"
_SHARD = re.compile(r"(.+)-(\d{1,6})-of-(\d{1,6})\.safetensors")
MAX_SHARDS = 10_000


def is_weight_name(name: str) -> bool:
    """Whether a name is one that transformers gives to the weights of a model, whole or a shard."""
    return name == WEIGHTS or (name.startswith("model") and _SHARD.fullmatch(name) is not None)


def shard_names(index: dict[str, Any], source: str) -> list[str]:
    """Returns the names of the shards in `weight_map`; refuses a name that is not of a file beside the index."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Qwen3Error(f"{source}: weight_map is {brief(weight_map)}: it must name the file of every tensor")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.()+@=, -]+\.safetensors", name):
            raise Qwen3Error(f"{source}: weight_map must name safetensors files beside it, not {brief(name)}")
    return sorted(set(weight_map.values()))


def without_index(names: list[str], source: str) -> list[str]:
    """Chooses the weight files among the files of a checkpoint that has neither index nor model.safetensors.

    Shards say in their names how many they are; other safetensors files are all taken. None: an empty list.
    """
    # Names that begin with a dot are what macOS and unfinished copies leave.
    found = sorted(name for name in names if name.endswith(".safetensors") and not name.startswith(("adapter_", ".")))
    shards = [match for name in found if (match := _SHARD.fullmatch(name))]
    if not shards:
        return found
    series = sorted({(match[1], match[3]) for match in shards})
    if len(series) > 1:
        shown = " and ".join(f"{stem}-...-of-{total}" for stem, total in series[:2])
        raise Qwen3Error(f"{source}: holds shards of two checkpoints, {shown}, and no {INDEX}: delete those of one")
    stem, total = series[0]
    if not 0 < int(total) <= MAX_SHARDS:
        raise Qwen3Error(f"{source}: {shards[0][0]} is the name of one of {int(total)} shards, which no checkpoint has")
    here = {int(match[2]): match[0] for match in shards}
    wanted = {i: here.get(i) or f"{stem}-{i:0{len(total)}}-of-{total}.safetensors" for i in range(1, int(total) + 1)}
    if missing := [name for i, name in wanted.items() if i not in here]:
        raise Qwen3Error(
            f"{source}: {missing[0]} is missing, {len(missing)} of {len(wanted)} shards: download it again"
        )
    return list(wanted.values())


def weight_names(folder: Path) -> list[str]:
    """Returns the names of the weight files that a model folder needs, whether they are there or not.

    model.safetensors is read before the shards of an index, as in transformers, and both before shards without one.
    """
    path, single = folder / INDEX, is_there(folder / WEIGHTS)
    if is_there(path):
        shards = shard_names(read_json(path), str(path))
        if not single or WEIGHTS in shards:
            return shards
    if single:
        return [WEIGHTS]
    return without_index(names_in(folder), str(folder)) or [WEIGHTS]


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a model folder; raises Qwen3Error if one is missing, and says what is there."""
    names = weight_names(folder)
    for file in (folder / name for name in names):
        if file.is_file():
            continue
        if is_there(file):
            raise Qwen3Error(f"{file}: is not a file, or a link whose target is missing: download the file again")
        if names == [WEIGHTS] and (what := instead(names_in(folder))):
            raise Qwen3Error(f"{folder}: {what} (only safetensors are read)")
        raise Qwen3Error(f"{file}: no such file: the checkpoint is not complete, download it again")
    if names == [WEIGHTS] and is_there(folder / INDEX) and WEIGHTS not in shard_names(read_json(folder / INDEX), INDEX):
        log.warning("%s holds %s and an index that names other files: %s is read", folder, WEIGHTS, WEIGHTS)
    if is_there(folder / ADAPTER):
        log.warning("%s holds a LoRA adapter, which is not applied: merge it to use it", folder)
    return [folder / name for name in names]


def weight_bytes(folder: Path) -> int | None:
    """Returns the bytes of all tensors by the index, else the sizes of the files, None without any; reads no tensor."""
    path = folder / INDEX
    if is_there(path):
        metadata = read_json(path).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(total, int) and not isinstance(total, bool) and 0 < total < 2**60:
            return total
    sizes = [os.path.getsize(folder / name) for name in weight_names(folder) if os.path.isfile(folder / name)]
    return sum(sizes) if sizes else None
