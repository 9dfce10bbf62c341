"""A small, readable engine for the Qwen3-MoE family."""

import logging

from .config.engine import EngineConfig
from .engine.params import SamplingParams
from .engine.request import Completion, Metrics, TokenLogprob
from .errors import Qwen3Error
from .llm import LLM

__all__ = ["LLM", "Completion", "EngineConfig", "Metrics", "Qwen3Error", "SamplingParams", "TokenLogprob"]
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())
