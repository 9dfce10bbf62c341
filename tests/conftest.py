"""Where there is no GPU, Triton kernels run in Triton's interpreter, made exact and strict by testing.interpreter."""

import importlib.util
import os

# All are read once, when NumPy, PyTorch and Triton are first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: threads that wait for each other beside another process take a hundred times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Models that the machine happens to have are no part of a test.
os.environ["HF_HUB_CACHE"] = os.path.join(os.devnull, "hub")
os.environ.pop("QWEN3_MODELS", None)

import hypothesis
import torch

# The same examples in every run; HYPOTHESIS_PROFILE=default looks for new ones, as `make nightly` does.
hypothesis.settings.register_profile("reproducible", derandomize=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "reproducible"))

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("triton"):
    import triton

    if triton.knobs.runtime.interpret:
        from qwen3_kernels.testing import interpreter

        interpreter.install()


def pytest_make_parametrize_id(config, val, argname) -> str | None:
    """Names a dtype in a test's id, bfloat16 and not dtype2; leaves everything else to pytest."""
    return str(val).removeprefix("torch.") if isinstance(val, torch.dtype) else None
