"""Where records go: files are replaced whole, links followed, pipes and devices written to, others left alone."""

import os
import re
import socket
import stat
import sys
import threading

import pytest

from qwen3.cli.main import main

from .conftest import one_line_error

LINES = [{"prompt": "a"}, {"prompt": "b", "max_new_tokens": 2}]


@pytest.fixture
def place(tmp_path):
    """The folder's files, which must be the same after a refusal."""
    return lambda: {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.name != "in.jsonl"}


def test_stdout_is_what_a_file_gets(run, tmp_path, records, place):
    code, out, err = run(LINES)
    assert code == 0 and out.count(b"\n") == 2
    assert run(LINES, "--output", "-")[1] == out
    assert run(LINES, "--output", "out.jsonl")[:2] == (0, b"")
    assert place() == {"out.jsonl": out}
    assert [record["generated_tokens"] for record in records()] == [4, 2]


@pytest.mark.parametrize("target", ["old", None])
def test_a_link_is_followed(run, tmp_path, target):
    (tmp_path / "results").mkdir()
    if target:
        (tmp_path / "results/target.jsonl").write_text(target)
    (tmp_path / "link.jsonl").symlink_to("results/target.jsonl")
    assert run(LINES, "--output", "link.jsonl")[0] == 0
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "results/target.jsonl").read_text().count("text") == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in.jsonl", "link.jsonl", "results", "target.jsonl"]


def test_other_names_and_the_permissions_of_a_file_are_kept(run, tmp_path):
    (tmp_path / "a.jsonl").write_text("old" * 1000)
    os.chmod(tmp_path / "a.jsonl", 0o640)
    assert run(LINES, "--output", "a.jsonl")[0] == 0
    assert stat.S_IMODE(os.stat(tmp_path / "a.jsonl").st_mode) == 0o640
    os.link(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    (tmp_path / "a.jsonl").write_text("old" * 1000)
    assert run(LINES, "--output", "a.jsonl")[0] == 0
    assert (tmp_path / "b.jsonl").read_text() == (tmp_path / "a.jsonl").read_text()
    assert (tmp_path / "b.jsonl").read_text().count("text") == 2 and "old" not in (tmp_path / "b.jsonl").read_text()


def test_a_pipe_and_a_device_are_written_to(run, tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert run(LINES, "--output", "pipe")[0] == 0
    reader.join(60)
    assert got == [run(LINES)[1]] and (tmp_path / "pipe").is_fifo()
    assert run(LINES, "--output", "/dev/null")[0] == 0 and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert place() == {}


def test_an_open_descriptor_is_written_to(run, tmp_path, capfdbinary):
    out = run(LINES)[1]
    (tmp_path / "log").write_text("before\n")
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    assert run(LINES, "--output", f"/dev/fd/{fd}")[0] == 0
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"before\n" + out
    assert run(LINES, "--output", "/dev/stdout")[1] == out


@pytest.mark.parametrize(
    "output, why",
    [
        ("", "is empty"),
        (".", "folder"),
        ("/", "folder"),
        ("..", "folder"),
        ("new/", "folder"),
        ("nowhere/out.jsonl", "nowhere/out.jsonl.*No such file"),
        ("in.jsonl", "prompts file itself"),
        ("hard.jsonl", "prompts file itself"),
        ("soft.jsonl", "prompts file itself"),
        ("in.jsonl/x", "Not a directory"),
        ("loop", "symbolic links"),
        ("socket", "cannot be written"),
        ("x" * 300, "too long"),
        ("a\0b", "null"),
        ("taken.jsonl", "taken.jsonl.journal: is in the way"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch, output, why, place):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    os.link(tmp_path / "in.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to("in.jsonl")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "taken.jsonl.journal").write_text("a diary\n")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
    before = place()
    monkeypatch.setattr("qwen3.cli.jsonl.batch.load_model", None)
    assert re.search(why, one_line_error(run(None, "--output", output)))
    assert place() == before


@pytest.mark.parametrize("option", ["--output", "--expert-stats"])
def test_a_file_of_the_model_is_not_replaced(run, folder, tmp_path, monkeypatch, option):
    (tmp_path / "own.json").symlink_to(folder / "config.json")
    monkeypatch.setattr("qwen3.cli.model.LLM", None)
    for path in (
        folder / "generation_config.json",
        "own.json",
        *[folder / "model.safetensors"][: option == "--output"],
    ):
        before = (tmp_path / path).read_bytes()
        assert "is a file of the model" in one_line_error(run(LINES, option, path))
        assert (tmp_path / path).read_bytes() == before and not (folder / f"{path}.journal").exists()


def test_expert_statistics_that_cannot_be_written_are_refused_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    for name in ("folder.json", "picture.png"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    monkeypatch.setattr("qwen3.cli.model.LLM", None)
    for name in ("folder.json", "picture.json", "pipe.json"):
        assert "no file that can be written" in one_line_error(run(LINES, "--expert-stats", name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written_is_not_replaced(run, tmp_path):
    (tmp_path / "out.jsonl").write_text("old")
    os.chmod(tmp_path / "out.jsonl", 0o444)
    assert "Permission denied" in one_line_error(run(LINES, "--output", "out.jsonl"))


def test_permissions_are_asked_for(run, tmp_path, monkeypatch):
    (tmp_path / "out.jsonl").write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == "out.jsonl" and mode == os.W_OK))
    assert "out.jsonl: cannot be written (Permission denied)" in one_line_error(run(LINES, "--output", "out.jsonl"))
    assert (tmp_path / "out.jsonl").read_text() == "old"


def test_stdin_that_is_the_output_is_refused(run, tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    before = os.dup(0)
    with open(tmp_path / "in.jsonl") as file, monkeypatch.context() as patch:
        os.dup2(file.fileno(), 0)
        patch.setattr(sys, "stdin", file)
        try:
            assert "prompts file itself" in one_line_error(run(None, "--output", "in.jsonl", source="-"))
        finally:
            os.dup2(before, 0)
            os.close(before)


@pytest.mark.parametrize("arguments", [(), ("--output", "-"), ("--output", "pipe"), ("--output", "/dev/null")])
def test_what_keeps_no_answers_cannot_be_resumed(run, tmp_path, arguments):
    os.mkfifo(tmp_path / "pipe")
    assert "--resume needs an --output that is a file" in one_line_error(run(LINES, "--resume", *arguments))


def test_output_and_resume_need_a_prompts_file(capsys):
    for option in (["--output", ""], ["--output", "x"], ["--resume"]):
        assert main(["generate", "--prompt", "x", *option]) == 2
        assert f"{option[0]} goes with --prompts-file" in capsys.readouterr().err


def test_a_full_device_is_one_line(run):
    code, out, err = run(LINES, "--output", "/dev/full")
    assert code == 2 and err.splitlines()[-1].startswith("error: /dev/full: cannot be written (No space left")
    assert "Traceback" not in err
