"""A small, readable engine for the Qwen3-MoE family."""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.engine import EngineConfig
    from .engine.params import SamplingParams
    from .engine.request import Completion, Metrics, TokenLogprob
    from .errors import Qwen3Error
    from .llm import LLM, BrokenOff

__all__ = ["LLM", "BrokenOff", "Completion", "EngineConfig", "Metrics", "Qwen3Error", "SamplingParams", "TokenLogprob"]
__version__ = "0.1.0"

_HOMES = {
    "LLM": "llm",
    "BrokenOff": "llm",
    "Completion": "engine.request",
    "EngineConfig": "config.engine",
    "Metrics": "engine.request",
    "Qwen3Error": "errors",
    "SamplingParams": "engine.params",
    "TokenLogprob": "engine.request",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: PyTorch takes seconds, and `qwen3 --help` needs none of it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
