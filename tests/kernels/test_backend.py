"""Backends by name, and the errors of those that cannot run."""

import importlib.util
import os
import subprocess
import sys

import pytest

from qwen3_kernels import cpu, reference
from qwen3_kernels.backend import BACKENDS, backend
from qwen3_kernels.ops import Ops


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_holds_every_op(name):
    module = backend(name)
    for op in (op for op in vars(Ops) if not op.startswith("_")):
        assert callable(getattr(module, op))


def test_pytorch_backends_run_on_any_device():
    for device in ("cpu", "cuda"):
        assert backend("cpu", device) is cpu
        assert backend("reference", device) is reference


def test_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="unknown backend 'numpy': choose one of triton, cpu, reference"):
        backend("numpy")


def test_triton_that_is_not_installed_is_an_error(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="the package triton is not installed; use 'cpu'"):
        backend("triton")


def test_triton_on_a_cpu_is_strict_and_keeps_the_choice_of_fused_products(monkeypatch):
    """The interpreter by itself reads beside tensors without a word."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("the interpreter does not run")
    from qwen3_kernels.testing import interpreter

    installed = []
    monkeypatch.setattr(interpreter, "install", lambda: installed.append(True))
    for given, kept in ((None, "1"), ("0", "0")):
        monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
        if given is not None:
            monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", given)
        backend("triton", "cpu")
        assert os.environ["TRITON_DEFAULT_FP_FUSION"] == kept
    assert installed == [True, True]


@pytest.mark.slow
def test_triton_on_a_cpu_without_the_interpreter_is_an_error():
    code = (
        "from qwen3_kernels.backend import backend\ntry: backend('triton', 'cpu')\nexcept RuntimeError as e: print(e)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == ("backend 'triton' needs a GPU, or TRITON_INTERPRET=1 to run slowly on a CPU; use 'cpu'\n"), (
        done.stderr
    )
