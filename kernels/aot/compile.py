"""Compiles recorded launches for a GPU that is not here. No driver is needed: Triton ships the assembler."""

import math
import re
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .disassemble import read_amdgcn, read_cubin
from .record import Launch

# Shared memory of a multiprocessor, KiB. All of these hold 64 warps, 32 blocks and 65,536 registers.
SHARED_KIB = {"sm_80": 164, "sm_90": 228, "sm_100": 228}

# A launch without these options has Triton's defaults.
DEFAULT_OPTIONS = {"num_warps": 4, "num_stages": 3}


@dataclass(frozen=True)
class Report:
    """One compiled launch. Instruction counts are static: how often they stand in the code, not how often they run."""

    kernel: str
    arch: str
    programs: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    blocks_per_sm: int | None  # None where it is not modelled (AMD)
    matrix_instructions: dict[str, int]
    multiplies_16_bit: bool  # it has a tl.dot of 16-bit tiles
    multiplies_32_bit: bool  # or of float32 tiles
    barriers: int  # where the warps of a program wait for each other
    loads: int
    wide_loads: int
    wide_load_share: float  # of the bytes that all global loads carry
    stores: int
    wide_stores: int


def occupancy(arch: str, registers: int, shared_bytes: int, num_warps: int) -> int | None:
    """Counts the blocks that one multiprocessor holds: 0 when one is too large, None when `arch` is not known."""
    if arch not in SHARED_KIB:
        return None
    # Each of the four sub-partitions has 16,384 registers and hands them to a warp in units of 256; each block takes
    # 1 KiB of shared memory for the system.
    warps = min(64, 4 * (16384 // (256 * math.ceil(registers * 32 / 256))))
    return min(32, warps // num_warps, (SHARED_KIB[arch] << 10) // (shared_bytes + 1024))


def compile_launch(launch: Launch, arch: str) -> Report:
    """Compiles a launch for "sm_90" and its like, or "gfx942".

    Raises ValueError for another `arch`, and what Triton raises when it rejects the kernel.
    """
    if not re.fullmatch(r"sm_\d+|gfx\w+", arch):
        raise ValueError(f"arch must be like sm_90 or gfx942, got {arch!r}")
    nvidia = arch.startswith("sm_")
    target = GPUTarget("cuda", int(arch[3:]), 32) if nvidia else GPUTarget("hip", arch, 64)
    options = DEFAULT_OPTIONS | launch.options
    signature, constants, attributes = {}, {}, {}
    for index, (name, (kind, value)) in enumerate(launch.arguments.items()):
        signature[name] = kind
        if kind == "constexpr":
            constants[index,] = value
        elif value == "D":
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=target, options=options)

    code = read_cubin(kernel.asm["cubin"]) if nvidia else read_amdgcn(kernel.asm["amdgcn"])
    return Report(
        kernel=launch.kernel.__name__,
        arch=arch,
        programs=math.prod(launch.grid),
        registers=code.registers,
        spill_bytes=code.spill_bytes,
        shared_bytes=kernel.metadata.shared,
        num_warps=options["num_warps"],
        blocks_per_sm=occupancy(arch, code.registers, kernel.metadata.shared, options["num_warps"]),
        matrix_instructions=dict(code.matrix),
        multiplies_16_bit=bool(re.search(r"tt\.dot .*: tensor<[\dx]+x(bf16|f16)>", kernel.asm["ttir"])),
        multiplies_32_bit=bool(re.search(r"tt\.dot .*: tensor<[\dx]+xf32> \*", kernel.asm["ttir"])),
        barriers=code.barriers,
        loads=code.loads.total(),
        wide_loads=sum(count for bits, count in code.loads.items() if bits >= 128),
        wide_load_share=code.wide_load_share,
        stores=code.stores.total(),
        wide_stores=sum(count for bits, count in code.stores.items() if bits >= 128),
    )
