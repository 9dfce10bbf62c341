"""Standard streams that are closed, full or narrow, and text that would steer a terminal."""

import io
import os
import subprocess
import sys
import unicodedata

import pytest

from qwen3 import Qwen3Error
from qwen3.cli import streams
from qwen3.cli.main import COMMANDS, main

TURNS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
# ESC and its 8-bit form begin escape sequences; BEL and the 8-bit ST end one.
ATTACK = "\x1b]0;title\x07 \x9b31m \x9d52;c;aGk=\x9c \x08\r\x7f \u202egnp.exe"


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Full(io.StringIO):
    """A stream on a full disk: what is written is refused when the buffer is written out."""

    def flush(self):
        if self.getvalue():
            raise OSError(28, "No space left on device")


def with_streams(monkeypatch, arguments, **replaced):
    """Runs a command with other standard streams; returns its exit code."""
    with monkeypatch.context() as patch:
        for name, stream in replaced.items():
            patch.setattr(sys, name, stream)
        return main(list(map(str, arguments)))


def controls(text):
    return {c for c in text if unicodedata.category(c) == "Cc" or ord(c) in TURNS}


def test_a_terminal_gets_no_control_character_but_line_ends_and_tabs():
    every = "".join(chr(i) for i in range(0x3000))
    assert len(controls(every)) == 65 + len(TURNS)
    for stream in (streams.Output(Terminal()), streams.Messages(Terminal()), streams.Messages(io.StringIO())):
        stream.write(every)
        allowed = {"\n", "\t"} | ({"\r"} if isinstance(stream, streams.Messages) else set())
        assert controls(stream.getvalue()) == allowed
        assert stream.getvalue().replace("^@", "").count("^[") == 1
        assert "é" in stream.getvalue() and "\u200d" in stream.getvalue(), "letters and joiners are as they are"


def test_a_pipe_gets_every_character():
    stream = io.StringIO()
    streams.Output(stream).write(ATTACK)
    assert stream.getvalue() == ATTACK


