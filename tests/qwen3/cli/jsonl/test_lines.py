"""Prompts files as people have them are read; what a line holds costs at most that line."""

import gzip
import io
import json
import math
import os
import sys
import threading

import pytest

from qwen3 import Qwen3Error
from qwen3.cli.jsonl import lines
from qwen3.cli.jsonl.lines import joined, parse, read_lines, to_json


def read(tmp_path, data):
    (tmp_path / "in.jsonl").write_bytes(data)
    return [(line.number, line.data) for line in read_lines(str(tmp_path / "in.jsonl"))]


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n\n{"b": 2}\n',
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"b": 2}\r\n',
        b'{"a": 1}\r\r{"b": 2}',
        b'{"a": 1}\n \t\n\xef\xbb\xbf{"b": 2}',
        '{"a": 1}\r\n\r\n{"b": 2}'.encode("utf-16"),
        b"\xfe\xff" + '{"a": 1}\n\n{"b": 2}'.encode("utf-16-be"),
    ],
)
def test_marks_and_line_ends_of_every_system(tmp_path, data):
    assert read(tmp_path, data) == [(1, b'{"a": 1}'), (3, b'{"b": 2}')]


def test_a_line_of_bytes_that_are_no_text_is_a_line(tmp_path):
    assert read(tmp_path, b'\xff\n{"a": "\xe2\x80\xa8"}\n') == [(1, b"\xff"), (2, b'{"a": "\xe2\x80\xa8"}')]
    assert parse(b'{"a": "\xe2\x80\xa8"}') == {"a": "\u2028"}


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf\n", b"\xff\xfe", b"\xff\xfea"])
def test_a_file_without_lines_is_refused(tmp_path, data):
    with pytest.raises(Qwen3Error, match="in.jsonl: (no prompts|is not UTF-16)"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    "data, why",
    [
        (b'[{"prompt": "a"},\n {"prompt": "b"}]\n', r"is a JSON list, .* `jq -c '.\[\]' FILE`"),
        (b'\xef\xbb\xbf[\r\n{"prompt": "a"}\r\n]', "is a JSON list"),
        (b'{\n  "prompt": "a"\n}\n', "is an object over many lines, .* `jq -c . FILE`"),
        (gzip.compress(b"{}", mtime=0), "is packed with gzip"),
        (b"PK\x03\x04...", "is a zip archive, or an Excel file"),
        (b"PAR1...", "is a Parquet file"),
    ],
)
def test_a_file_that_is_clearly_something_else_is_refused_as_a_whole(tmp_path, data, why):
    with pytest.raises(Qwen3Error, match=f"in.jsonl: {why}"):
        read(tmp_path, data)


@pytest.mark.parametrize("data", [b'["a"]\n', b'[]\n{"a": 1}', b'{\n{"a": 1}\n', b'[{"a": 1}]\n{"a": 1}', b"{"])
def test_a_bad_line_is_no_bad_file(tmp_path, data):
    assert read(tmp_path, data)


@pytest.mark.parametrize(
    "source, why",
    [
        ("", "is empty"),
        (".", "folder"),
        ("nowhere.jsonl", "No such file"),
        ("in.jsonl/x", "Not a directory"),
        ("/dev/zero", "device"),
        ("/dev/full", "device"),
        ("x" * 5000, "too long"),
        ("a\0b", "null"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, source, why):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("{}")
    with pytest.raises(Qwen3Error, match=why):
        read_lines(source)


def test_too_much_is_refused_before_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_BYTES", 100)
    assert len(read(tmp_path, b"{}\n" * 33)) == 33
    with pytest.raises(Qwen3Error, match="split it"):
        read(tmp_path, b"{}\n" * 34)


def test_a_pipe_and_a_home_folder_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(b"{}\n",))
    writer.start()
    assert [line.data for line in read_lines(str(tmp_path / "pipe"))] == [b"{}"]
    writer.join()
    (tmp_path / "in.jsonl").write_bytes(b"[]")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [line.data for line in read_lines("~/in.jsonl")] == [b"[]"]


def test_stdin_is_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbf{}\n\xff\n")))
    assert [line.data for line in read_lines("-")] == [b"{}", b"\xff"]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Qwen3Error, match="stdin is closed"):
        read_lines("-")


@pytest.mark.parametrize(
    "data, why",
    [
        (b"{oops", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"\0" * 20, "not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' * 100_000, "nested too deep"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": [-1e400]}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is in it twice"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
    ],
)
def test_a_line_that_is_no_object_says_why(data, why):
    with pytest.raises(Qwen3Error, match=why):
        parse(data)


def test_json_holds_nothing_that_steers_a_terminal_or_ends_a_line():
    value = {
        chr(0x9B): "\x1b]0;t\x07\x7f\x85\u2028\u2029\u202e\ud800\ufeff\u2066",
        "id": ["é", "語", "👩‍👩‍👧", "\u200d"],
    }
    text = to_json(value)
    assert json.loads(text) == value and len(text.splitlines()) == 1
    assert not any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u202e\u2066\ufeff" for c in text)
    assert text.encode() and "語" in text and "é" in text and "👩‍👩‍👧" in text
    with pytest.raises(ValueError, match="JSON compliant"):
        to_json({"a": math.nan})


def test_values_are_joined_without_parsing():
    deep = '{"id": ' + "[" * 5000 + "]" * 5000 + "}"
    assert joined(deep, {"text": "x"}) == deep[:-1] + ', "text": "x"}'
    assert joined("{}", {"text": "x"}) == '{"text": "x"}'
