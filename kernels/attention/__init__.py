"""Attention over the blocks of a paged KV cache."""

from .decode import decode_attention
from .prefill import prefill_attention

__all__ = ["decode_attention", "prefill_attention"]
