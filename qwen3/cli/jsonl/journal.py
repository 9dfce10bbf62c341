"""The journal of a batch: a file beside OUT to which each answer is appended the moment it is ready."""

import json
import os
import re
import secrets
import stat
from collections import defaultdict, deque
from contextlib import suppress
from typing import Any, NamedTuple

from ...errors import Qwen3Error, brief, shown
from .lines import Line, to_json

try:
    import fcntl
except ImportError:  # Windows: two runs with one output are not detected there
    fcntl = None  # type: ignore[assignment]

_ENTRY = re.compile(rb'\{"line": (\d{1,18}), "digest": "([0-9a-f]{32})", (.+\})')
_PART = re.compile(r"\.qwen3-[0-9a-f]{16}\.part")
_BEGINNING = b'{"qwen3_journal": 1, '


class Entry(NamedTuple):
    """An answer. number and digest: of the line that it answers. record: its JSON text."""

    number: int
    digest: str
    record: str


class Journal:
    """An open journal, locked until it is closed.

    path: of the journal. settings: what answers depend on besides their lines. resume: go on with the answers that are
    in it; without it they are left alone, and refused. mode: permissions of a new journal.

    entries: the answers that were in it. part: the path at which OUT is put together; the journal holds its name, so
    that the file that a killed run left is removed.
    """

    def __init__(self, path: str, settings: dict[str, Any], resume: bool, mode: int = 0o666) -> None:
        self.path = path
        self._fd = _locked(path, mode)
        try:
            data = _read(self._fd)
            self._size = data.rfind(b"\n") + 1  # a killed run may leave the beginning of an entry
            first, *others = data[: self._size].split(b"\n") if self._size else [b""]
            if not data[: len(_BEGINNING)] == _BEGINNING[: len(data)]:
                raise Qwen3Error(f"{path}: is in the way and no journal of a batch: move it, or name another --output")
            header = _header(first)
            self.entries = [entry for text in others if (entry := _entry(text))]
            self.part = os.path.join(os.path.dirname(path), header.get("part", f".qwen3-{secrets.token_hex(8)}.part"))
            if not self.entries:
                os.ftruncate(self._fd, 0)
                self._size = 0
                self._begin(settings)
                return
            if not resume:
                raise Qwen3Error(
                    f"{path}: holds {len(self.entries)} answers of a run that did not end: add --resume to go on, "
                    "or remove it to start over"
                )
            _check_settings(path, header.get("settings"), json.loads(to_json(settings)))
            os.ftruncate(self._fd, self._size)
        except OSError as error:
            os.close(self._fd)
            raise Qwen3Error(f"{path}: cannot be written ({error.strerror})") from None
        except BaseException:
            os.close(self._fd)
            raise

    def _begin(self, settings: dict[str, Any]) -> None:
        try:
            self._write({"qwen3_journal": 1, "part": os.path.basename(self.part), "settings": settings})
        except BaseException:
            with suppress(OSError):
                os.unlink(self.path)
            raise

    def matched(self, lines: list[Line]) -> dict[int, str]:
        """Returns the records of lines that are answered, by their index; lines that moved keep their answers."""
        answers: dict[str, deque[str]] = defaultdict(deque)
        for entry in sorted(self.entries):
            answers[entry.digest].append(entry.record)
        return {i: answers[line.digest].popleft() for i, line in enumerate(lines) if answers[line.digest]}

    def append(self, line: Line, record: str) -> None:
        self._write({"line": line.number, "digest": line.digest}, record)

    def remove(self) -> None:
        """Removes the journal and closes it, in this order: nobody can lock and read it in between."""
        if fcntl is None:  # Windows does not remove what is open
            self.close()
        with suppress(OSError):
            os.unlink(self.path)
        if fcntl is not None:
            self.close()

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, values: dict[str, Any], record: str = "{}") -> None:
        """Appends one line; what a full disk took of it is taken back. `record` is not parsed: it may be deep."""
        text = to_json(values)
        data = (text if record == "{}" else f"{text[:-1]}, {record[1:]}").encode() + b"\n"
        try:
            write_all(self._fd, data)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise Qwen3Error(f"{self.path}: cannot be written ({error.strerror})") from None
        self._size += len(data)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _locked(path: str, mode: int) -> int:
    """Opens a file, makes it if need be, and locks it; a link or a special file is refused, not followed."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    while True:
        try:
            if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
                raise Qwen3Error(f"{path}: is in the way and no plain file: move it, or name another --output")
            fd = os.open(path, flags, mode)
        except OSError as error:
            raise Qwen3Error(f"{shown(path, 500)}: cannot be written ({error.strerror})") from None
        except ValueError as error:
            raise error if isinstance(error, Qwen3Error) else Qwen3Error(f"{path}: is not a path ({error})") from None
        try:
            if fcntl is not None:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise Qwen3Error(f"{path}: another run writes it: wait for it, or name another --output") from None
        except OSError:
            pass  # a file system without locks
        # The run that held the lock may have removed the file as its last act.
        with suppress(FileNotFoundError):
            if fcntl is None or os.path.samestat(os.fstat(fd), os.stat(path)):
                return fd
        os.close(fd)


def _read(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _header(text: bytes) -> dict[str, Any]:
    """Returns the first line of a journal; an empty dict where it is not whole."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    part = header.get("part")
    return header if isinstance(part, str) and _PART.fullmatch(part) else {}


def _entry(text: bytes) -> Entry | None:
    """Returns an answer, None for a line that is not whole: its prompt is answered again."""
    found = _ENTRY.fullmatch(text)
    if found is None:
        return None
    try:
        record = b"{" + found[3]
        json.loads(record)
        return Entry(int(found[1]), found[2].decode(), record.decode())
    except (ValueError, RecursionError):
        return None


def _check_settings(path: str, there: Any, wanted: dict[str, Any]) -> None:
    there = there if isinstance(there, dict) else {}
    for name in sorted(there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise Qwen3Error(
                f"{path}: its answers are of a run with {name} {brief(there.get(name))}, not "
                f"{brief(wanted.get(name))}: give the same options, or remove it to start over"
            )
