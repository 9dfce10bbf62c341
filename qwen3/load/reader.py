"""Reads tensors from safetensors files with little memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import Qwen3Error

_DTYPES = ("F64", "F32", "F16", "BF16")
# The mapped part of a file counts as resident memory until it is closed: reopen it after this many bytes.
_BYTES_PER_MAPPING = 64 << 20


def read_tensors(files: list[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    """Yields (file, name, tensor) in the order on disk; a tensor is valid until the next one is asked for.

    Raises Qwen3Error for a file that cannot be read and for a tensor that is not floating point.
    """
    for file in files:
        try:
            with safe_open(file, framework="pt") as handle:
                names = handle.offset_keys()
            while names:
                with ExitStack() as stack:
                    handle = stack.enter_context(safe_open(file, framework="pt"))
                    mapped = 0
                    while names and mapped < _BYTES_PER_MAPPING:
                        name = names.pop(0)
                        dtype = handle.get_slice(name).get_dtype()
                        if dtype not in _DTYPES:
                            allowed = ", ".join(_DTYPES)
                            raise Qwen3Error(f"{file}: tensor {name!r} has dtype {dtype}: only {allowed} are supported")
                        tensor = handle.get_tensor(name)
                        mapped += tensor.nbytes
                        yield file, name, tensor
                        del tensor
        except (SafetensorError, OSError) as error:
            raise Qwen3Error(f"{file}: cannot be read ({error}): download the file again") from None
