"""Runs one Triton kernel beside its reference and compares their errors: `python examples/kernel.py [MODEL]`.

Both get random rows of MODEL's hidden size. The exact values are those of the reference in float64. Where there is no
GPU the kernel runs in Triton's interpreter.
"""

import os
import sys

import torch

from qwen3.config.hf import model_config
from qwen3.load.resolve import resolve
from qwen3_kernels.backend import backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read once, when the triton backend imports Triton
triton, reference = backend("triton", DEVICE), backend("reference")
config = model_config(resolve(sys.argv[1] if len(sys.argv) > 1 else "tiny"))
print(f"rms_norm of 64 rows of {config.hidden_size}, kernel {'on the GPU' if DEVICE == 'cuda' else 'interpreted'}")

torch.manual_seed(0)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x = torch.randn(64, config.hidden_size, device=DEVICE, dtype=dtype)
    weight = (1 + torch.randn(config.hidden_size, device=DEVICE) / 4).to(dtype)
    exact = reference.rms_norm(x.double(), weight.double(), config.rms_norm_eps)
    error, own = (
        (ops.rms_norm(x, weight, config.rms_norm_eps).double() - exact).square().mean().sqrt().item()
        for ops in (triton, reference)
    )
    print(f"{str(dtype)[6:]:>8}: RMS error {error:.2e}, of the reference {own:.2e}: {error / own:.3f} times")