def test_only_our_own_escapes_reach_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for environment, stream, coloured in (
        ({}, Terminal(), True),
        ({"NO_COLOR": ""}, Terminal(), True),
        ({"NO_COLOR": "1"}, Terminal(), False),
        ({"TERM": "dumb"}, Terminal(), False),
        ({}, io.StringIO(), False),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdout", stream)
            with streams.guarded():
                streams.style("\x1b[2m")
                print("a\x1bb")
        assert stream.getvalue() == "\x1b[2m" * coloured + ("a^[b\n" if stream.isatty() else "a\x1bb\n"), environment


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "gbk", "latin-1", "utf-8", "utf-16"])
def test_a_character_that_the_stream_lacks_is_replaced(monkeypatch, encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    with streams.guarded():
        print("a\ufffd\U0001f600\ud800é", end="")
    assert raw.getvalue().decode(encoding).startswith("a") and raw.getvalue().decode(encoding).count("?") >= 1
    assert stream.errors == "strict" and sys.stdout is stream, "the stream is left as it was"


COMMAND_HELPS = [("--help",), ("--version",), (), *((name, "--help") for name in COMMANDS)]


@pytest.mark.parametrize("arguments", COMMAND_HELPS, ids=" ".join)
def test_what_stdout_does_not_take_is_one_line(monkeypatch, arguments):
    for stdout, why in ((None, "closed"), (Full(), "No space left")):
        err = io.StringIO()
        assert with_streams(monkeypatch, arguments, stdout=stdout, stderr=err) == 2
        assert err.getvalue().startswith("error: stdout ") and why in err.getvalue()
        assert err.getvalue().count("\n") == 1
    assert with_streams(monkeypatch, arguments, stdout=io.StringIO()) == 0


class Broken(io.StringIO):
    """A stream that refuses at once, as one without a buffer does."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


STDERRS = {
    "closed": None,
    "full": Full(),
    "broken": Broken(OSError(28, "No space")),
    "no file": Broken(ValueError("closed")),
}


@pytest.mark.parametrize("stderr", STDERRS.values(), ids=STDERRS)
def test_without_stderr_the_exit_code_is_the_same(monkeypatch, talker, stderr):
    assert with_streams(monkeypatch, ["generate", "--prompt", ""], stderr=stderr) == 2
    assert with_streams(monkeypatch, ["generate", "--colour", "x"], stderr=stderr) == 2
    out = io.StringIO()
    answer = ["generate", "--prompt", "def f(", "-n", "2", "-m", "tiny", "--temperature", "0", "-v"]
    assert with_streams(monkeypatch, answer, stdout=out, stderr=stderr) == 0 and out.getvalue().strip()
    chat = ["chat", "-m", talker]
    assert with_streams(monkeypatch, chat, stdin=io.StringIO(), stdout=io.StringIO(), stderr=stderr) == 0


@pytest.mark.parametrize(
    "error, said",
    [
        (
            ImportError("libcuda.so.1: no such file\n..."),
            "a module cannot be imported (ImportError: libcuda.so.1: no such file",
        ),
        (PermissionError(13, "Permission denied", "x\x1b"), "PermissionError: [Errno 13] Permission denied: 'x\\x1b'"),
        (MemoryError(), "out of memory"),
        (Qwen3Error("two\nlines"), "two\\nlines"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, said):
    def run(args):
        raise error

    monkeypatch.setattr("qwen3.cli.list.run", run)
    assert main(["list"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_reader_that_went_away_ends_a_command_silently(monkeypatch, capsys):
    monkeypatch.setattr("qwen3.cli.list.run", lambda args: print("a model") or 0)
    for stdout in (Broken(BrokenPipeError()), io.StringIO()):
        err = io.StringIO()
        assert with_streams(monkeypatch, ["list"], stdout=stdout, stderr=err) == 0 and err.getvalue() == ""


def test_a_closed_stream_can_be_looked_at():
    """As libraries do that want to know what they write to."""
    for stream in (streams.Output(None), streams.Messages(None)):
        assert stream.encoding == "utf-8" and not stream.isatty() and not hasattr(stream, "buffer")
        with pytest.raises((OSError, ValueError)):
            stream.fileno()
    text = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    for stream in (streams.Output(text), streams.Messages(text)):
        assert stream.encoding == "ascii" and stream.buffer is text.buffer


def test_a_closed_stdout_is_seen_before_the_model_is_loaded(monkeypatch):
    from qwen3.cli import model

    monkeypatch.setattr(model, "LLM", lambda *arguments, **options: pytest.fail("the model was loaded"))
    batch = ["generate", "--prompts-file", "in.jsonl"]
    for arguments in (["generate", "--prompt", "x"], ["chat"], batch, [*batch, "--output", "-"]):
        assert with_streams(monkeypatch, [*arguments, "-m", "tiny"], stdout=None) == 2


@pytest.mark.slow
def test_streams_of_a_process(tmp_path):
    """Closed and full descriptors: the exit code, one line on stderr if it is there, and no complaint at exit."""
    answer = f"{sys.executable} -m qwen3 generate 'def f(' -m tiny -n 2 --temperature 0"
    for redirection, code in (
        (">&-", 2), (">/dev/full", 2), ("2>&-", 0), ("2>/dev/full", 0), ("<&-", 0), ("<&- >&- 2>&-", 2),
        (">/dev/full 2>/dev/full", 2),
    ):  # fmt: skip
        done = subprocess.run(["bash", "-c", f"{answer} {redirection}"], capture_output=True, text=True, timeout=120)
        errors = [line for line in done.stderr.splitlines() if " · " not in line and "stopped" not in line]
        assert done.returncode == code, (redirection, done)
        assert [line[:7] for line in errors] == ["error: "] * (code == 2 and "2>" not in redirection), redirection


@pytest.mark.slow
def test_a_terminal_and_a_model_that_writes_escapes(tmp_path, small):
    """The whole program on a terminal of its own."""
    program = (
        "import sys; from qwen3.text.stream import IncrementalDecoder; from qwen3.cli.main import main\n"
        f"IncrementalDecoder.push = lambda self, token_id: {ATTACK!r}\n"
        f"sys.exit(main(['generate', 'x', '-n', '2', '--raw', '-m', {str(small)!r}]))"
    )
    out = run_on_a_terminal([sys.executable, "-c", program])
    assert controls(out) <= {"\n", "\r"} and "^[]0;title^G" in out


def run_on_a_terminal(command, **settings):
    leader, follower = pytest.importorskip("pty").openpty()
    process = subprocess.Popen(command, stdout=follower, stderr=follower, stdin=follower, **settings)
    os.close(follower)
    data = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not piece:
            break
        data += piece
    os.close(leader)
    assert process.wait(timeout=120) == 0, data
    return data.decode("utf-8", "replace")
