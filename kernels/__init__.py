"""The operations of Qwen3, apart from any model: `backend("reference")` is plain PyTorch and runs anywhere."""

from types import ModuleType

from . import reference

BACKENDS = ("reference", "triton")


def backend(name: str) -> ModuleType:
    """The module that holds every op under one set of signatures (see `kernels.reference`).

    Raises RuntimeError when the backend cannot run here, ValueError when there is none of that name.
    """
    if name == "reference":
        return reference
    if name == "triton":
        raise RuntimeError("backend 'triton' is not available: this version has no Triton kernels yet, use 'reference'")
    raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
