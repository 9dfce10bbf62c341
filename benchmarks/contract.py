"""Numbers contract of a whole model compared with transformers; the contract of single ops is qwen3_kernels'."""

from torch import Tensor

FLOAT32_LIMIT = 1e-4
BFLOAT16_RATIO = 2.0


def errors(ours: Tensor, theirs: Tensor, dtype: str, scale: float = 1.0) -> dict:
    """Errors of both sides against float32, and whether ours are within the contract; NaN never is.

    In float32 our largest difference is at most FLOAT32_LIMIT * scale, in bfloat16 our RMS at most BFLOAT16_RATIO times
    theirs.
    """
    ours, theirs = ours.double(), theirs.double()
    largest, rms = ours.abs().max().item(), ours.square().mean().sqrt().item()
    their_rms = theirs.square().mean().sqrt().item()
    within = largest <= FLOAT32_LIMIT * scale if dtype == "float32" else rms <= BFLOAT16_RATIO * their_rms
    return {"max_error": largest, "rms_error": rms, "transformers_rms_error": their_rms, "within": within}
