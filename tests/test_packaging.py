"""The wheel holds all that the installed package needs, runs away from the repository, and leaves other names alone."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

pytest.importorskip("pip")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
# Folders of the repository by the names under which they are installed.
INSTALLED = {"kernels": "qwen3_kernels", "qwen3": "qwen3", "benchmarks": "benchmarks"}
# Hugging Face's package `kernels` and a transformers release that takes it: it names the versions that it takes.
PEERS = ("kernels==0.17.2", "transformers==5.20.0")


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def run(folder: Path, packages: list[Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder` with only `packages` on the path before the site's own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, packages))
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built in a copy of the sources."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in INSTALLED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    try:
        new_enough = int(version("setuptools").split(".")[0]) >= 77
    except PackageNotFoundError:
        new_enough = False
    isolation = ["--no-build-isolation"] if new_enough else []
    done = pip("wheel", "--no-deps", *isolation, "--wheel-dir", built, source)
    assert done.returncode == 0, done.stderr
    [found] = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_every_module_and_the_data_that_they_read(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {
        f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, installed in INSTALLED.items()
        for path in (ROOT / folder).rglob("*.py")
    }
    configs = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/configs/*/config.json")}
    tiny = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    data = {"qwen3/py.typed", "qwen3_kernels/py.typed", "qwen3_kernels/aot/table.json"}
    data |= configs | {f"qwen3/tiny/{name}" for name in (*tiny, "training.json", "README.md")}
    assert len(configs) >= 5
    assert held == modules | data


def test_its_top_level_names(wheel: Path) -> None:
    held = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in held if not name.endswith(".dist-info")} == set(INSTALLED.values())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("qwen3 info tiny", "16 experts"),
        ("benchmarks --help", "verify"),
        ("qwen3_kernels.aot --check --module swiglu --arch sm_90 --model 30B", "30B/sm_90/swiglu/"),
    ],
    ids=["info", "benchmarks", "aot"],
)
def test_commands_run_from_another_folder(unpacked: Path, tmp_path: Path, command: str, said: str) -> None:
    if "aot" in command:
        pytest.importorskip("triton")
    done = run(tmp_path, [unpacked], "-m", *command.split())
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_those_commands_are_the_ones_of_the_wheel(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import qwen3, benchmarks, qwen3_kernels.ops as ops; print(qwen3.__file__, benchmarks.__file__, ops.__file__)"
    )
    done = run(tmp_path, [unpacked], "-c", code)
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(unpacked) for file in done.stdout.split())


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peers")
    done = pip("install", "--no-deps", "--target", folder, *PEERS)
    if done.returncode:
        pytest.skip(f"{' and '.join(PEERS)} cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.mark.parametrize("place", ["repository", "elsewhere"])
def test_hugging_face_kernels_beside_ours(unpacked: Path, peers: Path, tmp_path: Path, place: str) -> None:
    """In the repository's root its folder kernels/ must not hide the package of that name."""
    code = """
from transformers.utils import is_kernels_available
assert is_kernels_available()
import kernels
from transformers import Qwen3MoeForCausalLM
from qwen3 import LLM
from qwen3_kernels.backend import backend
assert callable(kernels.get_kernel) and callable(backend("cpu").moe_experts)
print(kernels.__file__)
"""
    done = run(ROOT if place == "repository" else tmp_path, [peers, unpacked], "-c", code)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(peers)
