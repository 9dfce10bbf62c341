"""The same ops as `qwen3_kernels.reference`, each a Triton kernel: what `backend("triton")` returns.

Launches at batch-1 decode, one layer of a mixture of experts: add_norm_linear (add, norm and qkv projection),
qk_norm_rope_cache, decode_attention (two: splits, combine), linear (output projection), add_norm_linear (add, norm and
router), route, moe_experts (two: gate and up, down and combine).
"""

from .attention_decode import decode_attention
from .attention_prefill import prefill_attention
from .linear import add_norm_linear, linear
from .moe_experts import moe_experts
from .moe_route import route
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
]  # fmt: skip
