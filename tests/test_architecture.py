"""The rooms of the code: imports go down only, nothing runs in a circle, and files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up: a file imports from its own room or from a lower one.
ROOMS = ("kernels", "errors", "config", "model", "load", "text", "measure", "engine", "llm", "tiny", "cli")
LIMIT, TEST_LIMIT = 350, 500
CODE = sorted(path for folder in ("kernels", "qwen3") for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """kernels/moe/sort.py -> qwen3_kernels.moe.sort"""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return "qwen3_" + name if name.startswith("kernels") else name


MODULES = {module_name(path): path for path in CODE} | {"qwen3_kernels": ROOT / "kernels"}


def imports(name: str, path: Path) -> set[str]:
    """Every module of ours that a file imports, in functions and under TYPE_CHECKING too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            # `from .x import y`: y may be a module or a name inside x.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return {module for module in found if module in MODULES} - {name, "qwen3_kernels"}


IMPORTS = {name: imports(name, path) for name, path in MODULES.items() if path.suffix == ".py"}


def room(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "qwen3_kernels":
        return "kernels"
    # The package itself and __main__ stand above everything: they only hand out names.
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "package"


def upward(imported: dict[str, set[str]]) -> list[str]:
    order = {name: height for height, name in enumerate((*ROOMS, "package"))}
    return [
        f"{name} imports {other}"
        for name, others in imported.items()
        for other in sorted(others)
        # The version is all that the command line takes from the package.
        if order[room(other)] > order[room(name)] and (name, other) != ("qwen3.cli.main", "qwen3")
    ]


def circles(imported: dict[str, set[str]]) -> list[list[str]]:
    """Groups of files each of which imports the others in the end."""
    reached = {name: set(others) for name, others in imported.items()}
    for middle in reached:
        for name, others in reached.items():
            if middle in others:
                reached[name] = others | reached[middle]
    return sorted(
        sorted(other for other in reached[name] if name in reached[other]) for name in reached if name in reached[name]
    )


def test_the_files_are_found():
    assert len(CODE) > 60 and {room(name) for name in IMPORTS} == {*ROOMS, "package"}
    assert "qwen3.model.qwen3" in IMPORTS["qwen3.engine.runner"]
    assert "qwen3_kernels.weights" in IMPORTS["qwen3.model.modules"]
    assert "qwen3_kernels.testing.interpreter" in IMPORTS["qwen3_kernels.backend"], "imports in functions count"


def test_imports_go_down_only():
    assert upward(IMPORTS) == []


def test_no_imports_run_in_a_circle():
    without_package = {name: others - {"qwen3"} for name, others in IMPORTS.items()}
    assert circles(without_package) == []


def test_an_upward_import_and_a_circle_are_found():
    planted = IMPORTS | {"qwen3.config.model": {"qwen3.engine.engine"}, "qwen3_kernels.checks": {"qwen3_kernels.cpu"}}
    planted["qwen3_kernels.cpu"] = {"qwen3_kernels.checks"}
    assert upward(planted) == ["qwen3.config.model imports qwen3.engine.engine"]
    assert ["qwen3_kernels.checks", "qwen3_kernels.cpu"] in circles(planted)


@pytest.mark.parametrize(
    "folder, limit",
    [("kernels", LIMIT), ("qwen3", LIMIT), ("benchmarks", LIMIT), ("examples", 40), ("tests", TEST_LIMIT)],
)
def test_files_stay_short(folder, limit):
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > limit} == {}


def test_kernels_has_no_init_and_nobody_imports_it_by_its_folder():
    assert not (ROOT / "kernels/__init__.py").exists()
    for path in [*CODE, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(name.split(".")[0] == "kernels" for name in names), path
