"""host, end to end at its smallest, in a process whose kernels are not interpreted."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.common import REPOSITORY

pytest.importorskip("triton")
from benchmarks.questions import host


def start(tmp_path, **environment) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "host",
        "--rounds",
        "1",
        "--longest",
        "600",
        "--output",
        str(tmp_path),
    ]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_row_for_each_part(tmp_path):
    done = start(tmp_path, **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"})
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "host.json").read_text())["figures"]
    assert [row["what"] for row in rows[:3]] == list(host.PASSES)
    for row in rows[:3]:
        assert 8 < row["launches_per_layer"] < 14
        assert row["us_per_layer"] == pytest.approx(row["us_per_launch"] * row["launches_per_layer"])
    places = [("sampling with penalties", *place) for place in host.PENALTIES] + [
        ("inputs", *place) for place in host.INPUTS
    ]
    assert [(row["what"], row["sequences"], row["tokens"]) for row in rows[3:]] == [
        (what, count, min(600, tokens)) for what, count, tokens in places
    ]
    assert all(row["ms"] >= 0 for row in rows[3:]) and len(done.stdout.splitlines()) == len(rows) + 1


@pytest.mark.slow
def test_the_interpreter_is_refused(tmp_path):
    done = start(tmp_path, **os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 2 and done.stderr.startswith("error: host times Triton's own launcher")


def test_sequences_end_with_an_answer():
    (item,) = host.scheduled([1], 2000).work
    assert (item.start, item.num_tokens, item.is_decode) == (2000, 1, True)
    assert len(item.sequence.token_ids) == 2001 and item.sequence.prompt_length == 2001 - host.ANSWER
    assert len(item.sequence.blocks) == 126 == len(set(item.sequence.blocks))
