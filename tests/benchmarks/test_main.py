"""The runner: the questions it lists, imports and refuses."""

import argparse
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as runner
from benchmarks.common import REPOSITORY, Answer

TRANSFORMERS_NEEDED = ("generate", "load")


def test_help_lists_every_question_and_imports_none():
    code = "import sys\nfrom benchmarks.__main__ import main\ntry: main([])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in sys.modules if m.startswith(('transformers', 'matplotlib', 'benchmarks.'))))"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "['benchmarks.__main__', 'benchmarks.common', 'benchmarks.provenance']"
    for name in runner.MODULES:
        assert any(line.split()[:1] == [name] for line in out.splitlines())


@pytest.mark.parametrize("name", runner.MODULES)
def test_help_of_a_question(name, capsys):
    if name in TRANSFORMERS_NEEDED:
        pytest.importorskip("transformers")
    if name == "report":
        pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as exit_:
        runner.main([name, "--help"])
    assert exit_.value.code == 0 and f"usage: python -m benchmarks {name}" in capsys.readouterr().out


def test_an_unknown_question_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        runner.main(["fast"])
    out, err = capsys.readouterr()
    assert exit_.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_an_error_that_the_user_can_fix_is_one_line(capsys, tmp_path):
    assert runner.main(["experts", "--output", str(tmp_path), "--model", "no/such-model"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_missing_library_is_named(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")

    monkeypatch.setattr(runner, "import_module", missing)
    assert runner.main(["report"]) == 2
    assert capsys.readouterr().err == (
        "error: report needs matplotlib, which is not installed: pip install matplotlib\n"
    )


def test_the_record_goes_to_the_folder_that_is_named(capsys, tmp_path):
    assert runner.main(["fits", "--output", str(tmp_path / "new")]) == 0
    path = tmp_path / "new" / "fits.json"
    record = json.loads(path.read_text())
    assert record["name"] == "fits" and record["question"].startswith("Which model fits which card")
    assert set(record["settings"]) == {"dtype", "memory_utilization"} and len(record["figures"]) == 15
    assert capsys.readouterr().out.splitlines()[-1] == f"written to {path}"


def test_a_folder_that_cannot_be_made_is_refused_before_the_measurement(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert runner.main(["fits", "--output", str(tmp_path / "file")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: --output ") and err.count("\n") == 1


def test_an_answer_outside_the_contract_is_saved_and_exits_with_1(tmp_path):
    answer = Answer({"device": "cpu"}, [], within=False, name="other")
    question = SimpleNamespace(__name__="benchmarks.contract", run=lambda args: answer, __doc__="How?\n\nSo.")
    assert runner.ask("some", question, argparse.Namespace(output=tmp_path)) == 1
    assert json.loads((tmp_path / "other.json").read_text())["question"] == "How?"
