"""Backends: the modules that implement the ops of a Qwen3 model, by name."""

import importlib.util
import os

from . import cpu, reference
from .ops import Ops

BACKENDS = ("triton", "cpu", "reference")


def backend(name: str, device: str = "cuda") -> Ops:
    """The module with this implementation of the ops.

    "triton": the kernels, on a GPU, or on a CPU in Triton's interpreter, slowly and for tests, if TRITON_INTERPRET=1 is
    in the environment. "cpu": PyTorch, tuned for inference on a CPU. "reference": plain PyTorch, differentiable, the
    oracle of the tests. Both PyTorch backends run on any device.

    Raises ValueError for an unknown name and RuntimeError if the backend cannot run on `device`, "cuda" or "cpu".
    """
    if name == "reference":
        return reference
    if name == "cpu":
        return cpu
    if name == "triton":
        return _triton(device)
    raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")


def _triton(device: str) -> Ops:
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("backend 'triton' is not available: the package triton is not installed; use 'cpu'")
    # Triton 3.9 warns unless this is set; 1 is what every earlier version did.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton

    if triton.knobs.runtime.interpret:
        from .testing import interpreter

        interpreter.install()
    elif device == "cpu":
        raise RuntimeError("backend 'triton' needs a GPU, or TRITON_INTERPRET=1 to run slowly on a CPU; use 'cpu'")
    from . import triton_ops

    return triton_ops
