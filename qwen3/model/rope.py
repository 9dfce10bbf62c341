"""Rotary position embedding: the table of cosines and sines, with YaRN."""

import math

import torch
from torch import Tensor

from ..config.model import ModelConfig


def rope_table(config: ModelConfig, length: int) -> Tensor:
    """Cosines then sines of every position, [length, head_dim] float32, YaRN's attention factor included."""
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inverse_frequencies(config)
    table = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return table.mul_(config.yarn.magnitude) if config.yarn else table


def rope_table_bytes(config: ModelConfig, length: int) -> int:
    """The memory that `rope_table` takes while it runs: the table, its halves and the angles."""
    return 10 * length * config.head_dim


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each rotated pair, [head_dim / 2] float32.

    YaRN (Peng et al., 2023, section 3.2): pairs that turn more than beta_fast times within the original
    context keep their frequency, pairs that turn less than beta_slow times are divided by the factor, and a linear ramp
    lies between.
    """
    dim, theta, yarn = config.head_dim, config.rope_theta, config.yarn
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return frequencies

    def pair_that_turns(times: float) -> float:
        return dim * math.log(yarn.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_that_turns(yarn.beta_fast), pair_that_turns(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / yarn.factor * ramp
