"""Plants one mistake at a time in a copy of the project and sees that its tests notice: `python -m tests.mutants`.

The mistakes stand in tests/mutants/*.json. Exits with 1 where one survives without a reason, where one that has a
reason is noticed, where a test fails without any mistake, and where the text before an edit is not found exactly once:
then the code moved, and the entry moves with it.

Every run is a fork of one process that has imported torch, triton, transformers and pytest; the project is imported in
the fork alone. Each of the `--workers` has its own copy of the tree, compiled once: a run compiles the edited file
alone. A line shows the CPU time of its run.
"""

import argparse
import compileall
import gc
import os
import py_compile
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from .entries import Mutant, problems, read_lists, selected

ROOT = Path(__file__).parents[2]
PRELOADED = "pytest,hypothesis,numpy,torch,triton,tokenizers,transformers.models.qwen3_moe.modeling_qwen3_moe,xdist"
# As tests/conftest.py has them, before the libraries read them once. What a run compiles would be stale in the next.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a process that has initialized CUDA cannot fork
    "PYTHONDONTWRITEBYTECODE": "1",
}
LIMIT = 300.0  # seconds of one run


class Running(NamedTuple):
    """A run that has begun."""

    mutant: Mutant
    tree: Path
    original: str | None  # the file as it was
    log: Path
    started: float

    def restore(self) -> None:
        """Takes the mistake back."""
        if self.original is not None:
            (self.tree / self.mutant.file).write_text(self.original, encoding="utf-8")


def git(root: Path, *arguments: str) -> list[str]:
    """Paths that git prints, from the root."""
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)}: {done.stderr.strip()}")
    return [path for path in done.stdout.split("\0") if path]


def copy_tree(root: Path, target: Path) -> Path:
    """Copies what git knows or would take up, links as links."""
    for name in git(root, "ls-files", "-zco", "--exclude-standard"):
        if not os.path.lexists(root / name):
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name, follow_symlinks=False)
    return target


def compile_tree(tree: Path, tests: list[str]) -> None:
    """Leaves the bytecode of the project in a copy, compared with its source by content, and that of these tests."""
    compileall.compile_dir(tree, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    files = sorted({test.partition("::")[0] for test in tests})
    # pytest compiles tests in its own way, when it collects them.
    pid = os.fork()
    if pid == 0:
        sys.dont_write_bytecode = False
        child(tree, Mutant("", "", "", "", ["--collect-only", *files], slow=True), tree.with_suffix(".log"))
    os.waitpid(pid, 0)


def child(tree: Path, mutant: Mutant, log: Path) -> None:
    """Runs the tests in this process, which then ends with pytest's exit code."""
    code = 70
    try:
        os.setpgid(0, 0)
        # A runner in the background ignores Ctrl-C, and its children would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(tree)
        ours = [str(tree / "types"), str(tree)]
        sys.path[:] = [*ours, *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "types"))]
        os.environ["PYTHONPATH"] = os.pathsep.join(ours)
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        import pytest

        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", "-W", "ignore", "--tb=short"]
        marks = "not long" if mutant.slow else "not slow and not long"
        code = int(pytest.main([*options, "-m", marks, *mutant.tests]))
        if not all(path.startswith(str(tree)) for path in imported()):
            print("imported from elsewhere")
            code = 71
    finally:
        sys.stdout.flush()
        os._exit(code)


def imported() -> Iterator[str]:
    """The files of the project's own modules in this process."""
    for name, module in sys.modules.items():
        path = getattr(module, "__file__", None)  # a folder without __init__.py has none
        if path and name.partition(".")[0] in ("qwen3", "qwen3_kernels", "benchmarks"):
            yield path


def begin(mutant: Mutant, tree: Path, log: Path) -> tuple[int, Running]:
    """Plants the mistake and forks: the process id, and what runs."""
    path = tree / mutant.file
    original = path.read_text(encoding="utf-8") if mutant.file else None
    if original is not None:
        path.write_text(mutant.planted(original), encoding="utf-8")
    sys.stdout.flush()
    running = Running(mutant, tree, original, log, time.monotonic())
    pid = os.fork()
    if pid == 0:
        child(tree, mutant, log)
    return pid, running


def verdict(mutant: Mutant, code: int | None) -> tuple[str, bool]:
    """What became of a run with this exit code, None where its time was over, and whether that is as it should be."""
    if code is None:
        return ("hung", True) if mutant.limit else (f"longer than {LIMIT:.0f} s", False)
    if code not in (0, 1, 2):
        why = {4: "no such test", 5: "no test ran", 71: "imported from elsewhere"}.get(code, f"exit code {code}")
        return why, (code < 0 or code == 3) and bool(mutant.file)
    if not mutant.file:
        return ("fails without a mistake", False) if code else ("passes", True)
    if code:
        return ("NOTICED, but has a reason", False) if mutant.survives else ("noticed", True)
    return (f"survives: {mutant.survives}", True) if mutant.survives else ("SURVIVES", False)


