"""The models on this machine, in models/ and in the cache of Hugging Face."""

import os
from collections.abc import Iterator
from pathlib import Path

from ..config.hf import model_config
from ..errors import Qwen3Error, shown
from ..load.contents import CONFIG
from ..load.index import weight_bytes
from ..load.resolve import STAGING, TINY, cached_models, is_complete, local_models, models_folder, resolve
from ..measure.memory import gigabytes


def lines() -> Iterator[str]:
    """Yields the lines of a table of models; a star marks the default."""
    default = resolve(None)
    rows = [("", "MODEL", "SIZE", "FOLDER")]
    for name, folder, state in _models():
        size = state or gigabytes(weight_bytes(folder) or 0)
        rows.append(("*" if folder == default else "", name, size, shown(str(folder))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths))
        yield "  ".join((*cells, row[3])).rstrip()


def _models() -> Iterator[tuple[str, Path, str]]:
    """Yields (name, folder, why it cannot run); from the cache only models that can run."""
    yield "tiny", TINY, ""
    here = set()
    for folder in local_models(models_folder()):
        name = f"{folder.parent.name}/{folder.name}"
        here.add(name)
        yield shown(name, 100), folder, _state(folder)
    for name, folder in cached_models().items():
        if name not in here and not _state(folder):
            yield shown(name, 100), folder, ""


def _state(folder: Path) -> str:
    """Returns why a folder's model cannot run, in a few words; empty if no reason is found."""
    if os.path.lexists(folder / STAGING) or not os.path.lexists(folder / CONFIG):
        return "not complete"
    try:
        model_config(folder)
    except Qwen3Error:
        return "not supported"
    return "" if is_complete(folder) else "not complete"
