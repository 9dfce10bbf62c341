"""The planted mistakes: every list fits the code as it is, and the runner says what became of each mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .mutants.entries import Mutant, problems, read_lists, selected

ROOT = Path(__file__).parent.parent
LISTS = read_lists(ROOT / "tests/mutants")


@pytest.mark.parametrize("name", LISTS)
def test_every_mistake_can_be_planted(name):
    """Code that moves takes its entry with it: `old` stands exactly once, and the tests are there."""
    assert problems(ROOT, LISTS[name]) == []


def test_no_id_stands_in_two_lists():
    ids = [mutant.id for mutants in LISTS.values() for mutant in mutants]
    assert len(ids) == len(set(ids))


def entry(id: str, old: str, new: str, **more) -> dict:
    return {"id": id, "file": "code.py", "old": old, "new": new, "tests": ["tests/test_code.py"], "words": id} | more


@pytest.fixture
def project(tmp_path):
    """A project of one function in a git repository, and a function that runs the runner on it."""
    (tmp_path / "tests/mutants").mkdir(parents=True)
    (tmp_path / "code.py").write_text("def add(a, b, shift=0):\n    return a + b + shift\n")
    (tmp_path / "tests/test_code.py").write_text(
        "import time\nimport pytest\nfrom code_of import add\n\n"
        "def test_add():\n    assert add(1, 2) == 3\n\n"
        "@pytest.mark.slow\ndef test_shift():\n    assert add(1, 2, 3) == 6\n"
    )
    # `code` is a module of the standard library.
    (tmp_path / "code_of.py").write_text("exec(open('code.py').read())\n")
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nmarkers = ['slow: s', 'long: l']\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)

    def run(*entries: dict, arguments: tuple[str, ...] = ()) -> tuple[int, list[str], str]:
        (tmp_path / "tests/mutants/some.json").write_text(json.dumps(entries))
        command = [sys.executable, "-m", "tests.mutants", "--root", str(tmp_path), "--preload", "pytest", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."})
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.slow
def test_a_mistake_that_is_noticed_passes(project):
    code, lines, errors = project(entry("minus", "a + b", "a - b"))
    assert (code, errors) == (0, "")
    control, minus = sorted(lines[:2])
    assert control.startswith("control: some ") and control.rstrip().endswith("passes")
    assert minus.startswith("minus ") and "noticed  FAILED tests/test_code.py::test_add" in minus
    assert lines[2].startswith("1 mistakes in ")


@pytest.mark.slow
def test_what_is_not_as_it_should_be(project):
    """A survivor, one that has a reason and is noticed, and tests that do not run; those before and after go on."""
    code, lines, errors = project(
        entry("survivor", "b + shift", "b - shift"),
        entry("equivalent", "b + shift", "b + shift + 0", survives="adds nothing"),
        entry("reason", "a + b", "a", survives="no reason"),
        entry("slow", "b + shift", "b", slow=True),
        entry("marked", "a + b", "a", tests=["tests/test_code.py::test_shift"]),
        entry("hangs", "return", "while True: pass\n    return", limit=2),
    )
    assert code == 1
    said, _, ids = errors.strip().partition(": ")
    assert said == "not as it should be" and sorted(ids.split(", ")) == ["marked", "reason", "survivor"]
    words = {line.split()[0]: line for line in lines}
    assert "SURVIVES" in words["survivor"] and "survives: adds nothing" in words["equivalent"]
    assert "NOTICED, but has a reason" in words["reason"] and "noticed" in words["slow"]
    assert "no test ran" in words["marked"] and "hung" in words["hangs"]


@pytest.mark.slow
def test_a_test_that_fails_without_a_mistake_is_reported(project, tmp_path):
    (tmp_path / "code.py").write_text("def add(a, b, shift=0):\n    return a - b + shift\n")
    code, lines, errors = project(entry("plus", "a - b", "a * b"))
    assert code == 1 and any("fails without a mistake" in line for line in lines) and "control: some" in errors
    assert (tmp_path / "code.py").read_text().endswith("return a - b + shift\n")


@pytest.mark.slow
def test_a_part_of_the_list(project, tmp_path):
    both = entry("minus", "a + b", "a - b"), entry("times", "a + b", "a * b")
    for arguments in (("--only", "tim*"), ("--only", "times")):
        code, lines, _ = project(*both, arguments=(*arguments, "--no-control"))
        assert code == 0 and [line.split()[0] for line in lines] == ["times", "1"]
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(tmp_path), "add", "code.py", "tests/test_code.py"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-qm", "code"], check=True)
    code, lines, _ = project(*both, arguments=("--changed", "HEAD"))
    assert code == 0 and lines[0].startswith("0 mistakes")
    (tmp_path / "code.py").write_text("def add(a, b, shift=0):\n    return a + b + shift + 0\n")
    _, lines, _ = project(*both, arguments=("--changed", "HEAD", "--no-control"))
    assert lines[-1].startswith("2 mistakes")


def mutant(**changes) -> Mutant:
    return Mutant("m", "code.py", "a + b", "a - b", ["tests/test_code.py::test_add"])._replace(**changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"old": "a * b"}, "0 times, not once"),
        ({"old": "shift", "new": "s"}, "2 times, not once"),
        ({"old": ""}, "0 times, not once"),
        ({"new": "a b"}, "SyntaxError"),
        ({"new": "a + b"}, "changes nothing"),
        ({"tests": []}, "names no tests"),
        ({"file": "gone.py"}, "FileNotFoundError"),
        ({"tests": ["tests/gone.py"]}, "tests/gone.py is not there"),
        ({"tests": ["tests/test_code.py::test_gone[1]"]}, "has no test_gone"),
        ({"tests": ["tests/test_code.py::TestIt::test_add"]}, None),
    ],
)
def test_an_entry_that_does_not_fit_the_code(tmp_path, changes, words):
    (tmp_path / "tests").mkdir()
    (tmp_path / "code.py").write_text("def add(a, b, shift=0):\n    return a + b + shift\n")
    (tmp_path / "tests/test_code.py").write_text("def test_add():\n    pass\n")
    found = problems(tmp_path, [mutant(**changes)])
    assert (found == []) if words is None else (len(found) == 1 and words in found[0])


def test_an_id_twice_is_found(tmp_path):
    assert "m: the id stands twice" in problems(tmp_path, [mutant(), mutant()])


def test_entries_are_chosen_by_list_id_file_and_test():
    lists = {"one": [mutant(), mutant(id="n", file="other.py")], "two": [mutant(id="o")]}
    assert selected(lists, "", None) == lists
    assert selected(lists, "one", None) == {"one": lists["one"]}
    assert selected(lists, "n, o", None) == {"one": [lists["one"][1]], "two": lists["two"]}
    assert selected(lists, "", {"other.py"}) == {"one": [lists["one"][1]]}
    assert selected(lists, "", {"tests/test_code.py"}) == lists
    assert selected(lists, "", {"README.md"}) == {}
