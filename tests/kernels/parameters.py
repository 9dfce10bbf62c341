"""What kernel tests share: parameters that only the slow tests have, and how many examples Hypothesis tries."""

import os
from typing import Any

import pytest
import torch
from hypothesis import settings


def slow(*values: Any) -> list:
    """These parameters, each a value or a tuple of values, for the slow tests."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


def examples(count: int) -> settings:
    """So many examples, or as many as HYPOTHESIS_EXAMPLES says: see `make nightly`."""
    return settings(max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", count)), deadline=None)


# float16 takes the paths of bfloat16.
EVERY_DTYPE = [torch.float32, *slow(torch.float16), torch.bfloat16]
