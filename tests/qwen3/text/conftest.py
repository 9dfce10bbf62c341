"""A small tokenizer, and the one of Qwen3."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3.text.tokenizer import Tokenizer

from .folders import auto_tokenizer, write_folder

# A folder with the tokenizer.json of a Qwen3 model, or with qwen.tiktoken, from which a tool beside it builds one.
GIVEN = os.environ.get("QWEN3_TOKENIZER")
SOURCE = Path(GIVEN) if GIVEN else Path(__file__).resolve().parents[4] / "shared" / "data"
HOW = "run `qwen3 download Qwen/Qwen3-0.6B`, then set QWEN3_TOKENIZER=models/Qwen/Qwen3-0.6B"


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(write_folder(tmp_path_factory.mktemp("small"), {"eos_token": "</s>"}))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory) -> Path:
    """A folder with the tokenizer.json and tokenizer_config.json of Qwen3."""
    if (SOURCE / "tokenizer.json").is_file():
        return SOURCE
    tool = SOURCE.parent / "tools" / "build_qwen_tokenizer.py"
    if not (SOURCE / "qwen.tiktoken").is_file() or not tool.is_file():
        assert GIVEN is None, f"QWEN3_TOKENIZER={GIVEN} holds no tokenizer: {HOW}"
        pytest.skip(f"needs Qwen3's tokenizer: {HOW}")
    folder = tmp_path_factory.mktemp("qwen")
    subprocess.run([sys.executable, str(tool), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def ranks() -> list[bytes]:
    """The lines of the published vocabulary: a token in base64 and its id."""
    path = SOURCE / "qwen.tiktoken"
    if not path.is_file():
        pytest.skip("needs qwen.tiktoken of Qwen/Qwen-7B on the hub, in the folder that QWEN3_TOKENIZER names")
    return path.read_bytes().splitlines()


@pytest.fixture(scope="session")
def qwen(qwen_folder) -> Tokenizer:
    return Tokenizer.from_folder(qwen_folder)


@pytest.fixture(scope="session")
def theirs(qwen_folder):
    return auto_tokenizer(qwen_folder)
