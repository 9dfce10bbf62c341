"""Reads the small text and JSON files of a model folder; refuses anything that is not a plain file of text."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import Qwen3Error, one_line

# tokenizer.json of the family has 11 MB.
MAX_BYTES = 64 << 20


def is_there(path: Path) -> bool:
    """Tells whether a name exists; a link without a target does, and reading it is an error."""
    return os.path.lexists(path)


def refuse_stand_in(path: Path, data: bytes) -> None:
    """Raises Qwen3Error for a git-lfs pointer or a web page in place of the file."""
    if data.startswith(b"version https://git-lfs"):
        raise Qwen3Error(f"{path}: is a git-lfs pointer, not the file itself: run `git lfs pull` in its folder")
    if data[:200].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Qwen3Error(f"{path}: is a web page, not the file itself: download the file again")


def read_text(path: Path, advice: str = "", limit: int = MAX_BYTES) -> str:
    """Reads a UTF-8 file, with or without a byte order mark.

    Raises Qwen3Error, with `advice` for a missing file, for what is not a plain file or has more than `limit` bytes.
    """
    try:
        # Checked before the file is opened: opening a pipe waits for its writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Qwen3Error(f"{path}: is not a plain file")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        if is_there(path):
            raise Qwen3Error(f"{path}: is a link whose target is missing: download the file again") from None
        raise Qwen3Error(f"{path}: no such file{': ' if advice else ''}{advice}") from None
    except (OSError, ValueError) as error:
        if isinstance(error, Qwen3Error):
            raise
        raise Qwen3Error(f"{path}: cannot be read ({one_line(error)})") from None
    if len(data) > limit:
        raise Qwen3Error(f"{path}: has more than {limit / 1e6:.0f} MB, which no such file has")
    refuse_stand_in(path, data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Qwen3Error(f"{path}: is not UTF-8 text ({one_line(error)}): download the file again") from None


def parse_json(text: str, source: str) -> Any:
    """Returns the value of a JSON text; a Qwen3Error names it `source`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise Qwen3Error(f"{source}: cannot be read as JSON (nested too deep)") from None
    except ValueError as error:
        raise Qwen3Error(f"{source}: cannot be read as JSON ({error})") from None


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """Reads a JSON object from a file; raises Qwen3Error like `read_text`."""
    values = parse_json(read_text(path, advice), str(path))
    if not isinstance(values, dict):
        raise Qwen3Error(f"{path}: holds a JSON {type(values).__name__}, an object is needed")
    return values


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Reads an optional JSON object; an empty one where there is no such file."""
    return read_json(path) if is_there(path) else {}
