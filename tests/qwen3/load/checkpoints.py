"""Loads a checkpoint into a model, and edits its tensors on disk."""

import torch
from safetensors.torch import load_file, save_file

from qwen3.config.hf import model_config
from qwen3.load.loader import load_weights
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels.backend import backend


def loaded(folder, dtype=torch.float32):
    """The tensors of a model that is loaded from `folder`, by their published names."""
    model = Qwen3(model_config(folder), backend("reference"), 64, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    load_weights(model, folder)
    return {name: tensor.clone() for name, tensor in model.published().items()}


def edit(folder, change):
    """Applies `change` to the tensors of model.safetensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
