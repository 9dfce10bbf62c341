"""Every example runs as it stands and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(ROOT), str(ROOT / "types"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "examples" / f"{name}.py", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def output(name: str) -> list[str]:
    finished = run(name)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


@pytest.mark.slow
def test_stream():
    first, *rest = output("stream")
    assert first == "def read_lines(path):"
    assert len(rest) > 2 and any(line.startswith("    ") for line in rest)
    assert not any(line.startswith(("def ", "class ")) for line in rest), "a stop string is in the answer"


@pytest.mark.slow
def test_batch():
    lines = output("batch")
    *answers, likely = lines
    found = dict(line.split(": ", 1) for line in answers)
    text = {name: rest.split(" -> ")[1].rsplit(" (")[0] for name, rest in found.items()}
    assert len(found) == 6
    assert text["seed 1"] == text["seed 1 again"] != text["seed 2"]
    assert "(stop, " in found["until a colon"] and ":" not in text["until a colon"]
    scores = [float(number) for number in re.findall(r" (-\d+\.\d\d)", likely)]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_batch_invariance():
    lines = output("batch_invariance")
    assert len(lines) == 4
    assert all(": 48 of 48 tokens are the same" in line for line in lines)


def test_kernel():
    pytest.importorskip("triton")
    first, *rows = output("kernel")
    assert first.startswith("rms_norm of 64 rows of 256")
    assert [row.split(":")[0].strip() for row in rows] == ["float32", "float16", "bfloat16"]
    for row in rows:
        error, own = (float(number) for number in re.findall(r"\d\.\d\de-\d\d", row))
        assert 0 < error < 2 * own


@pytest.mark.slow
def test_async_streams():
    *answers, summary = output("async_streams")
    assert len(answers) == 6 and all(" -> [" in answer for answer in answers)
    tokens, steps = map(int, re.findall(r"(\d+) (?:tokens|decode steps)", summary))
    assert tokens > 3 * steps, "the streams did not share their steps"


@pytest.mark.slow
def test_a_model_is_an_argument(tmp_path):
    finished = run("stream", str(tmp_path))
    assert finished.returncode != 0 and str(tmp_path) in finished.stderr


def test_every_example_is_tested():
    assert EXAMPLES and {f"test_{path.stem}" for path in EXAMPLES} <= globals().keys()
