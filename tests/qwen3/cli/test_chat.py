"""`qwen3 chat` on a terminal, and Ctrl-C where no answer runs."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import pytest

from qwen3 import LLM, Qwen3Error
from qwen3.cli import interrupt

from .conftest import TEMPLATE
from .test_streams import Full, Terminal
from .test_wiring import Pieces


@pytest.fixture
def typed(run, talker, monkeypatch):
    """Runs a chat on a terminal in which `lines` are typed and the model writes `pieces` -> (code, what is shown)."""

    def typed(lines, pieces, *words):
        out = Terminal()
        left = iter(lines)
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr("builtins.input", lambda shown: next(left, None) or (_ for _ in ()).throw(EOFError))
        monkeypatch.setattr(LLM, "stream", lambda self, ids, params: Pieces(pieces))
        return run("chat", "-m", talker, *words)[0], out.getvalue()

    return typed


@pytest.mark.parametrize("no_color", ["", "1"])
def test_thinking_is_dimmed_and_foreign_escapes_are_shown(typed, monkeypatch, no_color):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    code, out = typed(["hi"], ["<think>", "a\x1b[31m", "</think>\n", "b"])
    dim, plain = ("", "") if no_color else ("\x1b[2m", "\x1b[0m")
    assert code == 0 and out == f"{dim}<think>a^[[31m</think>{plain}\nb{plain}\n"


def test_reasoning_that_was_cut_is_closed_in_the_history(run, talker, monkeypatch):
    prompts = []
    text = iter(["<think>a", "<think>a</think>b", "c"])

    def stream(self, ids, params):
        prompts.append(self.tokenizer.decode(ids))
        return Pieces([next(text)])

    monkeypatch.setattr(LLM, "stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n3\n"))
    assert run("chat", "-m", talker)[0] == 0
    assert prompts[1] == "[user]1[assistant]<think>a\n</think>\n\n[user]2[assistant]"
    assert prompts[2].endswith("[assistant]<think>a</think>b[user]3[assistant]")


class BrokenOff(Pieces):
    """A stream that ends with an error."""

    def __init__(self, pieces, error):
        super().__init__(pieces)
        self.error = error

    def __iter__(self):
        yield from super().__iter__()
        raise self.error


def test_a_turn_that_failed_is_not_in_the_history_and_one_that_was_stopped_is(run, talker, monkeypatch):
    prompts = []
    answers = iter([BrokenOff(["a"], KeyboardInterrupt()), BrokenOff(["b"], Qwen3Error("no")), Pieces(["c"])])

    def stream(self, ids, params):
        prompts.append(self.tokenizer.decode(ids))
        return next(answers)

    monkeypatch.setattr(LLM, "stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n2\n3\n/quit\n4\n"))
    code, out, err = run("chat", "-m", talker)
    assert code == 0 and out == "a\nb\nc\n" and err.count(" (stopped)") == 1 and err.count("error: no (/reset") == 1
    assert prompts[1:] == ["[user]1[assistant]a[user]2[assistant]", "[user]1[assistant]a[user]3[assistant]"]


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_statistics_follow_the_last_answer(run, talker, monkeypatch, command):
    monkeypatch.setattr("qwen3.cli.model.copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    code, _, err = run(command, "-m", talker, "-n", 2, "--stats")
    assert code == 0 and "time to first token" in err and " of the copy bandwidth" in err.splitlines()[-1]


def test_every_piece_is_shown_at_once_and_an_error_begins_a_line(run, talker, monkeypatch):
    seen = []

    class Out(io.StringIO):
        def flush(self):
            seen.append(self.getvalue())

    def pieces(*arguments):
        class Streamed(BrokenOff):
            def __iter__(self):
                for piece in super().__iter__():
                    yield piece
                    seen.append("next")

        return Streamed(["a", "b"], Qwen3Error("no"))

    out = Out()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(LLM, "stream", pieces)
    assert run("generate", "x", "-m", talker)[0] == 2
    assert out.getvalue() == "ab\n"
    assert seen.index("a") < seen.index("next") < seen.index("ab") and seen.count("next") == 2


def test_stdin_that_is_no_conversation(run, talker, monkeypatch):
    monkeypatch.setattr("qwen3.cli.chat._MAX_LINE", 100)
    for data, said in ((b"a\xff\n", "is not text"), (b"x" * 101 + b"\n", "a line of more than 100")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code, out, err = run("chat", "-m", talker)
        assert code == 2 and out == "" and err.splitlines()[-1].startswith("> error: stdin ")
        assert said in err
    monkeypatch.setattr(sys, "stdin", None)
    assert run("chat", "-m", talker)[0] == 0


def test_a_full_disk_ends_a_chat(run, talker, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(LLM, "stream", lambda self, ids, params: Pieces(["ok"]))
    code, _, err = run("chat", "-m", talker)
    assert (
        code == 2
        and err.count("> ") == 1
        and err.endswith("error: stdout cannot be written (No space left on device)\n")
    )


def test_tiny_cannot_chat_and_a_model_that_can_is_named(run, monkeypatch):
    monkeypatch.setattr(LLM, "__init__", lambda *_, **__: pytest.fail("the weights were read"))
    code, _, err = run("chat", "-m", "tiny")
    assert code == 2 and err.count("\n") == 1 and "qwen3 download Qwen/Qwen3-0.6B" in err


@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)], ids=" ".join)
def test_no_thinking_needs_a_template_with_such_a_switch(run, talker, tmp_path, monkeypatch, command):
    monkeypatch.setattr(LLM, "__init__", lambda *_, **__: pytest.fail("the weights were read"))
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (other / name).symlink_to(talker / name)
    template = other / "chat_template.jinja"
    template.write_text("{{ messages[0].content }}<think>\n")
    code, _, err = run(*command, "-m", other, "--no-thinking")
    assert code == 2 and err.count("\n") == 1 and "no switch for thinking" in err
    template.unlink()
    code, _, err = run(*command, "-m", other, "--no-thinking")
    assert code == 2 and err.count("\n") == 1 and "chat template" in err
    template.write_text(TEMPLATE)
    with pytest.raises(pytest.fail.Exception):
        run(*command, "-m", other, "--no-thinking")


def test_ctrl_c_while_modules_are_imported():
    """In a process of its own, at the import of one module."""
    assert interrupted_at("qwen3.cli.main") == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["argparse", "torch", "torch.nn", "numpy", "tokenizers", "jinja2", "qwen3.llm"])
def test_ctrl_c_while_slow_modules_are_imported(module):
    assert interrupted_at(module) == (130, "")


def interrupted_at(module):
    """Runs an answer, with Ctrl-C at the import of a module -> (exit code, stderr)."""
    program = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['qwen3', 'generate', 'x', '-n', '1', '-m', 'tiny']\n"
        "runpy.run_module('qwen3', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.ends_at_once():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupt.ends_at_once():
        assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_long_line_on_a_terminal_arrives_whole(folder):
    """A terminal by itself cuts a line at 4,095 bytes; 6,000 letters are 6,000 tokens and those of the template."""
    pty = pytest.importorskip("pty")
    pytest.importorskip("readline")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "qwen3", "chat", "-m", str(folder)]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while b"> " not in shown:
        shown += os.read(leader, 4096)
    os.write(leader, b"x" * 6000 + b"\n")
    while b"> " not in shown.partition(b"error: ")[2]:
        shown += os.read(leader, 4096)
    os.write(leader, b"/exit\n")
    with contextlib.suppress(OSError):  # Linux says so when the other side is closed
        while os.read(leader, 4096):
            pass
    assert process.wait(timeout=60) == 0
    os.close(leader)
    assert f"{6000 + len('[user][assistant]')} tokens" in shown.partition(b"error: ")[2].decode()
