"""A file of a model folder is read, or refused in one line, whatever stands in its place."""

import os

import pytest

from qwen3.config.files import parse_json, read_json, read_json_if_there, read_text
from qwen3.errors import Qwen3Error


def test_reads_with_and_without_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a") == {"a": 1}
    assert read_json_if_there(tmp_path / "none") == {}


@pytest.mark.parametrize("what", ["folder", "fifo", "dangling", "loop", "endless", "utf-16", "large"])
def test_what_is_not_a_text_file_is_refused(tmp_path, what):
    path = tmp_path / "config.json"
    match what:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to(tmp_path / "gone")
        case "loop":
            path.symlink_to(path)
        case "endless":
            path.symlink_to("/dev/zero")
        case "utf-16":
            path.write_text("{}", encoding="utf-16")
        case "large":
            path.write_text("x" * 101)
    for read in (lambda p: read_text(p, limit=100), read_json_if_there):
        with pytest.raises(Qwen3Error, match="^" + str(path)):
            read(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "9" * 5000, "{", "", '{"a": }'], ids=["deep", "digits", "cut", "empty", "hole"]
)
def test_bad_json_is_one_line(text):
    with pytest.raises(Qwen3Error, match="^here: cannot be read as JSON"):
        parse_json(text, "here")
