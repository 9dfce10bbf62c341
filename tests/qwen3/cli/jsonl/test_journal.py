"""The journal keeps answers, is locked by one run, resumes only with the same settings, and replaces no other file."""

import json
import os
import re
import resource
import stat
from pathlib import Path

import pytest

from qwen3 import Qwen3Error
from qwen3.cli.jsonl.interrupts import Interrupts
from qwen3.cli.jsonl.journal import Journal
from qwen3.cli.jsonl.lines import Line
from qwen3.cli.jsonl.output import File, open_output

LINES = [Line(n, b'{"prompt": "%d"}' % n) for n in (1, 2, 4, 5)]
SETTINGS = {"model": "m", "temperature": 0.5, "stop": ("a",), "logit_bias": {7: 1.0}}


def record(number):
    return json.dumps({"text": str(number)})


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "out.jsonl.journal")


def write(path, *numbers, settings=SETTINGS):
    journal = Journal(path, settings, False)
    for line in LINES:
        if line.number in numbers:
            journal.append(line, record(line.number))
    journal.close()


def resumed(path, lines=LINES, settings=SETTINGS):
    journal = Journal(path, settings, True)
    journal.close()
    return journal.matched(lines)


def test_answers_are_there_again_and_are_json(path):
    write(path, 4, 1)
    assert resumed(path) == {0: '{"text": "1"}', 2: '{"text": "4"}'}
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()][1:]
    assert [(entry["line"], entry["text"]) for entry in entries] == [(1, "1"), (4, "4")]


def test_a_journal_that_names_another_file_has_it_not_removed(path, tmp_path):
    """Whoever can write here could else have any file of the user's replaced or removed."""
    for part in ("/etc/hosts", "../victim", "victim", ".qwen3-1.part", 7, None):
        Path(path).write_text(json.dumps({"qwen3_journal": 1, "part": part, "settings": {}}) + "\n")
        journal = Journal(path, SETTINGS, False)
        journal.close()
        assert re.fullmatch(r"\.qwen3-[0-9a-f]{16}\.part", os.path.basename(journal.part))
        assert os.path.dirname(journal.part) == str(tmp_path)


def test_a_run_that_resumes_and_answers_nothing_keeps_what_was_answered(path, tmp_path):
    write(path, 1, 4)
    file = File(str(tmp_path / "out.jsonl"), LINES, SETTINGS, True)
    assert file.break_off(None).startswith(f"2 of 4 answers are in {path}: run the same command with --resume")
    assert resumed(path) == {0: '{"text": "1"}', 2: '{"text": "4"}'}


def test_all_is_on_the_disk_before_the_journal_goes_and_the_file_keeps_its_owner(path, tmp_path, monkeypatch):
    calls, out = [], tmp_path / "out.jsonl"
    out.write_text("old")
    file = File(str(out), LINES, SETTINGS, False)
    for i in range(4):
        file.put(i, record(i), True)
    fsync, replace, remove = os.fsync, os.replace, file._journal.remove
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("written") or fsync(fd))
    monkeypatch.setattr(os, "chown", lambda name, uid, gid: calls.append((uid, gid)))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("replaced") or replace(*names))
    monkeypatch.setattr(file._journal, "remove", lambda: calls.append("journal removed") or remove())
    file.finish(Interrupts())
    there = os.stat(out)
    assert calls == ["written", (there.st_uid, there.st_gid), "replaced", "journal removed"]
    assert out.read_text().splitlines() == [record(i) for i in range(4)] and not os.path.exists(path)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = open_output("~/out.jsonl", "in.jsonl", LINES, SETTINGS, False)
    assert os.path.exists(tmp_path / "out.jsonl.journal") and file.break_off(Interrupts()) == ""


def test_without_resume_answers_are_left_alone(path):
    write(path, 1)
    before = Path(path).read_text()
    with pytest.raises(Qwen3Error, match="holds 1 answers .* --resume"):
        Journal(path, SETTINGS, False)
    assert Path(path).read_text() == before
    assert resumed(path, settings=SETTINGS) == {0: '{"text": "1"}'}


def test_a_journal_without_answers_is_begun_anew(path):
    write(path)
    write(path, 2, settings={"model": "other"})
    assert resumed(path, settings={"model": "other"}) == {1: '{"text": "2"}'}


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_what_a_killed_run_left_of_an_entry_is_cut_off(path, cut):
    write(path, 1, 2)
    whole = Path(path).read_bytes()
    os.truncate(path, len(whole) - cut)
    assert resumed(path) == {0: '{"text": "1"}'}
    journal = Journal(path, SETTINGS, True)
    journal.append(LINES[1], '{"text": "2"}')
    journal.close()
    assert Path(path).read_bytes() == whole