def first_failure(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "")[:150]


def run(mutants: list[Mutant], trees: list[Path], logs: Path) -> list[str]:
    """Runs all, one in each tree at a time, and prints a line for each. Returns the ids of those that are not right."""
    waiting, free, wrong = list(mutants), list(trees), []
    running: dict[int, Running] = {}
    try:
        while waiting or running:
            while waiting and free:
                mutant = waiting.pop(0)
                pid, begun = begin(mutant, free.pop(), logs / f"{len(waiting)}.log")
                running[pid] = begun
            time.sleep(0.02)
            for pid, job in list(running.items()):
                done, status, usage = os.wait4(pid, os.WNOHANG)
                seconds = time.monotonic() - job.started
                if not done and seconds < (job.mutant.limit or LIMIT):
                    continue
                stop(pid)
                if not done:
                    _, _, usage = os.wait4(pid, 0)
                job.restore()
                free.append(job.tree)
                del running[pid]
                words, right = verdict(job.mutant, os.waitstatus_to_exitcode(status) if done else None)
                if not right:
                    wrong.append(job.mutant.id)
                reason = "" if words == "passes" else first_failure(job.log)
                cpu = usage.ru_utime + usage.ru_stime
                print(f"{job.mutant.id:32} {cpu:6.1f} s  {words}  {reason}", flush=True)
    finally:
        for pid, job in running.items():
            stop(pid)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
            job.restore()
    return wrong


def stop(pid: int) -> None:
    """Ends what is left of a run's process group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="ids or names of lists, separated by commas; * stands for any text")
    parser.add_argument("--changed", default="", metavar="REF", help="those whose file or tests differ from a git ref")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--root", type=Path, default=ROOT, help="another project")
    parser.add_argument("--preload", default=PRELOADED, help="what the process imports before it forks")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests without a mistake first")
    options = parser.parse_args()
    root = options.root.resolve()
    lists = read_lists(root / "tests/mutants")
    everything = [mutant for mutants in lists.values() for mutant in mutants]
    broken = problems(root, everything)
    if broken:
        print(*broken, sep="\n", file=sys.stderr)
        return 1
    changed = None
    if options.changed:
        changed = {*git(root, "diff", "-z", "--name-only", options.changed)}
        changed |= {*git(root, "ls-files", "-zo", "--exclude-standard")}
    lists = selected(lists, options.only, changed)
    mutants = [mutant for chosen in lists.values() for mutant in chosen]
    controls = [
        Mutant(f"control: {name}{' slow' * slow}", "", "", "", tests, slow=slow)
        for name, chosen in lists.items()
        for slow in (False, True)
        if (tests := sorted({test for m in chosen if m.slow is slow for test in m.tests}))
    ]

    os.environ.update(ENVIRONMENT)
    preload(options.preload.split(","))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        if (root.parent / "shared").is_dir():
            os.symlink(root.parent / "shared", Path(folder, "shared"))  # tests look for data beside the checkout
        trees = [copy_tree(root, Path(folder, "tree0"))]
        compile_tree(trees[0], [test for mutant in mutants for test in mutant.tests])
        for n in range(1, options.workers):
            trees.append(shutil.copytree(trees[0], Path(folder, f"tree{n}"), symlinks=True))
        wrong = run([*([] if options.no_control else controls), *mutants], trees, Path(folder))
    gc.unfreeze()
    reasons = sum(bool(mutant.survives) for mutant in mutants)
    print(f"{len(mutants)} mistakes in {time.monotonic() - started:.0f} s, {reasons} of them with a reason to survive")
    if wrong:
        print("not as it should be:", ", ".join(wrong), file=sys.stderr)
    return int(bool(wrong))


def preload(modules: list[str]) -> None:
    """Imports what every test needs, where it is there, and starts no thread: a fork has none of them."""
    for name in modules:
        with suppress(ImportError):
            module = import_module(name)
            # torch stands before triton, which reads this when it is imported.
            if name == "torch" and not module.cuda.is_available():
                os.environ["TRITON_INTERPRET"] = "1"
            if name == "hypothesis":
                # The first failure is enough: the smallest one takes many times as long. tests/conftest.py loads this.
                phases = (module.Phase.explicit, module.Phase.generate)
                module.settings.register_profile(
                    "mutants", derandomize=True, database=None, phases=phases, report_multiple_bugs=False
                )
                os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    gc.freeze()  # what is imported stays: the collector of a run need not look at it


if __name__ == "__main__":
    sys.exit(main())
