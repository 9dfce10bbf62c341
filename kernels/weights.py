"""Weight formats: what a projection multiplies by, as tuples of tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


class Dense(NamedTuple):
    """A weight stored as its own values."""

    data: Tensor  # [N, K], or [E, N, K] for the projection of E experts

    @classmethod
    def empty(cls, *shape: int, dtype: torch.dtype) -> "Dense":
        """An uninitialized weight of [N, K] or [E, N, K], on the device of the surrounding torch.device context."""
        return cls(torch.empty(shape, dtype=dtype))

    @property
    def shape(self) -> torch.Size:
        """Outputs and inputs, [N, K] or [E, N, K], in every format."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take, and that a product with the whole weight reads."""
        return self.data.nbytes

    def rows(self, start: int, stop: int) -> "Dense":
        """A view of the outputs start to stop - 1 of [N, K]."""
        return Dense(self.data[start:stop])

    def expert(self, index: int) -> "Dense":
        """A view of one expert of [E, N, K]."""
        return Dense(self.data[index])

    def published(self, name: str) -> dict[str, Tensor]:
        """The tensors by their published names, that of the projection being `name`."""
        return {f"{name}.weight": self.data}

    def dequantize(self) -> Tensor:
        """The values of this weight as one tensor of `shape`."""
        return self.data


# The formats that the ops take; an op dispatches on the type in one place for each family.
Weight = Dense
