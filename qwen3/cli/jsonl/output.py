"""Where the records of a batch go: a file, by way of a journal beside it, or a stream."""

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from ...errors import Qwen3Error, shown
from ..streams import require_stdout
from .interrupts import Interrupts
from .journal import Journal, write_all
from .lines import Line, joined


class File:
    """A file that holds all records in the order of their lines at the end, and nothing of them before.

    taken: the records that the journal held already, by index of line.
    """

    def __init__(self, path: str, lines: list[Line], settings: dict[str, Any], resume: bool) -> None:
        self._path, self._lines = path, lines
        # Answers may be private: the journal gets the permissions of the file.
        self._mode = stat.S_IMODE(os.stat(path).st_mode) | 0o600 if os.path.exists(path) else 0o666
        self._journal = Journal(f"{path}.journal", settings, resume, self._mode)
        self.taken = self._journal.matched(lines)
        self._records = dict(self.taken)
        self._finished = False
        self._answers = len(self.taken)
        self.left_out = len(self._journal.entries) - len(self.taken)
        if self.left_out and not self.taken:
            self._journal.close()
            raise Qwen3Error(
                f"{self._journal.path}: holds {self.left_out} answers, none to a line of this file: give the file that "
                "it is of, or remove it to start over"
            )

    def put(self, i: int, record: str, answered: bool) -> None:
        """Takes the record of a line; an answer is in the journal after it, a line that failed is tried again."""
        if answered:
            self._journal.append(self._lines[i], record)
            self._answers += 1
        self._records[i] = record

    def finish(self, interrupts: Interrupts) -> None:
        try:
            self._write(interrupts)
        except OSError as error:
            raise Qwen3Error(f"{self._path}: cannot be written ({error.strerror})") from None

    def _write(self, interrupts: Interrupts) -> None:
        there = os.stat(self._path) if os.path.exists(self._path) else None
        if there is not None and there.st_nlink > 1:
            # Written in place: the other names of the file stay names of it. The journal is there until it is done.
            self._fill(os.open(self._path, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_BINARY", 0)))
            with interrupts.held():
                self._finished = True
                self._journal.remove()
            return
        part = self._journal.part
        with suppress(FileNotFoundError):
            os.unlink(part)
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), self._mode)
            self._fill(fd)
            if there is not None:
                os.chmod(part, stat.S_IMODE(there.st_mode))
                with suppress(OSError, AttributeError):  # only root can give a file away; Windows has no chown
                    os.chown(part, there.st_uid, there.st_gid)
            with interrupts.held():
                os.replace(part, self._path)
                self._finished = True
                self._journal.remove()
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)

    def _fill(self, fd: int) -> None:
        try:
            for i in range(len(self._lines)):
                write_all(fd, self._records[i].encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)

    def break_off(self, interrupts: Interrupts) -> str:
        """Closes the journal, whose answers stay; returns the sentence that says so."""
        if self._finished:
            return ""
        if not self._answers:
            self._journal.remove()
            return ""
        self._journal.close()
        return (
            f"{self._answers} of {len(self._lines)} answers are in {self._journal.path}: "
            "run the same command with --resume for the rest"
        )


