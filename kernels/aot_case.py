"""What `qwen3_kernels.aot` needs to know to compile one kernel for a GPU that is not here."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """One row of a kernel's tile table at one real shape.

    arguments: by parameter name, a type string for what is passed at run time ("*bf16", "*fp32", "*i64", "i32", "fp32";
    ":16" behind it says that the pointer or number is known to be divisible by 16, as the launcher specialises it), or
    the value itself for a constexpr. bytes_moved and flops of the whole launch give its roofline time.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int
    programs: int
    bytes_moved: int
    flops: int
    tensor_cores: bool = False  # a matmul or attention kernel: tensor-core instructions must be there
    streams: bool = False  # reads weights or KV: those loads must be 128 bits wide
