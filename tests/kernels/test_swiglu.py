"""SwiGLU against the reference in float64."""

import pytest
import torch

from qwen3_kernels import reference, swiglu
from qwen3_kernels.testing.contract import assert_contract, poisoned_outputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
# 1: one column; 96, 1000: part of a block, odd in the last; 1024 and one beside it: a block is full; several blocks.
@pytest.mark.parametrize("rows, size", [(1, 1), (3, 96), (2, 1000), (1, 1023), (2, 1024), (1, 1025), (5, 2500)])
def test_swiglu(rows, size, dtype):
    torch.manual_seed(rows + size)
    gate_up = (3 * torch.randn(rows, 2 * size, device=DEVICE)).to(dtype)
    with poisoned_outputs(swiglu):
        out = swiglu.swiglu(gate_up)
    assert_contract(out, reference.swiglu(gate_up.double()), reference.swiglu(gate_up))
    assert torch.equal(swiglu.swiglu(gate_up), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_swiglu_rounds_where_pytorch_does(dtype):
    """Rounded once before the product: without it a quarter of the values comes out different."""
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(4, 2048, device=DEVICE)).to(dtype)
    same = swiglu.swiglu(gate_up) == reference.swiglu(gate_up)
    gate, up = gate_up.float().chunk(2, -1)
    once = (torch.nn.functional.silu(gate) * up).to(dtype) == reference.swiglu(gate_up)
    assert same.double().mean() > 0.99 > 0.9 > once.double().mean()


def test_swiglu_extreme_gates_are_exact():
    gates = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=DEVICE)
    out = swiglu.swiglu(torch.cat((gates, torch.ones_like(gates)), 1))
    assert out.tolist() == [[0.0, pytest.approx(-100 * 2.718281828**-100, abs=1e-37), 0.0, 100.0, 1e4]]
    assert swiglu.swiglu(torch.empty(0, 8, device=DEVICE)).shape == (0, 4)


@pytest.mark.parametrize(
    "gate_up", [torch.ones(2, 3), torch.ones(4, 4).t()[:, :2], torch.ones(2, 4, dtype=torch.float64), torch.ones(4)]
)
def test_swiglu_other_inputs_are_refused(gate_up):
    with pytest.raises(ValueError, match="gate_up must"):
        swiglu.swiglu(gate_up.to(DEVICE))
