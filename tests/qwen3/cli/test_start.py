"""Help, version and mistakes in a command's words need no model, and import no PyTorch."""

import importlib
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from qwen3.cli.main import COMMANDS, main
from qwen3.config.engine import EngineConfig

# A mistake and a part of its message.
MISTAKES = [
    ("genrate", "there is no command 'genrate' (did you mean generate?): see `qwen3 --help`"),
    ("xyzzy", "there is no command 'xyzzy': see"),
    ("generate --promt x", "there is no option '--promt' (did you mean --prompt?): see `qwen3 generate --help`"),
    ("generate --promt=x", "did you mean --prompt?"),
    ("generate x --sistem=two words", "did you mean --system?"),
    ("generate x --tempreature 1", "did you mean --temperature?"),
    ("generate x --no-thinkin=", "--no-thinking"),
    ("generate x -q", "there is no option '-q'"),
    ("--model tiny", "there is no option '--model' before the command: see"),
    ("chat --top_q 1", "did you mean --top-k?|did you mean --top-p?"),
    ("-m=tiny generate x", "there is no option '-m' before the command"),
    ("--vrbose generate", "did you mean --verbose?"),
    ("bench --rnd 3", "there is no option '--rnd'"),
    ("generate --repo_id", "expected one argument"),
    ("generate x --stop-token-ids 1,x", "is not a token id"),
    ("generate x --logit-bias 1", "must be token ids with numbers"),
    ("generate x --logit-bias=1:2,1:3", "must be token ids with numbers"),
    ("generate x --logit-bias 1:2 --logit-bias 1:3", "token id 1 is there twice"),
    ("generate x --logit-bias 1:nan", "logit_bias"),
    ("generate x --temperature=warm", "--temperature"),
    ("generate x --temperature=-1", "temperature"),
    ("generate x --top_k=1.5", "--top-k"),
    ("generate x --max-new-tokens=0", "max_new_tokens"),
    ("generate x --stop=", "stop"),
    ("bench --batch=--", "whole numbers"),
    ("generate x y", "put it in quotes"),
    ("generate x --prompt y", "PROMPT and --prompt were given"),
    ("generate x --prompts-file y", "PROMPT and --prompts-file were given"),
    ("generate --prompt x --prompts-file y", "--prompt and --prompts-file were given"),
    ("generate --prompt=", "the prompt is empty"),
    ("generate x --output y", "--output goes with --prompts-file"),
    ("generate \udcff", "PROMPT: is not UTF-8 text"),
    ("generate x --system=\udcff", "--system: is not UTF-8 text"),
    ("generate x --stop=\udcff", "--stop: is not UTF-8 text"),
    ("chat --bad-words=\udcff", "--bad-words: is not UTF-8 text"),
    ("generate x \x1b]0;t\x07 --foo", "--foo"),
    ("\x1b]0;t\x07", "there is no command '\\x1b]0;t\\x07'"),
    ("generate x --\x1b]0;t\x07", "there is no option '--\\x1b]0;t\\x07'"),
    ("generate x y\x1b[2J", "'y\\x1b[2J'"),
    ("bench --batch 0", "whole numbers"),
    ("bench --batch x\x1b", "x\\x1b"),
    ("bench --rounds 0", "--rounds"),
    ("bench --random-weights x -m y", "not allowed with"),
]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr("qwen3.cli.model.LLM", lambda *arguments, **options: pytest.fail("a model was loaded"))
    monkeypatch.setattr("qwen3.llm.LLM", lambda *arguments, **options: pytest.fail("a model was loaded"))


def words(text: str) -> list[str]:
    """The words of a command line; what follows = is one word."""
    before, equals, value = text.partition("=")
    *others, last = before.split() if equals else [*text.split(), ""]
    return [*others, last + equals + value] if equals else others


@pytest.mark.parametrize("text, said", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_one_line(text, said, capsys):
    assert main(words(text)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and err.rstrip("\n").isprintable()
    assert any(part in err for part in said.split("|")), err


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "generate"])
def test_words_that_nothing_takes_are_one_line(capsys, command):
    assert main([command, "a\nb", "c\x1b[2J"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith("error: unrecognized arguments: ")
        and err.count("\n") == 1
        and "c\\x1b[2J" in err
        and err.endswith(f"see `qwen3 {command} --help`\n")
    )


def test_the_command_alone_and_its_help(capsys):
    assert main([]) == 0
    helped = capsys.readouterr().out
    assert all(f"    {name} " in helped for name in COMMANDS)
    assert main(["--help"]) == 0 and capsys.readouterr().out == helped
    assert main(["help"]) == 0 and capsys.readouterr().out == helped
    assert main(["help", "generate"]) == 0 and "usage: qwen3 generate" in capsys.readouterr().out
    assert main(["-v"]) == 0 and capsys.readouterr().out == helped


def test_help_says_what_a_command_does_and_every_default(capsys):
    for command, said in COMMANDS.items():
        assert main(["help", command]) == 0
        helped = " ".join(capsys.readouterr().out.split())
        assert said in helped.replace(f"{said[0].upper()}{said[1:]}.", said), command
        if command in ("generate", "chat"):
            for field in fields(EngineConfig):
                number = type(field.default) in (int, float) and "help" in field.metadata
                assert not number or f"{field.metadata['help']} (default: {field.default})" in helped, field.name
        if command == "bench":
            assert all(f"(default: {value})" in helped for value in ("1,8", "128,1024", 32, 3))


def test_options_may_be_spelled_as_the_fields(capsys):
    for spelled in ("--max_new_tokens", "--max-new-tokens", "--max_new_tokens=0", "-n", "-n0", "--max-tokens"):
        assert main(["generate", "x", spelled, *["0"] * (not spelled.endswith("0"))]) == 2
        assert capsys.readouterr().err.startswith("error: max_new_tokens is 0"), spelled
    for spelled in ("-m", "--model", "--repo_id", "--repo-id"):
        assert main(["generate", "x", spelled, "./nowhere"]) == 2
        assert "no such model: ./nowhere" in capsys.readouterr().err, spelled


def test_the_installed_command_is_there():
    setup = (Path(__file__).parents[3] / "setup.py").read_text(encoding="utf-8")
    [(module, function)] = re.findall(r'"console_scripts": \["qwen3=([\w.]+):(\w+)"\]', setup)
    assert callable(getattr(importlib.import_module(module), function))


def test_no_model_no_pytorch():
    """In a process of its own: what is imported until the first word of a model is needed."""
    lines = [[], ["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
    lines += [words(text) for text, _ in MISTAKES if " -m" not in text and "udc" not in ascii(text)]
    program = (
        "import sys, io; from qwen3.cli.main import main\n"
        "import qwen3; qwen3.SamplingParams(), qwen3.EngineConfig()\n"
        f"for line in {lines!r}:\n"
        "    sys.stdin = io.StringIO(); main(line)\n"
        "    heavy = {'torch', 'numpy', 'tokenizers', 'jinja2', 'huggingface_hub', 'safetensors', 'tqdm', 'asyncio'}\n"
        "    assert not heavy & sys.modules.keys(), (line, heavy & sys.modules.keys())\n"
        "assert 'LLM' in dir(qwen3)\n"
        "from qwen3 import LLM, Completion\n"
        "assert 'torch' in sys.modules, 'the check sees PyTorch'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
