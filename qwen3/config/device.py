"""Resolves device, dtype and backend: what was asked for by name runs or raises; only "auto" chooses."""

import logging

import torch

from qwen3_kernels.backend import BACKENDS, backend
from qwen3_kernels.ops import Ops

from ..errors import Qwen3Error, brief
from .model import DTYPES, ModelConfig

log = logging.getLogger("qwen3")


def resolve_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:N"; raises Qwen3Error for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Qwen3Error(f"device {brief(name)} is unknown: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise Qwen3Error(f"device {brief(name)} is not supported: use auto, cpu or cuda")
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= torch.cuda.device_count():
        raise Qwen3Error(
            f"device {brief(name)} is not available: PyTorch sees {torch.cuda.device_count()} GPUs here; use cpu"
        )
    return device


def resolve_dtype(name: str, config: ModelConfig) -> torch.dtype:
    """ "auto" is the checkpoint's own dtype, bfloat16 where config.json names none."""
    if name == "auto":
        return config.dtype or torch.bfloat16
    if name not in DTYPES:
        raise Qwen3Error(f"dtype {brief(name)} is not supported: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def resolve_backend(name: str, device: torch.device) -> tuple[str, Ops]:
    """The name and the ops of a backend. "auto" is triton on a GPU and cpu elsewhere, and falls back to cpu."""
    if name not in ("auto", *BACKENDS):
        raise Qwen3Error(f"backend {brief(name)} is unknown: use auto, {', '.join(BACKENDS)}")
    if name == "auto":
        if device.type == "cuda":
            try:
                return "triton", backend("triton", device.type)
            except RuntimeError as error:
                log.warning("%s; running on the cpu backend", error)
        return "cpu", backend("cpu")
    try:
        return name, backend(name, device.type)
    except RuntimeError as error:
        raise Qwen3Error(str(error)) from None
