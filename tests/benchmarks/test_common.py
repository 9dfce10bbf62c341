"""Turns, records and shapes."""

import gc
import json
import re
import subprocess
import weakref
from types import SimpleNamespace

import pytest
import torch

from benchmarks import common
from qwen3 import Qwen3Error
from qwen3.config.hf import from_hf, model_config
from qwen3.model.footprint import planned_footprint

# The sizes that the model cards publish.
PARAMETERS = {
    "Qwen3-0.6B": (596_049_920, 596_049_920),
    "Qwen3-30B-A3B": (30_532_122_624, 3_353_032_704),
    "Qwen3-235B-A22B": (235_093_634_560, 22_190_763_520),
}


def test_sides_take_turns_and_each_has_its_own_marks():
    calls, values = [], {"ours": iter([3.0, 1.0, 2.0]), "theirs": iter([9.0, 9.0, 6.0])}

    def turn(name):
        calls.append(name)
        return next(values[name])

    times = common.side_by_side({name: lambda name=name: turn(name) for name in values}, 3)
    assert calls == ["ours", "theirs"] * 3
    assert times["ours"] == common.Timing(2.0, 1.0, 3.0) and times["theirs"] == common.Timing(9.0, 6.0, 9.0)
    assert common.milliseconds("ours", times["ours"]) == pytest.approx(
        {"ours_ms": 2000, "ours_min_ms": 1000, "ours_max_ms": 3000}
    )


def test_a_record_says_what_was_measured_and_on_what(tmp_path):
    answer = common.Answer({"device": "cpu", "batch": [1, 8]}, [{"ms": 1.5}])
    path = common.save("some", "How fast?", answer, tmp_path, ["benchmarks.contract"])
    assert path == tmp_path / "some.json" and list(tmp_path.iterdir()) == [path]
    record = common.load_records(tmp_path)["some"]
    assert record["question"] == "How fast?" and record["figures"] == [{"ms": 1.5}]
    assert record["settings"] == {"device": "cpu", "batch": [1, 8]}
    assert "benchmarks/contract.py" in record["sources"] and "qwen3/llm.py" not in record["sources"]
    machine = record["machine"]
    # PyTorch itself adds its build, as in 2.13.0+cu130; the metadata of the package on PyPI does not.
    assert torch.__version__.startswith(machine["torch"])
    assert machine["cpu"] and machine["threads"] == torch.get_num_threads()


def test_the_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(common, "REPOSITORY", tmp_path)
    monkeypatch.setattr(common, "IN_CHECKOUT", True)
    assert common.machine()["commit"] is None
    git("init")
    for name in ("code.py", "README.md", "benchmarks/results/a.json", "benchmarks/plots/a.svg", "benchmarks/README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git("add", "-A")
    git("commit", "-m", "first")
    clean = common.machine()["commit"]
    assert re.fullmatch("[0-9a-f]{40}", clean)
    for name in ("README.md", "benchmarks/results/a.json", "benchmarks/plots/a.svg", "benchmarks/README.md"):
        (tmp_path / name).write_text("2\n")
    assert common.machine()["commit"] == clean
    (tmp_path / "code.py").write_text("2\n")
    assert common.machine()["commit"] == clean + "+"


def test_a_percentile_needs_ten_values_beyond_it():
    for count, marks in ((19, []), (20, ["p50"]), (99, ["p50"]), (100, ["p50", "p90"]), (1000, ["p50", "p90", "p99"])):
        assert list(common.percentiles("x", [1.0] * count)) == [f"x_{mark}_ms" for mark in marks]
    assert common.percentiles("x", [i / 1e3 for i in range(101)]) == pytest.approx({"x_p50_ms": 50, "x_p90_ms": 90})


def test_a_gpu_is_waited_for_before_and_after_a_call(monkeypatch):
    clock, calls = SimpleNamespace(now=0.0), []

    def wait(device):
        calls.append("waited")
        clock.now += 5

    monkeypatch.setattr(common.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(common.torch.cuda, "synchronize", wait)
    assert common.seconds(lambda: calls.append("called"), "cuda") == 5
    assert calls == ["waited", "called", "waited"]
    assert common.seconds(lambda: None, "cpu") == 0


def test_the_memory_of_a_model_that_holds_itself_is_freed():
    class Model:
        def __init__(self):
            self.itself = self

    model = Model()
    reference = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert reference() is not None
        common.release_memory("cpu")
        assert reference() is None
    finally:
        gc.enable()


def test_a_record_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    common.replace(tmp_path / "a.json", "old")

    def fail(source, target):
        raise OSError("no")

    monkeypatch.setattr(common.os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        common.replace(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"


def test_a_gpus_record_leaves_the_cpus_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(common.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(common.torch.cuda, "get_device_name", lambda: "a GPU")
    answers = [common.Answer(settings, []) for settings in ({}, {"device": "cuda:0"}, {"device": "cpu"})]
    names = [common.save("some", "?", answer, tmp_path, []).name for answer in answers]
    assert names == ["some.cuda.json", "some.cuda.json", "some.json"]
    assert common.load_records(tmp_path)["some.cuda"]["machine"]["gpu"] == "a GPU"


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(Qwen3Error, match=r"bad\.json"):
        common.load_records(tmp_path)


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_of_the_real_models(name):
    config = model_config(common.config_folder(name))
    counted = planned_footprint(config, torch.bfloat16)
    assert (counted.parameters, counted.active) == PARAMETERS[name]
    assert config.rope_theta == 1e6 and config.max_positions == 40960
    assert config.eos_token_ids == (151645,) and config.dtype == torch.bfloat16


def test_shapes_are_those_that_the_kernels_are_compiled_for():
    shapes = pytest.importorskip("qwen3_kernels.aot.shapes")
    for name, model in (("Qwen3-30B-A3B", shapes.MODELS["30B"]), ("Qwen3-235B-A22B", shapes.MODELS["235B"])):
        config = model_config(common.config_folder(name))
        assert {field: getattr(config, field) for field in vars(model)} == vars(model)


def test_tiny_shape_is_that_of_the_embedded_model():
    shape = model_config(common.config_folder("tiny-shape"))
    tiny = json.loads((common.REPOSITORY / "qwen3/tiny/config.json").read_text())
    assert planned_footprint(shape, torch.bfloat16) == planned_footprint(from_hf(tiny), torch.bfloat16)


def test_an_unknown_shape_is_refused():
    with pytest.raises(Qwen3Error, match="Qwen3-0.6B.*small.*tiny-shape"):
        common.config_folder("large")
