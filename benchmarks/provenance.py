"""Which files of this repository a record's figures depend on, and which of them have changed since it was made."""

import ast
import hashlib
from pathlib import Path

# The first name of an import -> the folder of its package.
PACKAGES = {"benchmarks": "benchmarks", "qwen3": "qwen3", "qwen3_kernels": "kernels"}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def sources(modules: list[str], root: Path) -> dict[str, str]:
    """Digests of the files that `modules` import, directly or not, by their path below `root`.

    The shapes in benchmarks/configs count for every question.
    """
    found: dict[str, str] = {}
    waiting = [path for module in modules if (path := _file(module.split("."), root))]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name not in found:
            found[name] = digest(path)
            waiting += _imports(path, root)
    configs = (root / "benchmarks" / "configs").glob("*/config.json")
    found |= {path.relative_to(root).as_posix(): digest(path) for path in configs}
    return dict(sorted(found.items()))


def changed(record: dict, root: Path) -> list[str]:
    """Returns the paths of the record's files that are missing or have changed."""
    recorded = record.get("sources", {})
    return [name for name, was in recorded.items() if not (root / name).is_file() or digest(root / name) != was]


def digest(path: Path) -> str:
    """12 hex digits that change with what a file does, not with its comments, docstrings and spaces."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        text = ast.unparse(tree)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _imports(path: Path, root: Path) -> list[Path]:
    """Files that a module imports anywhere in it, and the packages that hold it."""
    package = list(path.relative_to(root).parent.parts)
    found = [_file(package[:depth], root) for depth in range(1, len(package) + 1)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [_file(alias.name.split("."), root) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from package import name`: the name may be a module.
            found += [_file(base, root), *(_file([*base, alias.name], root) for alias in node.names)]
    return [file for file in found if file is not None]


def _file(names: list[str], root: Path) -> Path | None:
    """The file of a module of this repository, given the parts of its name; None for any other name."""
    if not names:
        return None
    first = names[0] if names[0] in PACKAGES.values() else PACKAGES.get(names[0])
    if first is None:
        return None
    path = root.joinpath(first, *names[1:])
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)
