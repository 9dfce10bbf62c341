"""Parameters of kernel tests that only the slow tests have; among them float16, which takes the paths of bfloat16."""

from typing import Any

import pytest
import torch


def slow(*values: Any) -> list:
    """These parameters, each a value or a tuple of values, for the slow tests."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


EVERY_DTYPE = [torch.float32, *slow(torch.float16), torch.bfloat16]
