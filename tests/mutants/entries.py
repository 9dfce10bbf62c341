"""The lists of planted mistakes: what an entry holds, and where it is planted."""

import json
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """One edit of one file, and the tests that must notice it; the fields are the keys of an entry in a list."""

    id: str
    file: str  # from the root of the repository; "" for a control: the tests as they are
    old: str  # stands exactly once in the file
    new: str
    tests: list[str]  # files or node ids
    words: str = ""  # the mistake
    survives: str = ""  # why no test can notice it, where that is so
    slow: bool = False  # the tests are marked slow
    limit: float = 0  # seconds after which a run that hangs counts as noticed, where the mistake makes it hang

    def planted(self, text: str) -> str:
        """The text of the file with the mistake. Raises LookupError unless `old` stands there exactly once."""
        count = text.count(self.old) if self.old else 0
        if count != 1:
            raise LookupError(f"{self.id}: {self.file}: {count} times, not once: {self.old[:80]!r}")
        return text.replace(self.old, self.new)


def read_lists(folder: Path) -> dict[str, list[Mutant]]:
    """The lists by name. Raises TypeError where an entry lacks a key or has one that is not known."""
    return {
        path.stem: [Mutant(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
        for path in sorted(folder.glob("*.json"))
    }


def problems(root: Path, mutants: list[Mutant]) -> list[str]:
    """What is wrong with the entries themselves, one line each."""
    found = [f"{name}: the id stands twice" for name, count in Counter(m.id for m in mutants).items() if count > 1]
    for mutant in mutants:
        try:
            changed = mutant.planted((root / mutant.file).read_text(encoding="utf-8"))
            if mutant.file.endswith(".py"):
                compile(changed, mutant.file, "exec")
        except LookupError as error:
            found.append(str(error))
        except (OSError, SyntaxError) as error:
            found.append(f"{mutant.id}: {mutant.file}: {type(error).__name__}: {error}")
        if mutant.old == mutant.new or not mutant.tests:
            found.append(f"{mutant.id}: changes nothing, or names no tests")
        for test in mutant.tests:
            path, _, name = test.partition("::")
            function = name.partition("[")[0].rpartition("::")[2]
            if not (root / path).exists():
                found.append(f"{mutant.id}: {path} is not there")
            elif function and f"def {function}(" not in (root / path).read_text(encoding="utf-8"):
                found.append(f"{mutant.id}: {path} has no {function}")
    return found


def selected(lists: dict[str, list[Mutant]], only: str, changed: set[str] | None) -> dict[str, list[Mutant]]:
    """The entries whose list or id matches one of the patterns `only`, and whose file or tests are among `changed`."""
    patterns = [pattern.strip() for pattern in only.split(",") if pattern.strip()]

    def wanted(name: str, mutant: Mutant) -> bool:
        if patterns and not any(fnmatch(mutant.id, p) or fnmatch(name, p) for p in patterns):
            return False
        return changed is None or not changed.isdisjoint({mutant.file, *(t.partition("::")[0] for t in mutant.tests)})

    chosen = {name: [m for m in mutants if wanted(name, m)] for name, mutants in lists.items()}
    return {name: mutants for name, mutants in chosen.items() if mutants}
