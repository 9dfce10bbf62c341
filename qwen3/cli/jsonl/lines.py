"""Reads the lines of a prompts file, and writes values as JSON that is safe on a terminal and in a file of lines."""

import hashlib
import json
import math
import os
import re
import stat
import sys
from typing import Any, BinaryIO, NamedTuple

from ...errors import Qwen3Error, brief, shown

MAX_BYTES = 1 << 30
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# How files begin that hold no lines, and what they are.
_PACKED = {
    b"\x1f\x8b": "packed with gzip",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\0": "packed with xz",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"PK\x03\x04": "a zip archive, or an Excel file",
    b"PAR1": "a Parquet file",
}
# Control characters, line ends of Unicode, marks that turn the direction of text; lone surrogates, which are no UTF-8.
_UNSAFE = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Line(NamedTuple):
    """A line that is not blank. number: from 1 on, blank lines counted."""

    number: int
    data: bytes

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:32]


def read_lines(source: str) -> list[Line]:
    """Reads a file, a pipe, or stdin for "-"; lines end as on Linux, Windows or an old Mac.

    A line is decoded later, by itself. UTF-16, which Windows writes, is told by its byte order mark.
    """
    data = _read_stdin() if source == "-" else _read_file(source)
    if len(data) > MAX_BYTES:
        raise Qwen3Error(f"{source}: has more than {MAX_BYTES >> 30} GiB: split it")
    for mark, what in _PACKED.items():
        if data.startswith(mark):
            raise Qwen3Error(f"{source}: is {what}, not lines of JSON: unpack or convert it")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise Qwen3Error(f"{source}: is not UTF-16 text ({error}): save it as UTF-8") from None
    split = re.split(rb"\r\n|\n|\r", data)
    # Files that were joined have a mark in the middle.
    lines = [Line(number, text.removeprefix(_BYTE_ORDER_MARK)) for number, text in enumerate(split, 1)]
    lines = [line for line in lines if line.data.strip()]
    if not lines:
        raise Qwen3Error(f"{source}: no prompts in it")
    _refuse_one_value(lines, data, source)
    return lines


def _refuse_one_value(lines: list[Line], data: bytes, source: str) -> None:
    """Raises Qwen3Error for a file that is one JSON value: a list of objects, or an object over many lines."""
    first = lines[0].data.strip()
    if not first.startswith(b"[") and (first != b"{" or len(lines) == 1):
        return
    try:
        whole = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return
    if isinstance(whole, dict) or (whole and all(isinstance(value, dict) for value in whole)):
        kind = "an object over many lines" if isinstance(whole, dict) else "a JSON list"
        change = "jq -c ." if isinstance(whole, dict) else "jq -c '.[]'"
        raise Qwen3Error(f"{source}: is {kind}, not a line for each prompt: `{change} FILE` writes such lines")


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise Qwen3Error("--prompts-file -: stdin is closed: name a file")
    if sys.stdin.isatty():
        print("reading prompts, one JSON object a line; Ctrl-D ends them", file=sys.stderr)
    try:
        if hasattr(sys.stdin, "buffer"):
            return sys.stdin.buffer.read(MAX_BYTES + 1)
        return sys.stdin.read(MAX_BYTES + 1).encode("utf-8", "surrogateescape")
    except (OSError, ValueError) as error:
        raise Qwen3Error(f"--prompts-file -: stdin cannot be read ({error})") from None


def _read_file(source: str) -> bytes:
    if not source:
        raise Qwen3Error("--prompts-file is empty: name a file, or - for stdin")
    try:
        # Checked before it is opened: some devices act when they are opened.
        mode = os.stat(path := os.path.expanduser(source)).st_mode
        if stat.S_ISDIR(mode):
            raise Qwen3Error(f"{source}: is a folder: name a file in it")
        if stat.S_ISBLK(mode):
            raise Qwen3Error(f"{source}: is a device: name a file or a pipe")
        with open(path, "rb") as file:
            return _read_some(file, source, mode)
    except (OSError, ValueError) as error:
        if isinstance(error, Qwen3Error):
            raise
        raise Qwen3Error(
            f"{shown(source, 500)}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from None


def _read_some(file: BinaryIO, source: str, mode: int) -> bytes:
    if stat.S_ISCHR(mode) and not file.isatty():
        raise Qwen3Error(f"{source}: is a device: name a file or a pipe")
    return file.read(MAX_BYTES + 1)


def parse(data: bytes) -> dict[str, Any]:
    """Returns the JSON object of a line; raises Qwen3Error for everything else."""
    try:
        values = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise Qwen3Error("not JSON (nested too deep)") from None
    except ValueError as error:
        raise Qwen3Error(f"not JSON ({error})") from None
    if not isinstance(values, dict):
        raise Qwen3Error("not a JSON object")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Qwen3Error(f"key {brief(key)} is in it twice: leave one out")
            seen.add(key)
    return values


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value


def to_json(value: object) -> str:
    """Returns a value as JSON in one line; characters that can steer a terminal or that are no UTF-8 are escaped."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def joined(text: str, values: dict[str, Any]) -> str:
    """Adds values to the text of a JSON object, which is not parsed again."""
    more = to_json(values)
    return more if text == "{}" else f"{text[:-1]}, {more[1:]}"
