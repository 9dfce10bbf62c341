"""The modules that own weights: each knows its published tensor names, how it is cut for several devices, its bytes."""

from typing import Literal

import torch
from torch import Tensor, nn

from qwen3_kernels.weights import Dense, Weight

# What each of several devices would hold: some rows of every published matrix, some columns, or all of it (None).
Cut = Literal["rows", "columns"] | None


def empty(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """An uninitialized parameter, frozen, on the device of the surrounding torch.device context."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def hold(module: nn.Module, weight: Weight, prefix: str = "") -> Weight:
    """Registers the tensors of `weight` as parameters of `module`; returns it, to be kept as a plain attribute."""
    for field, tensor in weight._asdict().items():
        module.register_parameter(prefix + field, tensor)
    return weight


class Linear(nn.Module):
    """Published projections that read the same input, fused along their rows: x Wᵀ + b, W [sum of rows, inputs].

    parts: the rows of each projection by its published name, such as "model.layers.0.self_attn.q_proj".
    """

    def __init__(
        self, parts: dict[str, int], inputs: int, dtype: torch.dtype, *, bias: bool = False, cut: Cut = None
    ) -> None:
        super().__init__()
        rows = sum(parts.values())
        self.parts, self.cut = parts, cut
        self.weight = hold(self, Dense(empty(rows, inputs, dtype=dtype)))
        self.bias = empty(rows, dtype=dtype) if bias else None

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name, each as the view of this module's memory that holds it."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, rows in self.parts.items():
            stop = start + rows
            found |= self.weight.rows(start, stop).published(name)
            if self.bias is not None:
                found[f"{name}.bias"] = self.bias[start:stop]
            start = stop
        return found


class Embedding(nn.Module):
    """A table with a row for each token of the vocabulary, [vocab_size, hidden_size]."""

    cut: Cut = "rows"

    def __init__(self, name: str, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.weight = hold(self, Dense(empty(vocab_size, hidden_size, dtype=dtype)))

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name; see Linear.published."""
        return self.weight.published(self.name)


class Norm(nn.Module):
    """The weight of an RMSNorm, [size]; every device holds all of it."""

    cut: Cut = None

    def __init__(self, name: str, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.weight = empty(size, dtype=dtype)

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name; see Linear.published."""
        return {f"{self.name}.weight": self.weight}


class Experts(nn.Module):
    """The SwiGLU experts of one layer: gate_up [E, 2 I, H], the gate's rows first, and down [E, H, I].

    Each device holds some of the I rows of gate and up, and the same columns of down.
    """

    def __init__(
        self, name: str, num_experts: int, hidden_size: int, intermediate_size: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.name, self.num_experts, self.intermediate_size = name, num_experts, intermediate_size
        self.cuts: dict[str, Cut] = {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}
        self.gate_up = hold(
            self, Dense(empty(num_experts, 2 * intermediate_size, hidden_size, dtype=dtype)), "gate_up_"
        )
        self.down = hold(self, Dense(empty(num_experts, hidden_size, intermediate_size, dtype=dtype)), "down_")

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name, one matrix of one expert each; see Linear.published."""
        found: dict[str, Tensor] = {}
        size = self.intermediate_size
        for e in range(self.num_experts):
            gate_up = self.gate_up.expert(e)
            found |= gate_up.rows(0, size).published(f"{self.name}.{e}.gate_proj")
            found |= gate_up.rows(size, 2 * size).published(f"{self.name}.{e}.up_proj")
            found |= self.down.expert(e).published(f"{self.name}.{e}.down_proj")
        return found

    def stacked(self) -> dict[str, tuple[Tensor, list[str]]]:
        """Names under which newer files hold all experts in one tensor: its memory and the names that it stands for."""
        experts = range(self.num_experts)
        both = [f"{self.name}.{e}.{part}_proj.weight" for e in experts for part in ("gate", "up")]
        downs = [f"{self.name}.{e}.down_proj.weight" for e in experts]
        return {
            f"{self.name}.gate_up_proj": (self.gate_up.data, both),
            f"{self.name}.down_proj": (self.down.data, downs),
        }


WeightModule = Linear | Embedding | Norm | Experts


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters of a module."""
    return sum(parameter.nbytes for parameter in module.parameters())
