"""The copy bandwidth is measured once for a machine and taken from its record by every question."""

import json

import pytest
import torch

from benchmarks import common
from benchmarks.questions import bandwidth

CPU = torch.device("cpu")


@pytest.fixture
def speeds(monkeypatch):
    values = [3.0, 1.0, 9.0, 2.0, 4.0, 30.0, 10.0, 90.0, 20.0, 40.0]
    monkeypatch.setattr(bandwidth, "copy_bandwidth", lambda device: values.pop(0))
    return values


def test_measured_once_for_a_machine(speeds, tmp_path):
    assert bandwidth.bytes_per_second(CPU, tmp_path) == 3.0
    assert bandwidth.bytes_per_second(CPU, tmp_path) == 3.0 and len(speeds) == 5
    record = json.loads((tmp_path / "bandwidth.json").read_text())
    assert record["figures"] == [{"bytes_per_second": 3.0, "min_bytes_per_second": 1.0, "max_bytes_per_second": 9.0}]
    assert "qwen3/measure/roofline.py" in record["sources"]


@pytest.mark.parametrize("key", bandwidth.SAME)
def test_measured_again_on_another_machine(speeds, tmp_path, monkeypatch, key):
    monkeypatch.setattr(common, "sources", lambda modules, root: {})
    bandwidth.bytes_per_second(CPU, tmp_path)
    path = tmp_path / "bandwidth.json"
    record = json.loads(path.read_text())
    record["machine"][key] = "another"
    path.write_text(json.dumps(record))
    assert bandwidth.bytes_per_second(CPU, tmp_path) == 30.0
    assert json.loads(path.read_text())["machine"][key] != "another"
