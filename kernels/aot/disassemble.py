"""Reads a compiled kernel: its registers, spills, and which memory and matrix instructions it has."""

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

import triton

_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
_SASS_BITS = {"256": 256, "128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}
_SASS_MATRIX = re.compile(r"[HQI]G?MMA|UTC\w*MMA")
_GCN_MEMORY = re.compile(r"^\s+(?:global|buffer)_(load|store)_(\w+?)(?:_d16\w*|_lds)?\b", re.M)
_GCN_BITS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "ushort": 16, "short": 16, "ubyte": 8, "byte": 8}


class Code(NamedTuple):
    """What is read from a compiled kernel.

    Counts are static: how often an instruction stands in the code, not how often it runs. loads and stores count the
    instructions on global memory by their width in bits, matrix those of the tensor cores by name, barriers those where
    the warps of a program wait for each other.
    """

    registers: int
    spill_bytes: int
    loads: Counter[int]
    stores: Counter[int]
    matrix: Counter[str]
    barriers: int

    @property
    def wide_load_share(self) -> float:
        """The share of the loaded bytes that instructions of 128 bits or more carry."""
        return round(moved_bytes(self.loads, 128) / max(1, moved_bytes(self.loads)), 3)


def moved_bytes(widths: Counter[int], at_least: int = 0) -> int:
    """Adds up the bytes that instructions of `at_least` so many bits move."""
    return sum(bits * count for bits, count in widths.items() if bits >= at_least) // 8


def read_cubin(cubin: bytes) -> Code:
    """Reads an NVIDIA binary, through the disassembler that Triton ships."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = (triton.knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    local, loads, stores = Counter[int](), Counter[int](), Counter[int]()
    matrix, barriers = Counter[str](), 0
    kinds = {"LDG": loads, "LDGSTS": loads, "STG": stores, "LDL": local, "STL": local}
    for instruction in _SASS.findall(text):
        opcode, *modifiers = instruction.split(".")
        if opcode in kinds:
            kinds[opcode][next((_SASS_BITS[m] for m in modifiers if m in _SASS_BITS), 32)] += 1
        elif _SASS_MATRIX.fullmatch(opcode):
            matrix[opcode] += 1
        barriers += opcode == "BAR"
    return Code(_number(r"REG:(\d+)", text), moved_bytes(local), loads, stores, matrix, barriers)


def read_amdgcn(text: str) -> Code:
    """Reads AMD assembly, with the numbers of its metadata."""
    widths = {"load": Counter[int](), "store": Counter[int]()}
    for kind, width in _GCN_MEMORY.findall(text):
        widths[kind][_GCN_BITS.get(width, 32)] += 1
    matrix = Counter(name.upper() for name in re.findall(r"^\s+v_(mfma|wmma)", text, re.M))
    return Code(
        registers=_number(r"\.vgpr_count:\s*(\d+)", text),
        spill_bytes=4 * _number(r"\.vgpr_spill_count:\s*(\d+)", text),
        loads=widths["load"],
        stores=widths["store"],
        matrix=matrix,
        barriers=len(re.findall(r"^\s+s_barrier", text, re.M)),
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in what the disassembler prints")
    return int(found[1])
