"""Folders and repositories that hold something else than a model: each is named, with what to do."""

import json
from pathlib import Path

import pytest

from qwen3.load.contents import instead, instead_of_tokenizer, refuse_what_is_no_model
from qwen3.load.index import weight_files
from qwen3.load.resolve import resolve

from .fake_hub import CONFIG, REPO, refused

KINDS = {
    "adapter_model.safetensors": ("LoRA adapter", "merge it"),
    "adapter_model.bin": ("LoRA adapter", "merge it"),
    "Qwen3-8B-Q4_K_M.gguf": ("GGUF", "original model"),
    "model.GGUF": ("GGUF", "original model"),
    "ggml-model.ggml": ("GGML", "original model"),
    "pytorch_model.bin": ("PyTorch", "save_pretrained"),
    "pytorch_model-00001-of-00002.bin": ("PyTorch", "save_pretrained"),
    "pytorch_model.bin.index.json": ("PyTorch", "save_pretrained"),
    "consolidated.00.pth": ("PyTorch", "save_pretrained"),
    "model.pt": ("PyTorch", "save_pretrained"),
    "last.ckpt": ("PyTorch", "save_pretrained"),
    "model.bin": ("not safetensors", "save_pretrained"),
    "__0_0.distcp": ("distributed training", "export"),
    "tf_model.h5": ("TensorFlow", "original model"),
    "flax_model.msgpack": ("Flax", "original model"),
    "weights.npz": ("MLX", "original model"),
    "model.onnx": ("ONNX", "original model"),
    "rank0.engine": ("TensorRT", "original model"),
}


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_what_is_there_is_said(tmp_path, name, with_config):
    (tmp_path / name).write_bytes(b"x")
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        assert resolve(tmp_path) == tmp_path, "qwen3 info needs no weights"
        refused(lambda: weight_files(tmp_path), str(tmp_path), name, *KINDS[name], "safetensors")
    else:
        refused(lambda: resolve(tmp_path), str(tmp_path), name, *KINDS[name], "config.json")


def test_an_adapter_names_its_base(tmp_path):
    adapter = tmp_path / "adapter_config.json"
    for base in ("Qwen/Qwen3-8B", "a\nb\x1b[31m", None, 5, "x" * 5000):
        adapter.write_text(json.dumps({"base_model_name_or_path": base}))
        message = refused(lambda: resolve(tmp_path), "is a LoRA adapter", "merge it into its base model")
        assert message.isprintable() and ("for Qwen/Qwen3-8B:" in message) == (base == "Qwen/Qwen3-8B")
    adapter.write_text("{")
    refused(lambda: resolve(tmp_path), "is a LoRA adapter: merge it")


def test_an_adapter_beside_weights_is_not_applied_and_that_is_said(tmp_path, caplog):
    for name in ("config.json", "model.safetensors", "adapter_config.json"):
        assert not caplog.records
        (tmp_path / name).write_text("{}")
        if name != "config.json":
            weight_files(tmp_path)
    assert "LoRA adapter, which is not applied" in caplog.text


def test_what_training_leaves_beside_weights_says_nothing(tmp_path):
    names = ["training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth", "rng_state_0.pth"]
    assert instead(names) is None
    assert instead([*names, "pytorch_model.bin"]) is not None


def test_a_folder_of_models_names_one(tmp_path):
    refused(lambda: refuse_what_is_no_model(tmp_path), f"{tmp_path / 'config.json'}: no such file")
    for name in ("checkpoint-20", "checkpoint-10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    refused(lambda: resolve(tmp_path), f"give {tmp_path / 'checkpoint-10'} or one of 1 more")


def test_a_folder_that_cannot_be_listed(tmp_path):
    refused(lambda: refuse_what_is_no_model(tmp_path / "gone"), "gone", "cannot be read")


def test_older_tokenizers_say_how_to_convert_them():
    message = instead_of_tokenizer(["merges.txt", "vocab.json"])
    assert message and "vocab.json and merges.txt" in message and "save_pretrained" in message
    assert "qwen.tiktoken" in (instead_of_tokenizer(["qwen.tiktoken"]) or "")
    assert instead_of_tokenizer(["vocab.json", "README.md"]) is None


HUB = {
    "config.json": {"adapter_config.json": ("LoRA adapter", "merge it"), "x.Q4.gguf": ("GGUF", "original model")},
    "tokenizer.json": {"merges.txt": ("vocab.json", "save_pretrained")},
    "model.safetensors": {"pytorch_model.bin": ("PyTorch", "save_pretrained"), "x.gguf": ("GGUF", "original model")},
}


@pytest.mark.parametrize(
    "lacking, instead_of_it, words", [(a, b, w) for a, kinds in HUB.items() for b, w in kinds.items()]
)
def test_a_repository_of_something_else_is_named(fake, get, tmp_path, lacking, instead_of_it, words):
    files = {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "vocab.json": b"{}"}
    fake.commits["1" * 40] = {name: data for name, data in files.items() if name != lacking} | {instead_of_it: b"x"}
    fake.lists = True
    refused(get, f"no {lacking} at {fake.endpoint}/{REPO}", *words)
    assert not list(Path(tmp_path).iterdir())