def test_the_beginning_of_a_first_line_is_no_foreign_file(path):
    write(path, 1)
    whole = Path(path).read_bytes()
    for cut in (*range(25), *range(25, whole.index(b"\n") + 1, 40)):
        Path(path).write_bytes(whole[:cut])
        write(path, 1)
        assert resumed(path) == {0: '{"text": "1"}'}


def test_an_entry_that_is_damaged_is_left_out(path):
    write(path, 1, 2, 4)
    first, *entries = Path(path).read_bytes().splitlines(keepends=True)
    entries[1] = entries[1].replace(b'"text": ', b"\0" * 8)
    Path(path).write_bytes(first + b"".join(entries))
    assert resumed(path) == {0: '{"text": "1"}', 2: '{"text": "4"}'}


def test_lines_that_moved_keep_their_answers_and_changed_ones_are_asked_again(path):
    write(path, 1, 2, 4)
    moved = [Line(1, b"new"), LINES[2]._replace(number=2), Line(9, b"changed"), LINES[0]]
    assert resumed(path, moved) == {1: '{"text": "4"}', 3: '{"text": "1"}'}


def test_equal_lines_have_an_answer_each(path):
    journal = Journal(path, SETTINGS, False)
    for number in (3, 1):
        journal.append(Line(number, b"{}"), record(number))
    journal.close()
    assert resumed(path, [Line(n, b"{}") for n in (1, 2, 3)]) == {0: '{"text": "1"}', 1: '{"text": "3"}'}


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.6}, {"model": "n"}, {"stop": ()}, {"logit_bias": {8: 1.0}}, {"seed": 5}]
)
def test_other_settings_are_refused_by_name(path, changed):
    write(path, 1)
    before = Path(path).read_text()
    [name] = changed
    with pytest.raises(Qwen3Error, match=f"with {name} .* same options"):
        Journal(path, SETTINGS | changed, True)
    assert Path(path).read_text() == before


@pytest.mark.parametrize("content", [b"mine", b"mine\nand\n", b'{"prompt": "x"}\n', b"\0", b'{"qwen3_journal": 2}'])
def test_other_peoples_files_are_left_as_they_are(path, content):
    Path(path).write_bytes(content)
    for resume in (False, True):
        with pytest.raises(Qwen3Error, match="in the way"):
            Journal(path, SETTINGS, resume)
    assert Path(path).read_bytes() == content


def test_links_pipes_and_folders_are_left_as_they_are(path, tmp_path):
    (tmp_path / "target").write_text("")
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("target", p), lambda p: os.symlink("nowhere", p)):
        make(path)
        with pytest.raises(Qwen3Error, match="no plain file"):
            Journal(path, SETTINGS, True)
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
    assert (tmp_path / "target").read_text() == "" and not (tmp_path / "nowhere").exists()


def test_a_second_run_is_refused_while_the_first_one_lives(path):
    first = Journal(path, SETTINGS, False)
    first.append(LINES[0], '{"text": "1"}')
    for resume in (False, True):
        with pytest.raises(Qwen3Error, match="another run"):
            Journal(path, SETTINGS, resume)
    first.append(LINES[1], '{"text": "2"}')
    first.close()
    assert len(resumed(path)) == 2


def test_whoever_waits_for_a_journal_that_is_removed_gets_a_new_one(path, monkeypatch):
    from qwen3.cli.jsonl import journal as module

    first = Journal(path, SETTINGS, False)
    first.append(LINES[0], '{"text": "1"}')
    flock, removed = module.fcntl.flock, []

    def removed_in_between(fd, how):
        if not removed:
            removed.append(first.remove())
        flock(fd, how)

    monkeypatch.setattr(module.fcntl, "flock", removed_in_between)
    second = Journal(path, SETTINGS, False)
    second.append(LINES[1], '{"text": "2"}')
    second.close()
    assert removed and resumed(path) == {1: '{"text": "2"}'}


def test_a_full_disk_takes_no_answer_that_was_there(path):
    journal = Journal(path, SETTINGS, False)
    journal.append(LINES[0], '{"text": "1"}')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(path) + 20, hard))
    try:
        with pytest.raises(Qwen3Error, match="journal: cannot be written"):
            journal.append(LINES[1], '{"text": "2"}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path(path).read_bytes().endswith(b'"text": "1"}\n'), "nothing of the other"
    journal.append(LINES[2], '{"text": "4"}')
    journal.close()
    assert resumed(path) == {0: '{"text": "1"}', 2: '{"text": "4"}'}


def test_a_record_of_any_depth_is_kept(path):
    journal = Journal(path, SETTINGS, False)
    record = '{"id": ' + "[" * 300 + "]" * 300 + ', "text": "é"}'
    journal.append(LINES[0], record)
    journal.close()
    assert resumed(path) == {0: record}


def test_a_journal_is_as_private_as_it_is_told(path):
    Journal(path, SETTINGS, False, 0o600).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
