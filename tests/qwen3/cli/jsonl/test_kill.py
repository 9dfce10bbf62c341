"""A batch in a process of its own, killed at random moments and resumed, ends with the answers of one that lived."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

LINES = [
    {"prompt": f"word {i}", "id": i, "max_new_tokens": 40 + 5 * (i % 9)}
    | ({"temperature": 0} if i % 2 else {"temperature": 1.0, "seed": i})
    for i in range(200)
]


@pytest.fixture
def start(folder, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))

    def start(*arguments):
        command = [sys.executable, "-m", "qwen3", "generate", "--prompts-file", "in.jsonl", "--repo_id", str(folder)]
        return subprocess.Popen(
            [*command, "--dtype", "float32", "--max-num-seqs", "4", "--output", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A process in the background ignores Ctrl-C, and so do the processes that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def entries(path):
    return path.read_bytes().count(b'\n{"line"') if path.exists() else 0


def test_killed_at_ten_random_moments(start, tmp_path):
    process = start("whole.jsonl")
    assert process.wait(300) == 0, process.stderr.read()
    chance, kills, journal = random.Random(0), 0, tmp_path / "out.jsonl.journal"
    for number in [signal.SIGKILL] * 10 + [signal.SIGTERM, signal.SIGINT]:
        had = entries(journal)
        process = start("out.jsonl", "--resume")
        while process.poll() is None and entries(journal) < had + chance.randint(1, 3):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        kills += process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        assert entries(journal) > had and b"Traceback" not in err
        assert not (tmp_path / "out.jsonl").exists()
    assert kills == 12
    process = start("out.jsonl", "--resume")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and b"answers are there already" in err
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]


def test_two_runs_with_one_output(start, tmp_path):
    first = start("out.jsonl")
    while first.poll() is None and not entries(tmp_path / "out.jsonl.journal"):
        time.sleep(0.002)
    second = start("out.jsonl", "--resume")
    _, err = second.communicate(timeout=300)
    assert (second.returncode == 2 and b"another run" in err) or first.poll() is not None
    assert first.wait(300) == 0
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == len(LINES)
