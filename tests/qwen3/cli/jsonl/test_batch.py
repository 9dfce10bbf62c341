"""A batch that breaks off anywhere loses no answer, and goes on to the file that an uninterrupted run writes."""

import errno
import json
import os
import resource
import signal
import sys
from dataclasses import replace

import pytest

from qwen3 import LLM, Qwen3Error
from qwen3.cli.jsonl import batch, journal
from qwen3.cli.jsonl.interrupts import Interrupts
from qwen3.cli.jsonl.lines import Line
from qwen3.cli.jsonl.output import Stream

from .conftest import one_line_error

LINES = [
    *({"prompt": f"word {i}", "id": i, "max_new_tokens": 2 + i % 5} for i in range(6)),
    *({"prompt": f"word {i}", "id": i, "temperature": 1.0, "seed": i} for i in range(6, 10)),
    b"{oops",
    {"messages": [{"role": "user", "content": "\u2028é"}], "id": "\ud800"},
]
ANSWERS = len(LINES) - 1
OUT = ("--output", "out.jsonl")
complete = LLM.complete


@pytest.fixture
def whole(run, tmp_path):
    """What an uninterrupted run writes; the folder is empty afterwards."""
    assert run(LINES, *OUT)[0] == 2
    data = (tmp_path / "out.jsonl").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
    (tmp_path / "out.jsonl").unlink()
    return data


def breaking(monkeypatch, after, how):
    """From now on a batch breaks off after some answers: `how` is an exception, or a function to be called."""

    def broken(llm, requests):
        for count, item in enumerate(complete(llm, requests)):
            if count == after:
                if not callable(how):
                    raise how
                how()
            yield item

    monkeypatch.setattr(LLM, "complete", broken)


def kill(number):
    return lambda: os.kill(os.getpid(), number)


def test_the_records(run, records, whole):
    code, out, err = run(LINES)
    assert (code, out) == (2, whole)
    assert err.count("error: ") == 1 and "error: in.jsonl line 11: not JSON" in err
    got = [json.loads(line) for line in whole.splitlines()]
    assert [(r.get("id"), r.get("prompt"), r.get("messages")) for r in got] == [
        *((i, f"word {i}", None) for i in range(10)),
        (None, None, None),
        ("\ud800", None, LINES[-1]["messages"]),
    ]
    assert [r["generated_tokens"] for r in got[:6]] == [2, 3, 4, 5, 6, 2] and got[10]["line"] == 11
    assert got[0].keys() == {"id", "prompt", "text", "finish_reason", "prompt_tokens", "generated_tokens"}


