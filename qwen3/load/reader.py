"""Reads tensors from safetensors files with little memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config.files import refuse_stand_in
from ..errors import Qwen3Error, one_line

_DTYPES = ("F64", "F32", "F16", "BF16")
# The mapped part of a file counts as resident memory until it is closed: reopen it after this many bytes.
_BYTES_PER_MAPPING = 64 << 20


class Header(NamedTuple):
    """What a file says about a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def check(self, where: str) -> None:
        """Raises Qwen3Error for a dtype that is not floating point."""
        if self.dtype not in _DTYPES:
            allowed = f"only {', '.join(_DTYPES)} are supported, no quantized weights"
            raise Qwen3Error(f"{where} has dtype {self.dtype}: {allowed}")


def read_headers(file: Path) -> dict[str, Header]:
    """Returns the headers of all tensors in the order on disk; raises Qwen3Error for a file that cannot be read."""
    try:
        with open(file, "rb") as content:
            refuse_stand_in(file, content.read(200))
        with safe_open(file, framework="pt") as handle:
            slices = ((name, handle.get_slice(name)) for name in handle.offset_keys())
            return {name: Header(part.get_dtype(), tuple(part.get_shape())) for name, part in slices}
    except Qwen3Error:
        raise
    except Exception as error:  # safetensors has errors of several kinds
        raise Qwen3Error(f"{file}: cannot be read ({one_line(error)}): download the file again") from None


def read_tensors(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) for each name; a tensor is valid until the next one is asked for.

    Raises Qwen3Error for a file that cannot be read.
    """
    left = list(names)
    try:
        while left:
            with ExitStack() as stack:
                handle = stack.enter_context(safe_open(file, framework="pt"))
                mapped = 0
                while left and mapped < _BYTES_PER_MAPPING:
                    name = left.pop(0)
                    tensor = handle.get_tensor(name)
                    mapped += tensor.nbytes
                    yield name, tensor
                    del tensor
    except (SafetensorError, OSError) as error:
        raise Qwen3Error(f"{file}: cannot be read ({one_line(error)}): download the file again") from None
