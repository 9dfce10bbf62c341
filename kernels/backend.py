"""The operations of Qwen3, apart from any model: plain PyTorch that runs anywhere, or Triton kernels for a GPU."""

import importlib.util
import os
from types import ModuleType

from . import reference

BACKENDS = ("reference", "triton")


def backend(name: str, device: str = "cuda") -> ModuleType:
    """The module that holds every op under one set of signatures (see `qwen3_kernels.reference`).

    "triton" runs on a GPU; on a CPU it runs in Triton's interpreter, made faithful by `testing.interpreter`, slowly
    and for tests, when TRITON_INTERPRET=1 is in the environment. Raises RuntimeError when the backend cannot run on
    `device` ("cpu" or "cuda"), ValueError when there is none of that name.
    """
    if name == "reference":
        return reference
    if name != "triton":
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("backend 'triton' is not available: the package triton is not installed; use 'reference'")
    # Triton 3.9 asks for a choice and warns until there is one; this is what every version did before.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton

    if triton.knobs.runtime.interpret:
        from .testing import interpreter

        interpreter.install()
    elif device == "cpu":
        raise RuntimeError(
            "backend 'triton' needs a GPU, or TRITON_INTERPRET=1 to run slowly on a CPU; use 'reference'"
        )
    from . import triton_ops

    return triton_ops
