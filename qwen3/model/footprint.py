"""Parameters and bytes of a model, counted on its modules."""

from typing import NamedTuple

import torch

from qwen3_kernels import reference

from ..config.model import ModelConfig
from .modules import Experts, nbytes
from .qwen3 import Qwen3


class Footprint(NamedTuple):
    """What a model holds, and what one step reads of it."""

    parameters: int
    active: int  # parameters that one token uses; its embedding row counts as the whole table
    nbytes: int
    shared_bytes: int  # read by every step: all but the experts, and but an embedding that is not the output layer
    expert_bytes: int  # one expert of one layer


def footprint(model: Qwen3) -> Footprint:
    """Counts the parameters of `model`, whose tensors may lie on the meta device."""
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    parameters = sum(module.num_parameters for module in model.weight_modules())
    in_experts = sum(module.num_parameters for module in experts)
    total, expert_bytes = nbytes(model), sum(map(nbytes, experts))
    config = model.config
    return Footprint(
        parameters=parameters,
        active=parameters - in_experts + (in_experts * config.top_k // config.num_experts if experts else 0),
        nbytes=total,
        shared_bytes=total - expert_bytes - (0 if model.lm_head is None else nbytes(model.embedding)),
        expert_bytes=nbytes(experts[0]) // config.num_experts if experts else 0,
    )


def planned_footprint(config: ModelConfig, dtype: torch.dtype) -> Footprint:
    """The footprint of a model that does not exist yet; allocates nothing."""
    return footprint(Qwen3(config, reference, max_model_len=1, dtype=dtype, device="meta"))
