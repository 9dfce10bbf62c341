"""A small, readable engine for the Qwen3-MoE family."""

import logging

from .errors import Qwen3Error
from .llm import LLM
from .sampling import SamplingParams
from .sequence import Completion

__all__ = ["LLM", "Completion", "Qwen3Error", "SamplingParams"]
__version__ = "0.1.0"

logging.getLogger("qwen3").addHandler(logging.NullHandler())