@pytest.mark.parametrize(
    "how, code",
    [
        (KeyboardInterrupt(), 130),
        (kill(signal.SIGINT), 130),
        (kill(signal.SIGTERM), 143),
        (kill(signal.SIGHUP), 129),
        (Qwen3Error("out of memory"), 2),
        (RuntimeError("a defect"), None),
    ],
)
def test_a_batch_that_breaks_off_goes_on_where_it_was(run, tmp_path, monkeypatch, capfdbinary, whole, how, code):
    (tmp_path / "out.jsonl").write_text("old")
    breaking(monkeypatch, 4, how)
    if code is None:
        with pytest.raises(RuntimeError):
            run(LINES, *OUT)
        capfdbinary.readouterr()
    else:
        got, out, err = run(LINES, *OUT)
        assert (got, out) == (code, b"") and "Traceback" not in err
        assert (
            f"4 of {len(LINES)} answers are in {tmp_path}/out.jsonl.journal: run the same command with --resume" in err
        )
    assert (tmp_path / "out.jsonl").read_text() == "old", "until all answers are there"
    kept = [json.loads(line) for line in (tmp_path / "out.jsonl.journal").read_text().splitlines()[1:]]
    assert len(kept) == 4 and all("text" in entry for entry in kept)

    error = one_line_error(run(LINES, *OUT))
    assert "holds 4 answers" in error and "--resume" in error
    asked = []
    monkeypatch.setattr(LLM, "complete", lambda llm, requests: asked.append(len(requests)) or complete(llm, requests))
    got, _, err = run(LINES, *OUT, "--resume")
    assert got == 2 and f"4 of {len(LINES)} answers are there already" in err and asked == [ANSWERS - 4]
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_batch_may_break_off_at_every_answer(run, tmp_path, monkeypatch, whole):
    for after in (0, 1, 2, 3, 1, 0, 2):
        breaking(monkeypatch, after, KeyboardInterrupt())
        assert run(LINES, *OUT, "--resume")[0] == 130
    monkeypatch.setattr(LLM, "complete", complete)
    assert run(LINES, *OUT, "--resume")[0] == 2
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_a_batch_without_an_answer_leaves_nothing(run, tmp_path, monkeypatch):
    breaking(monkeypatch, 0, KeyboardInterrupt())
    code, _, err = run(LINES, *OUT)
    assert code == 130 and "answers are in" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    monkeypatch.setattr(batch, "load_model", lambda args, chats: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert run(LINES, *OUT)[0] == 130 and [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


def test_resume_of_what_has_ended_or_never_begun_starts_anew(run, tmp_path, whole):
    for _ in range(2):
        assert run(LINES, *OUT, "--resume")[0] == 2
        assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_another_file_or_other_options_are_not_resumed(run, tmp_path, monkeypatch, whole):
    breaking(monkeypatch, 4, KeyboardInterrupt())
    assert run(LINES, *OUT)[0] == 130
    before = (tmp_path / "out.jsonl.journal").read_bytes()
    assert "seed None, not 7" in one_line_error(run(None, *OUT, "--resume", "--seed", 7))
    assert "system None, not 's'" in one_line_error(run(None, *OUT, "--resume", "--system", "s"))
    assert "model '" in one_line_error(run(None, *OUT, "--resume", "--repo_id", "tiny"))
    assert "none to a line of this file" in one_line_error(run([{"prompt": "x"}], *OUT, "--resume"))
    assert (tmp_path / "out.jsonl.journal").read_bytes() == before
    monkeypatch.setattr(LLM, "complete", complete)
    code, _, err = run(LINES[1:], *OUT, "--resume")
    answers = whole.splitlines()[1:]
    assert (tmp_path / "out.jsonl").read_bytes().splitlines()[:9] == answers[:9]
    assert code == 2 and ("1 answer to lines that are no longer in in.jsonl" in err) == (b'"id": 0' in before)


def test_a_full_disk_keeps_what_fitted(run, tmp_path, monkeypatch, whole):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        code, out, err = run(LINES, *OUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2 and "out.jsonl.journal: cannot be written" in err.splitlines()[-1] and "Traceback" not in err
    assert "answers are in" in err.splitlines()[-2] and not (tmp_path / "out.jsonl").exists()
    assert (tmp_path / "out.jsonl.journal").read_bytes().count(b'"text"') > 2
    assert run(LINES, *OUT, "--resume")[0] == 2
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_a_disk_that_is_full_at_the_end_costs_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    code, _, err = run(LINES[:3], *OUT)
    assert code == 2 and err.splitlines()[-1].endswith("out.jsonl: cannot be written (No space left)")
    assert "3 of 3 answers are in" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.journal"]
    assert (tmp_path / "out.jsonl").read_text() == "old"
    # What a run that was killed at this point leaves.
    part = json.loads((tmp_path / "out.jsonl.journal").read_text().splitlines()[0])["part"]
    (tmp_path / part).write_text("half")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(batch, "load_model", None)
    assert run(None, *OUT, "--resume")[0] == 0, "no model is needed"
    assert (tmp_path / "out.jsonl").read_text().count("text") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_an_answer_that_broke_off_is_an_error_of_its_line_and_is_asked_again(run, records, monkeypatch, tmp_path):
    def broken(llm, requests):
        for i, done in complete(llm, requests):
            yield i, replace(done, finish_reason="error", error="not finite") if i == 1 else done

    monkeypatch.setattr(LLM, "complete", broken)
    code, _, err = run(LINES[:3], *OUT)
    assert code == 2 and "error: in.jsonl line 2: not finite" in err
    assert [(r["finish_reason"], r.get("error")) for r in records()] == [
        ("length", None), ("error", "not finite"), ("length", None)
    ]  # fmt: skip
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    assert run(LINES[:3], *OUT)[0] == 2
    assert (tmp_path / "out.jsonl.journal").read_bytes().count(b'"text"') == 2


def test_stdin_is_a_prompts_file(run, tmp_path, monkeypatch, whole):
    for options in ((), ("--output", "-"), OUT):
        with open(tmp_path / "in.jsonl") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", file)
            code, out, err = run(None, *options, source="-")
        assert code == 2 and "error: stdin line 11: not JSON" in err
        assert (out or (tmp_path / "out.jsonl").read_bytes()) == whole


def test_a_stream_gets_its_records_in_order_as_soon_as_it_can():
    got = []
    stream = Stream("pipe", got.append, [Line(n, b"") for n in (1, 3, 4, 8)])
    stream.put(1, '{"a": 1}', True)
    assert got == []
    stream.put(0, '{"a": 0}', False)
    assert got == [b'{"a": 0}\n', b'{"a": 1}\n']
    stream.put(3, '{"a": 3}', True)
    assert len(got) == 2
    assert stream.break_off(Interrupts()) == "3 of 4 records were written"
    assert got[2:] == [b'{"a": 3, "line": 8}\n'], "what waited is not lost"


def test_what_stdout_waited_for_is_written_when_a_batch_breaks_off(run, monkeypatch):
    lines = [{"prompt": "a", "max_new_tokens": 60}, b"{oops", *LINES[:4]]
    breaking(monkeypatch, 4, KeyboardInterrupt())
    code, out, err = run(lines)
    got = [json.loads(line) for line in out.splitlines()]
    assert code == 130 and "5 of 6 records were written" in err
    assert [r["line"] for r in got] == [2, 3, 4, 5, 6] and sum("text" in r for r in got) == 4


def test_a_reader_that_has_gone_is_no_success(run, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patch, os.fdopen(write, "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        code, _, err = run(LINES)
    assert code == 141 and len(err.splitlines()) == 2, "the model and the bad line"


def test_a_stdout_that_is_full_or_closed_is_one_line(run, monkeypatch):
    with monkeypatch.context() as patch, open("/dev/full", "w") as stdout:
        patch.setattr(sys, "stdout", stdout)
        code, _, err = run(LINES[:2])
    assert code == 2 and err.splitlines()[-1].startswith("error: stdout: cannot be written (No space left")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        code, _, err = run(LINES[:2], "--output", "-")
        assert code == 2 and "stdout is closed" in err


def test_stdout_of_another_encoding_gets_utf_8(run, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, open(tmp_path / "out.txt", "w", encoding="ascii") as stdout:
        patch.setattr(sys, "stdout", stdout)
        assert run([{"prompt": "語"}])[0] == 0
    assert json.loads((tmp_path / "out.txt").read_bytes())["prompt"] == "語"


def test_another_model_that_lines_ask_for_is_said(run, folder):
    lines = [{"body": {"prompt": "a", "model": name}} for name in ("gpt-5", "gpt-5", folder.name)]
    code, out, err = run(lines)
    assert code == 0 and out.count(b"text") == 3 and err.count("ask for the model") == 1 and "'gpt-5'" in err


def test_signals_wait_for_the_end_of_a_record(monkeypatch):
    done = []
    with Interrupts() as interrupts:

        def write(what, *signals):
            with interrupts.held():
                for number in signals:
                    os.kill(os.getpid(), number)
                done.append(what)

        with pytest.raises(SystemExit, match="143"):
            write("whole", signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            write("never", signal.SIGTERM, signal.SIGINT)
        write("quiet")
    assert done == ["whole", "quiet"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_while_an_answer_is_written_does_not_tear_it(run, tmp_path, monkeypatch, whole):
    write_all = journal.write_all

    def slow(fd, data):
        write_all(fd, data[:10])
        if b'"id": 3' in data:
            os.kill(os.getpid(), signal.SIGINT)
        write_all(fd, data[10:])

    monkeypatch.setattr(journal, "write_all", slow)
    assert run(LINES, *OUT)[0] == 130
    assert (tmp_path / "out.jsonl.journal").read_bytes().endswith(b"}\n")
    assert b'"id": 3' in (tmp_path / "out.jsonl.journal").read_bytes()
    monkeypatch.setattr(journal, "write_all", write_all)
    assert run(LINES, *OUT, "--resume")[0] == 2 and (tmp_path / "out.jsonl").read_bytes() == whole
