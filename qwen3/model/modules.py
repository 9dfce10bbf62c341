"""The modules that own weights: each knows its published tensor names, how it is cut for several devices, its bytes."""

from typing import Literal

import torch
from torch import Tensor, nn

from qwen3_kernels.weights import Dense, Weight

# What each of several devices would hold: some rows of every published matrix, some columns, or all of it (None).
Cut = Literal["rows", "columns"] | None


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def hold(module: nn.Module, weight: Weight, prefix: str = "") -> Weight:
    """Registers the tensors of `weight` as parameters of `module`; returns it, to be kept as a plain attribute."""
    parameters = {field: frozen(tensor) for field, tensor in weight._asdict().items()}
    for field, parameter in parameters.items():
        module.register_parameter(prefix + field, parameter)
    return type(weight)(**parameters)


class Linear(nn.Module):
    """Published projections that read the same input, fused along their rows: x Wᵀ + b, W [sum of rows, inputs].

    parts: the rows of each projection by its published name, such as "model.layers.0.self_attn.q_proj".
    kind: the format of the weight.
    """

    def __init__(
        self,
        parts: dict[str, int],
        inputs: int,
        dtype: torch.dtype,
        *,
        bias: bool = False,
        cut: Cut = None,
        kind: type[Weight] = Dense,
    ) -> None:
        super().__init__()
        rows = sum(parts.values())
        self.parts, self.cut = parts, cut
        self.weight = hold(self, kind.empty(rows, inputs, dtype=dtype))
        self.bias = frozen(torch.empty(rows, dtype=dtype)) if bias else None

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

    @property
    def num_parameters(self) -> int:
        """Numbers that the module stands for, in any format."""
        return self.weight.shape.numel() + (0 if self.bias is None else self.bias.numel())


class Embedding(nn.Module):
    """A table with a row for each token of the vocabulary, [vocab_size, hidden_size]."""

    cut: Cut = "rows"

    def __init__(self, name: str, vocab_size: int, hidden_size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.weight = hold(self, Dense.empty(vocab_size, hidden_size, dtype=dtype))

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name; see Linear.published."""
        return self.weight.published(self.name)

    @property
    def num_parameters(self) -> int:
        return self.weight.shape.numel()


class Norm(nn.Module):
    """The weight of an RMSNorm, [size]; every device holds all of it."""

    cut: Cut = None

    def __init__(self, name: str, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        self.weight = frozen(torch.empty(size, dtype=dtype))

    def published(self) -> dict[str, Tensor]:
        """The published tensors by name; see Linear.published."""
        return {f"{self.name}.weight": self.weight}

    @property
    def num_parameters(self) -> int:
        return self.weight.numel()


class Experts(nn.Module):
    """The SwiGLU experts of one layer: gate_up [E, 2 I, H], the gate's rows first, and down [E, H, I].

    Each device holds some of the I rows of gate and up, and the same columns of down. kind: the format of the weights.
    """

    def __init__(
        self,
        name: str,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        dtype: torch.dtype,
        *,
        kind: type[Weight] = Dense,
    ) -> None:
        super().__init__()
        self.name, self.num_experts, self.intermediate_size = name, num_experts, intermediate_size
        self.cuts: dict[str, Cut] = {"gate_proj": "rows", "up_proj": "rows", "down_proj": "columns"}
        gate_up = kind.empty(num_experts, 2 * intermediate_size, hidden_size, dtype=dtype)
        down = kind.empty(num_experts, hidden_size, intermediate_size, dtype=dtype)
        self.gate_up, self.down = hold(self, gate_up, "gate_up_"), hold(self, down, "down_")

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
        """Names under which transformers 5, and MLX, hold all experts in one tensor.

        Each with its memory and the names that it stands for.
        """
        gates, ups, downs = (
            [f"{self.name}.{e}.{part}_proj.weight" for e in range(self.num_experts)] for part in ("gate", "up", "down")
        )
        gate_up, mlx = self.gate_up.data, f"{self.name.removesuffix('experts')}switch_mlp"
        middle = gate_up.shape[1] // 2
        return {
            f"{self.name}.gate_up_proj": (gate_up, gates + ups),
            f"{self.name}.down_proj": (self.down.data, downs),
            f"{mlx}.gate_proj.weight": (gate_up[:, :middle], gates),
            f"{mlx}.up_proj.weight": (gate_up[:, middle:], ups),
            f"{mlx}.down_proj.weight": (self.down.data, downs),
        }

    @property
    def num_parameters(self) -> int:
        return self.gate_up.shape.numel() + self.down.shape.numel()


WeightModule = Linear | Embedding | Norm | Experts


def nbytes(module: nn.Module) -> int:
    """Bytes of all parameters of a module."""
    return sum(parameter.nbytes for parameter in module.parameters())
