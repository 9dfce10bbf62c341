"""Every value of every option of every command: right, or one line and exit code 2."""

import argparse
import io
import sys

import pytest

from qwen3 import EngineConfig, Qwen3Error
from qwen3.cli import main as cli
from qwen3.cli import model
from qwen3.load import hub

VALUES = [
    "", " ", "x", "-1", "0", "1.5", "nan", "inf", "1e400", "9" * 5000, "\x1b]0;t\x07", "a\nb", "\udcff", "é", "[]",
    "/", ".", "/dev/null", "/dev/full", "\u202ex", "a" * 5000, "~", "~nobody/x", "/proc/self/mem", "1,,2", "1=2=3", "²",
    "null", "\u0661", "--", "-", "%s", "{}", "\\", "true",
]  # fmt: skip


def lines(command: str, values: list[str]) -> list[list[str]]:
    [commands] = [a for a in cli._parser([command])._actions if isinstance(a, argparse._SubParsersAction)]
    found = []
    for action in commands.choices[command]._actions:
        if action.nargs != 0:
            prompt = ["x"] * (command == "generate" and action.dest not in ("text", "prompt", "prompts_file"))
            for value in values:
                words = [f"{action.option_strings[-1]}={value}"] if action.option_strings else ["--", value]
                found.append([command, *words] if words[0] == "--" else [command, *prompt, *words])
    return found


@pytest.fixture
def checked(monkeypatch, tmp_path, capsys):
    """Runs a command up to where a model would be loaded or fetched -> what is wrong with how it ended."""

    def load(folder, progress=False, expert_stats=False, random_weights=False, **options):
        EngineConfig(**options)
        raise Qwen3Error("loaded")

    def download(*arguments, **options):
        raise Qwen3Error("fetched")

    monkeypatch.setattr(model, "LLM", load)
    monkeypatch.setattr("qwen3.llm.LLM", load)
    monkeypatch.setattr(hub, "download", download)
    monkeypatch.setattr(hub, "fetch_description", download)
    monkeypatch.chdir(tmp_path)

    def checked(words):
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        code = cli.main(words)
        err = capsys.readouterr().err
        wrong = code not in (0, 2) or not all(line.isprintable() for line in err.splitlines())
        return wrong or (code == 2 and (not err.startswith("error: ") or err.count("\n") != 1))

    return checked


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_few_values_of_every_option(checked, command):
    values = ["", "-1", "9" * 5000, "\x1b]0;t\x07"]
    assert [words for words in lines(command, values) if checked(words)] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_value_of_every_option(checked, command, tmp_path):
    assert [words for words in lines(command, VALUES) if checked(words)] == []
    assert not list(tmp_path.iterdir()), "no value makes a file before there is an answer"