class Stream:
    """stdout, a pipe or a device: gets each record as soon as all before it have been written."""

    left_out = 0

    def __init__(
        self, name: str, write: Callable[[bytes], object], lines: list[Line], close: Callable[[], object] | None = None
    ) -> None:
        self._name, self._write, self._lines, self._close = name, write, lines, close
        self.taken: dict[int, str] = {}
        self._waiting: dict[int, str] = {}
        self._next = 0
        self._failed = False

    def put(self, i: int, record: str, answered: bool) -> None:
        self._waiting[i] = record
        while self._next in self._waiting:
            self._send(self._waiting.pop(self._next))
            self._next += 1

    def _send(self, record: str) -> None:
        try:
            self._write(record.encode() + b"\n")
        except OSError as error:
            self._failed = True
            if isinstance(error, BrokenPipeError):
                raise
            raise Qwen3Error(f"{self._name}: cannot be written ({error.strerror})") from None

    def finish(self, interrupts: Interrupts) -> None:
        if self._close is not None:
            self._close()

    def break_off(self, interrupts: Interrupts) -> str:
        """Writes the records that waited for earlier ones, each with the number of its line."""
        written = self._next
        with interrupts.held():
            for i in sorted(self._waiting):
                if self._failed:
                    break
                with suppress(OSError, Qwen3Error):
                    self._send(joined(self._waiting[i], {"line": self._lines[i].number}))
                    written += 1
            self.finish(interrupts)
        return f"{written} of {len(self._lines)} records were written" if written else ""


def open_output(
    output: str | None, source: str, lines: list[Line], settings: dict[str, Any], resume: bool
) -> File | Stream:
    """Opens what --output names, None and "-" are stdout. Everything about it that can be wrong now is refused now.

    A link is followed. A pipe, a device or an open descriptor, such as /dev/stdout, is written to as it is.
    """
    if output == "":
        raise Qwen3Error("--output is empty: name a file, or - for stdout")
    path = "-" if output is None else os.path.expanduser(output)
    try:
        there = None if path == "-" else os.stat(path)
    except FileNotFoundError:
        if path.endswith(os.sep):
            raise Qwen3Error(f"{output}: is a folder: name a file in it") from None
        return File(os.path.realpath(path), lines, settings, resume)
    except (OSError, ValueError) as error:
        _refuse(output, error)
    if there is not None:
        if stat.S_ISDIR(there.st_mode):
            raise Qwen3Error(f"{output}: is a folder: name a file in it")
        if stat.S_ISBLK(there.st_mode):
            raise Qwen3Error(f"{output}: is a disk: name a file or a pipe")
        if stat.S_ISREG(there.st_mode):
            if _is_source(source, there):
                raise Qwen3Error(f"{output}: is the prompts file itself: name another file")
            if not os.access(path, os.W_OK):
                raise Qwen3Error(f"{output}: cannot be written (Permission denied)")
            if not _is_stdout(there) and not _is_descriptor(path):
                return File(os.path.realpath(path), lines, settings, resume)
    if resume:
        raise Qwen3Error("--resume needs an --output that is a file: a pipe or a device keeps no answers")
    if there is None or _is_stdout(there):
        return Stream("stdout", _stdout_writer(), lines)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        _refuse(output, error)
    return Stream(path, lambda data: write_all(fd, data), lines, lambda: os.close(fd))


def _refuse(output: str | None, error: OSError | ValueError) -> NoReturn:
    raise Qwen3Error(
        f"{shown(output or '-', 500)}: cannot be written ({getattr(error, 'strerror', None) or error})"
    ) from None


def _is_source(source: str, there: os.stat_result) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samestat(os.fstat(0) if source == "-" else os.stat(os.path.expanduser(source)), there)
    return False


def _is_stdout(there: os.stat_result) -> bool:
    with suppress(OSError, ValueError, AttributeError):
        return os.path.samestat(os.fstat(sys.stdout.fileno()), there)
    return False


def _is_descriptor(path: str) -> bool:
    """Whether a path such as /dev/fd/3 names what a process has open, and no place where a file could be put."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(path)))
    return folder == "/dev" or folder.startswith("/proc/")


def _stdout_writer() -> Callable[[bytes], object]:
    require_stdout()
    try:
        sys.stdout.flush()
        fd = sys.stdout.fileno()
    except (OSError, ValueError) as error:
        if isinstance(error, Qwen3Error):
            raise
        # A stream without a descriptor.
        return lambda data: sys.stdout.write(data.decode())
    # Past the buffer: what a full disk or a closed pipe does not take must not be written again at exit.
    return lambda data: write_all(fd, data)
