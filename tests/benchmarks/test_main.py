"""The runner: what it lists, imports and refuses."""

import subprocess
import sys

import pytest

from benchmarks import __main__ as runner
from benchmarks.common import REPOSITORY

TRANSFORMERS_NEEDED = ("generate", "load")


def test_help_lists_every_question_and_imports_none():
    code = "import sys\nfrom benchmarks.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in sys.modules if m.startswith(('transformers', 'matplotlib', 'benchmarks.'))])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "['benchmarks.__main__']"
    for name in runner.QUESTIONS:
        assert any(line.split()[:1] == [name] for line in out.splitlines())


@pytest.mark.parametrize("name", runner.QUESTIONS)
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


def test_what_the_user_can_mend_is_one_line(capsys):
    assert runner.main(["experts", "--model", "no/such-model"]) == 2
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
