"""mypy: the kernels are clean, and a backend module that lacks an op is an error that names it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", "types/qwen3_kernels"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kernels, which mypy finds as it finds those of the repository."""
    folder = tmp_path_factory.mktemp("types")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels", folder / "types" / "qwen3_kernels", ignore=ignored)
    return folder


def test_kernels_are_clean(kernels: Path) -> None:
    done = check(kernels)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "old", "new", "op"),
    [
        ("reference.py", "def sample(", "def _sample(", "sample"),
        ("cpu.py", "def swiglu(", "def _swiglu(", "swiglu"),
        ("triton_ops.py", "import qk_norm_rope_cache, rope\n", "import qk_norm_rope_cache\n", "rope"),
        ("cpu.py", "top_k: int, renormalize: bool", "top_k: Tensor, renormalize: bool", "route"),
    ],
    ids=["reference lacks sample", "cpu lacks swiglu", "triton lacks rope", "route of another type"],
)
def test_backend_that_breaks_the_protocol_is_an_error(kernels: Path, module: str, old: str, new: str, op: str) -> None:
    path = kernels / "types" / "qwen3_kernels" / module
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    done = check(kernels)
    path.write_text(text)
    said = [line for line in done.stdout.splitlines() if line.startswith("types/qwen3_kernels/backend.py")]
    assert done.returncode == 1
    assert any('expected "Ops"' in line for line in said) and any(op in line for line in said), done.stdout
