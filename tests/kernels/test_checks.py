"""The one check of arguments: what it accepts, and that its message names the argument, the need and what was given."""

import pytest
import torch

from qwen3_kernels.checks import DTYPES, require


def test_checks_accept_what_fits():
    x = torch.zeros(2, 3, 4)
    require("x", x, DTYPES, ("T", "heads", 4))
    require("x", x, torch.float32, x.shape, like=x)
    require("x", x, torch.float32, ("...", 4))
    require("x", x[0, 0], torch.float32, ("...", "H"))
    require("x", x[:, :2, :3], torch.float32, (2, 2, 3), rows=True)
    require("x", x[..., :1], torch.float32, (2, 3, "columns"), rows=True)
    require("x", x[:0], torch.float32, (0, 3, 4))


@pytest.mark.parametrize(
    ("tensor", "shape", "rows", "says"),
    [
        (
            torch.zeros(2, 3).double(),
            ("T", 3),
            False,
            r"float32 or bfloat16 \[T, 3\] on cpu .*, got float64 \[2, 3\] on cpu",
        ),
        (torch.zeros(2, 4), ("T", 3), False, r"\[T, 3\] .*, got float32 \[2, 4\]"),
        (torch.zeros(2, 4), ("T", 4, "D"), False, r"\[T, 4, D\] .*, got float32 \[2, 4\]"),
        (torch.zeros(2, 4), ("...", 3), False, r"\[\.\.\., 3\] .*, got float32 \[2, 4\]"),
        (torch.zeros(()), ("...", 3), False, r"\[\.\.\., 3\] .*, got float32 \[\]"),
        (torch.zeros(3, 2).t(), (2, 3), False, r"with contiguous memory, got .* with strides \[1, 2\]"),
        (torch.zeros(3, 2).t(), (2, 3), True, r"with contiguous rows, got .* with strides \[1, 2\]"),
        (torch.zeros(2, 3, device="meta"), (2, 3), False, r"on cpu .* on meta"),
    ],
)
def test_checks_say_what_they_need_and_got(tensor, shape, rows, says):
    with pytest.raises(ValueError, match=f"^weights must be .*{says}"):
        require("weights", tensor, (torch.float32, torch.bfloat16), shape, like=torch.zeros(1), rows=rows)
