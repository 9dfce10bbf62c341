"""Checks of the arguments of the Triton ops: one function, one form of message."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of the numbers that the kernels compute with
ID_DTYPES = (torch.int32, torch.int64)


def require(
    name: str,
    tensor: Tensor,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
    like: Tensor | None = None,
    rows: bool = False,
) -> None:
    """Raises ValueError unless `tensor` has this dtype, shape and layout, and is on the device of `like`.

    shape: a number where a size is known, a name where any size will do; "..." first stands for any leading sizes.
    rows: the rows must be contiguous and may lie apart; otherwise all of the tensor must be contiguous.
    """
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    known = shape[1:] if shape[0] == "..." else shape
    sizes = tensor.shape[-len(known) :] if shape[0] == "..." else tensor.shape
    fits = len(sizes) == len(known) and all(size == n or isinstance(n, str) for size, n in zip(sizes, known))
    has_layout = (sizes[-1:] == (1,) or tensor.stride()[-1:] == (1,)) if rows else tensor.is_contiguous()
    if tensor.dtype in dtypes and fits and has_layout and (like is None or tensor.device == like.device):
        return
    *first, last = (str(dtype).removeprefix("torch.") for dtype in dtypes)
    wanted = f"{', '.join(first)} or {last}" if first else last
    wanted += f" [{', '.join(map(str, shape))}]" + (f" on {like.device}" if like is not None else "")
    got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
    layout = "contiguous rows" if rows else "contiguous memory"
    raise ValueError(f"{name} must be {wanted} with {layout}, got {got} with strides {list(tensor.stride())}")
