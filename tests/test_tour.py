"""The tour runs from its first cell to its last, and is committed as it ran."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "notebooks" / "tour.ipynb"
# Runs the code cells in one namespace, as a kernel would, and names the cell that fails.
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
"""


def run(notebook: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", RUNNER, str(notebook)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def cells() -> list[dict]:
    return json.loads(TOUR.read_text(encoding="utf-8"))["cells"]


@pytest.mark.slow
def test_every_cell_runs():
    pytest.importorskip("matplotlib", reason="the tour draws with matplotlib, which is not installed")
    finished = run(TOUR)
    assert finished.returncode == 0, finished.stderr


def test_a_cell_that_raises_is_noticed(tmp_path):
    notebook = tmp_path / "broken.ipynb"
    broken = [{"cell_type": "code", "source": [line]} for line in ("x = 1", "assert x == 2")]
    notebook.write_text(json.dumps({"cells": broken}))
    finished = run(notebook)
    assert finished.returncode == 1 and 'File "cell 1"' in finished.stderr


def test_the_committed_outputs_are_of_one_run_in_order():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert all(output["name"] == "stdout" for output in outputs if output["output_type"] == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6


def test_every_part_makes_a_claim():
    claims = []
    for cell in cells():
        if cell["cell_type"] == "markdown" and cell["source"][0].startswith("## "):
            claims.append(0)
        elif cell["cell_type"] == "code" and claims:
            claims[-1] += "assert" in "".join(cell["source"])
    assert len(claims) == 9 and all(claims)


def test_no_time_stamps_and_no_large_pictures_are_committed():
    assert all(cell["metadata"] == {} for cell in cells())
    assert TOUR.stat().st_size < 600_000
