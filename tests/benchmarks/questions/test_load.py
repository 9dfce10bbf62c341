"""load: one start of each side, and which starts count as cold."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.common import REPOSITORY, Timing
from benchmarks.questions import load, load_once


def test_both_sides_load_and_give_the_same_token():
    runs = [load_once.main(side, str(REPOSITORY / "qwen3/tiny"), torch.device("cpu")) for side in load.SIDES]
    assert runs[0]["token"] == runs[1]["token"]
    for run in runs:
        assert 0 < run["load_seconds"] < run["total_seconds"]


def test_resident_bytes_are_bytes():
    before = load_once.resident_bytes()
    held = torch.ones(2**24)
    assert 0.8 * held.nbytes < load_once.resident_bytes() - before < 1.5 * held.nbytes


def test_cold_needs_the_file_to_come_from_storage():
    def measured(ours, theirs):
        return {"ours": [{"storage_bytes": ours}], "theirs": [{"storage_bytes": theirs}]}

    assert load.cache_state("cold", measured(100, 101), 100) == "cold"
    assert load.cache_state("cold", measured(100, 10), 100) == "unknown"
    assert load.cache_state("cold", measured(None, 100), 100) == "unknown"
    assert load.cache_state("warm", measured(0, 0), 100) == "warm"


def test_weights_are_on_the_disk_before_they_are_evicted(monkeypatch, tmp_path):
    """Pages that were not written out stay in the cache."""
    (tmp_path / "model.safetensors").write_bytes(b"x")
    calls = []
    monkeypatch.setattr(load.os, "fsync", lambda fd: calls.append("written"))
    monkeypatch.setattr(load.os, "posix_fadvise", lambda fd, start, end, how: calls.append(how), raising=False)
    monkeypatch.setattr(load.os, "POSIX_FADV_DONTNEED", "evicted", raising=False)
    load.drop_from_cache(tmp_path)
    assert calls == ["written", "evicted"]


def test_one_start_on_a_clock_that_stands(monkeypatch):
    """Neither the libraries' memory nor what was read before counts; the first token counts into the total only."""
    clock, read = SimpleNamespace(now=10.0), iter([400, 1000])
    monkeypatch.setattr(load_once.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(load_once, "resident_bytes", lambda: 1000)
    monkeypatch.setattr(load_once, "peak_bytes", lambda device: 1700)
    monkeypatch.setattr(load_once, "storage_bytes", lambda: next(read))

    def prepared(folder, device):
        clock.now += 100

        def first_token():
            clock.now += 3
            return 42

        def load():
            clock.now += 2
            return first_token

        return load

    monkeypatch.setattr(load_once, "ours", prepared)
    assert load_once.main("ours", "m", torch.device("cpu")) == {
        "load_seconds": 2,
        "total_seconds": 5,
        "peak_bytes": 700,
        "storage_bytes": 600,
        "token": 42,
    }


def test_transformers_has_imported_its_model_and_keeps_the_dtype_and_one_row_of_logits(monkeypatch):
    seen = []

    class Library:
        utils = SimpleNamespace(logging=SimpleNamespace(disable_progress_bar=lambda: None))

        __spec__ = None

        def __getattr__(self, name):
            seen.append(name)
            return SimpleNamespace(from_pretrained=lambda folder, **options: seen.append(options) or model)

    def call(tokens, **options):
        seen.append((tokens.tolist(), options))
        return SimpleNamespace(logits=torch.tensor([[[0.0, 1.0]]]))

    model = SimpleNamespace(eval=lambda: call)
    monkeypatch.setitem(sys.modules, "transformers", Library())
    start = load_once.theirs("m", torch.device("cpu"))
    assert seen == ["Qwen3MoeForCausalLM"]
    assert start()() == 1
    assert seen[1:] == ["AutoModelForCausalLM", {"dtype": "auto"}, ([load_once.PROMPT], {"logits_to_keep": 1})]


def test_figures_of_a_side():
    runs = [{"load_seconds": s, "storage_bytes": b, "peak_bytes": p} for s, b, p in ((1, 5, 7), (3, 6, 9), (2, 7, 8))]
    row = load.side_figures("ours", Timing(2.5, 2.0, 3.0), runs)
    assert row == {
        "ours_ms": 2500,
        "ours_min_ms": 2000,
        "ours_max_ms": 3000,
        "ours_load_ms": 2000,
        "ours_peak_bytes": 9,
        "ours_storage_bytes": 6,
    }


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_ratio_and_times_are_those_of_the_processes(monkeypatch, tmp_path, state):
    """Each side's first start is not counted; the turns alternate; a cold start evicts the file first."""
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    times, calls = {"ours": iter([99.0, 1.0, 2.0, 3.0]), "theirs": iter([99.0, 8.0, 4.0, 6.0])}, []

    def process(command, **options):
        side = command[3]
        calls.append(side)
        total = next(times[side])
        run = {
            "total_seconds": total,
            "load_seconds": total / 2,
            "storage_bytes": 100,
            "peak_bytes": 7,
            "token": 3,
        }
        return SimpleNamespace(returncode=0, stdout=json.dumps(run))

    monkeypatch.setattr(load.subprocess, "run", process)
    monkeypatch.setattr(load, "drop_from_cache", lambda folder: calls.append("evicted"))
    row = load.starts(tmp_path, torch.device("cpu"), state, 3)
    assert calls == (["evicted", "ours", "evicted", "theirs"] if state == "cold" else ["ours", "theirs"]) * 4
    assert (row["ours_ms"], row["theirs_ms"], row["ratio"], row["cache"]) == (2000, 6000, 3, state)
    assert (row["ours_load_ms"], row["theirs_load_ms"]) == (1000, 3000)


def test_other_first_tokens_are_refused(monkeypatch, tmp_path):
    def process(command, **options):
        run = {"total_seconds": 1.0, "load_seconds": 0.5, "storage_bytes": 0, "peak_bytes": 7, "token": command[3]}
        return SimpleNamespace(returncode=0, stdout=json.dumps(run))

    monkeypatch.setattr(load.subprocess, "run", process)
    with pytest.raises(RuntimeError, match="first tokens differ"):
        load.starts(tmp_path, torch.device("cpu"), "warm", 1)


@pytest.mark.slow
def test_the_error_of_a_process_is_reported(tmp_path):
    from qwen3 import Qwen3Error

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Qwen3Error, match="ours could not load"):
        load.starts(tmp_path, torch.device("cpu"), "warm", 1)
