"""Describes by its file names what a folder or a repository holds instead of a model."""

import os
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from ..config.files import read_json
from ..errors import Qwen3Error, shown

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
ADAPTER = "adapter_config.json"

_MERGE = "merge it into its base model first, and give the merged model's folder"
_CONVERT = "convert them: save_pretrained of transformers writes safetensors"
_ORIGINAL = "take the original model with safetensors weights"
# Pattern of a file's name, what it is, what to do; the first that fits is said.
_KINDS = (
    (ADAPTER, "of a LoRA adapter", _MERGE),
    ("adapter_model.*", "of a LoRA adapter", _MERGE),
    ("*.gguf", "GGUF weights for llama.cpp", _ORIGINAL),
    ("*.ggml", "GGML weights for llama.cpp", _ORIGINAL),
    ("pytorch_model*.bin*", "PyTorch weights", _CONVERT),
    ("*.distcp", "a shard of a distributed training run", "export it as safetensors first"),
    ("*.pth", "PyTorch weights", _CONVERT),
    ("*.pt", "PyTorch weights", _CONVERT),
    ("*.ckpt", "PyTorch weights", _CONVERT),
    ("*.bin", "weights that are not safetensors", _CONVERT),
    ("*.h5", "TensorFlow weights", _ORIGINAL),
    ("*.msgpack", "Flax weights", _ORIGINAL),
    ("*.npz", "NumPy or MLX weights", _ORIGINAL),
    ("*.onnx", "an ONNX graph", _ORIGINAL),
    ("*.engine", "a TensorRT engine", _ORIGINAL),
)
# What training leaves beside weights, and says nothing about them.
_BESIDE = ("training_args.bin", "optimizer*", "scheduler*", "rng_state*")
_MODEL_FILES = (
    CONFIG, TOKENIZER, ADAPTER, "generation_config.json", "tokenizer_config.json", "chat_template.*", "vocab.json",
    "merges.txt", "*.safetensors", "*.index.json", "*.gguf", "*.bin",
)  # fmt: skip
NEEDED = "a model has config.json, tokenizer.json and safetensors weights"


def kind_of(name: str) -> str | None:
    """Says what a file is by its name, and what to do; None for what says nothing or belongs to a model."""
    kind = _kind(name)
    return None if kind is None else "{1}: {2}".format(*_KINDS[kind])


def instead(names: list[str]) -> str | None:
    """Returns "holds ..., which is ...: what to do" for files that are clearly something else, None for others."""
    told = [(kind, name) for name in names if (kind := _kind(name)) is not None]
    return f"holds {min(told)[1]}, {kind_of(min(told)[1])}" if told else None


def _kind(name: str) -> int | None:
    """The first row of _KINDS that fits a file's name."""
    name = name.lower()
    if any(fnmatch(name, pattern) for pattern in _BESIDE):
        return None
    return next((row for row, (pattern, _, _) in enumerate(_KINDS) if fnmatch(name, pattern)), None)


def instead_of_tokenizer(names: list[str]) -> str | None:
    """The same for a model without tokenizer.json."""
    if {"vocab.json", "merges.txt"} <= set(names):
        advice = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers writes tokenizer.json"
        return f"holds vocab.json and merges.txt, the tokenizer's older files, but no {TOKENIZER}: {advice}"
    if found := sorted(name for name in names if name.endswith((".tiktoken", "tokenizer.model"))):
        return f"holds {found[0]}, but no {TOKENIZER}, which is the only kind of tokenizer that is read"
    return None


def refuse_file_of_model(path: str | os.PathLike[str], folder: Path, name: str) -> None:
    """Raises Qwen3Error where an output, which `name` calls, would replace a file of the model in `folder`."""
    own = [file for file in names_in(folder) if any(fnmatch(file, pattern) for pattern in _MODEL_FILES)]
    if any(_is_same(path, folder / file) for file in own):
        raise Qwen3Error(f"{name} {path}: is a file of the model: name another file")


def _is_same(path: str | os.PathLike[str], other: Path) -> bool:
    # One that is not there, may not be looked at, or is no path.
    with suppress(OSError, ValueError):
        return os.path.samefile(path, other)
    return False


def names_in(folder: Path) -> list[str]:
    """The names of what is in a folder, none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def refuse_what_is_no_model(folder: Path) -> None:
    """Raises Qwen3Error for a folder without config.json, and says what it holds."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Qwen3Error(f"{folder}: cannot be read ({error.strerror}): {NEEDED}") from None
    if CONFIG in names:
        return
    if ADAPTER in names:
        raise Qwen3Error(f"{folder}: is a LoRA adapter{_base_of(folder)}: merge it into its base model first")
    if what := instead(names):
        raise Qwen3Error(f"{folder}: {what} ({NEEDED})")
    if inner := [name for name in names if os.path.lexists(folder / name / CONFIG)]:
        more = f" or one of {len(inner) - 1} more in it" if len(inner) > 1 else ""
        raise Qwen3Error(f"{folder}: holds no {CONFIG}, but a folder with one: give {folder / inner[0]}{more}")
    raise Qwen3Error(f"{folder / CONFIG}: no such file: {NEEDED}")


def _base_of(folder: Path) -> str:
    try:
        base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    except Qwen3Error:
        return ""
    return f" for {shown(base, 100)}" if isinstance(base, str) and base else ""
