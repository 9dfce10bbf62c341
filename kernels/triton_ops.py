"""The ops as Triton kernels.

Launches of one layer with a mixture of experts at batch-1 decode: add_norm_linear (add, norm, qkv projection),
qk_norm_rope_cache, decode_attention (two: splits, combine), linear (output projection), add_norm_linear (add, norm,
router), route, moe_experts (two: gate and up, down and combine).
"""

from .attention import decode_attention, prefill_attention
from .linear import add_norm_linear, linear
from .moe import moe_experts
from .moe.route import route
from .reference import embedding
from .rms_norm import add_rms_norm, rms_norm
from .rope import qk_norm_rope_cache, rope
from .sampling import sample
from .swiglu import swiglu

__all__ = [
    "add_norm_linear",
    "add_rms_norm",
    "decode_attention",
    "embedding",
    "linear",
    "moe_experts",
    "prefill_attention",
    "qk_norm_rope_cache",
    "rms_norm",
    "rope",
    "route",
    "sample",
    "swiglu",
]
