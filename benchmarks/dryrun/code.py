"""What is wrong with a compiled kernel: spills, shared memory, lanes that differ, 32-bit offsets that overflow."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import triton

from .cards import Card
from .launches import Variant

Range = tuple[int, int]


class Resources(NamedTuple):
    """What a program of a compiled kernel takes: registers of a thread, bytes of its stack, shared bytes."""

    registers: int
    stack: int
    shared: int


def read(variant: Variant) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(variant.kernel.asm["cubin"])
        file.flush()
        command = (triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = (int(number) for number in re.search(r"REG:(\d+) STACK:(\d+)", text).groups())
    return Resources(registers, stack, variant.kernel.metadata.shared)


def faults(variant: Variant, resources: Resources, card: Card) -> Iterator[str]:
    """One line for each fault of a variant on a card."""
    if resources.stack:
        yield f"{variant.name} spills: {resources.stack} bytes of stack"
    if resources.shared > card.shared:
        yield f"{variant.name} wants {resources.shared:,} bytes of shared memory, sm_{card.arch} has {card.shared:,}"
    for line in uneven_sums(variant.kernel.asm["ptx"]):
        yield f"{variant.name}: lanes of a sum differ, an fma adds a shuffle of its own product: {line}"
    found, _ = overflows(variant)
    for text in found:
        yield f"{variant.name}: 32-bit {text}"


def uneven_sums(ptx: str) -> list[str]:
    """Every fma whose addend is a shuffle of its own product: r = a b + shuffle(a b).

    Each lane then rounds its neighbour's product and not its own, so lanes that all store the sum differ in a bit.
    """
    definitions: dict[str, tuple[str, list[str]]] = {}
    found = []
    for line in ptx.splitlines():
        match = re.match(r"\s*(?:@!?%\w+ )?([a-z][\w.]*)\s+([^;]*);", line)
        if not match:
            continue
        operation = match[1]
        operands = re.findall(r"%\w+|[\w.-]+", match[2])
        if len(operands) < 2:
            continue

        def origin(register: str) -> tuple[str, list[str]]:
            """The operation that made a register, behind moves."""
            while True:
                operation, operands = definitions.get(register, ("", []))
                if not operation.startswith("mov"):
                    return operation, operands
                register = operands[0]

        if re.fullmatch(r"fma\.rn(\.ftz)?\.f32", operation):
            shuffle, shuffled = origin(operands[3])
            product, factors = origin(shuffled[0]) if shuffle.startswith("shfl") else ("", [])
            if product.startswith("mul") and sorted(factors) == sorted(operands[1:3]):
                found.append(" ".join(line.split()))
        definitions[operands[0]] = operation, operands[1:]
    return found


def overflows(variant: Variant) -> tuple[list[str], int]:
    """32-bit sums and products that can pass 2^31, and how many offsets depend on what is not followed.

    An interval analysis of the kernel's TTIR with the grids and integers of all its launches. Loaded values and those
    that loops carry are not followed.
    """
    text = variant.kernel.asm["ttir"]
    where = _places(text)
    ranges = _arguments(variant, text)
    grid = [max(size) for size in zip(*variant.grids)]
    found, unknown = [], 0
    for line in text.splitlines():
        match = re.match(r'\s*(?:(%\w+)(?::\d+)? = )?"?([\w.]+)"? ?(.*)', line)
        if not match:
            continue
        out, operation, rest = match.groups()
        if operation == "scf.for":
            if loop := re.match(r"(%\w+) = (%\w+) to (%\w+) step", rest):
                low, high = ranges.get(loop[2]), ranges.get(loop[3])
                ranges[loop[1]] = (low[0], max(low[0], high[1] - 1)) if low and high else None
            continue
        if operation == "tt.addptr":
            offset = re.match(r"%\w+, (%\w+)", rest)
            kind = rest.split(":")[-1].split(" loc")[0].split(",")[-1]
            unknown += bool(offset and re.search(r"[x, ]i32>?", kind) and ranges.get(offset[1]) is None)
        if out is None:
            continue
        operands = [ranges.get(name) for name in re.findall(r"%\w+", rest.split(" : ")[0])]
        value = ranges[out] = _range(operation, rest, operands, grid)
        kind = rest.split(" : ")[-1].split(" loc")[0].strip() if " : " in rest else ""
        computed = operation.startswith("arith.") and operation != "arith.constant"
        if value and computed and re.search(r"(^|x)i32>?$", kind) and not -(2**31) <= value[0] <= value[1] < 2**31:
            most = value[1] if value[1] >= 2**31 else value[0]
            found.append(f"{operation} reaches {most:,} at {where(line)}")
    return found, unknown


def _places(text: str) -> Callable[[str], str]:
    """A function from a line of TTIR to the file and line that it was made from."""
    lines = {m[1]: m[2] for m in re.finditer(r'^#(loc\d*) = loc\("[^"]*?([^/"]+":\d+)', text, re.M)}
    alias = {m[1]: m[2] for m in re.finditer(r"^#(loc\d*) = loc\((?:\"[^\"]*\"\()?#?(loc\d*)", text, re.M)}

    def where(line: str) -> str:
        found = re.search(r"loc\(#(loc\d*)\)", line)
        name = found[1] if found else ""
        for _ in range(5):
            if name in lines:
                return lines[name].replace('"', "")
            name = alias.get(name, "")
        return "an unknown line"

    return where


def _arguments(variant: Variant, text: str) -> dict[str, Range | None]:
    """The values that each argument of the kernel had."""
    header = re.search(r"tt\.func public @\w+\((.*?)\) attributes", text, re.S)
    found = re.findall(r"(%\w+): ", header[1] if header else "")
    names = [name for name in variant.arguments if name not in variant.constants]
    ranges: dict[str, Range | None] = {}
    for argument, name in zip(found, names):
        # Newer versions of Triton keep the names.
        own = argument.lstrip("%")
        ranges[argument] = variant.integers.get(own if own in variant.integers else name)
    return ranges


# Operations that hand on the values of their first operand.
_SAME = (
    "tt.splat", "tt.expand_dims", "tt.broadcast", "tt.reshape", "tt.trans", "arith.extsi", "arith.extui",
    "ttg.convert_layout", "arith.index_cast",
)  # fmt: skip
_CORNERS: dict[str, Callable[[int, int], int]] = {
    "arith.addi": lambda x, y: x + y,
    "arith.subi": lambda x, y: x - y,
    "arith.muli": lambda x, y: x * y,
    "arith.shli": lambda x, y: x << y,
    "arith.shrsi": lambda x, y: x >> y,
    "arith.divsi": lambda x, y: x // y,
    "arith.divui": lambda x, y: x // y,
    "arith.maxsi": max,
    "arith.minsi": min,
}


def _range(operation: str, rest: str, operands: list[Range | None], grid: list[int]) -> Range | None:
    """The values that an operation's result can have; None where that is not known."""
    if operation == "arith.constant":
        number = re.search(r"(?:dense<)?(-?\d+)>? : ", rest)
        return (int(number[1]), int(number[1])) if number else None
    if operation in ("tt.get_program_id", "tt.get_num_programs"):
        size = grid["xyz".index(rest.strip()[0])]
        return (0, size - 1) if operation == "tt.get_program_id" else (1, size)
    if operation == "tt.make_range":
        end, start = (int(re.search(rf"{name} = (\d+)", rest)[1]) for name in ("end", "start"))
        return start, end - 1
    if operation in _SAME:
        return operands[0] if operands else None
    if operation == "arith.select":
        operands = operands[1:]
    if len(operands) < 2 or operands[0] is None or operands[1] is None:
        b = operands[1] if len(operands) > 1 else None
        if operation in ("arith.remsi", "arith.remui") and b is not None and b[0] == b[1] > 0:
            return 1 - b[0], b[0] - 1
        return None
    a, b = operands[:2]
    if operation == "arith.select":
        return min(a[0], b[0]), max(a[1], b[1])
    if operation in ("arith.remsi", "arith.remui") and b[0] == b[1] > 0:
        return (0, min(b[0] - 1, a[1])) if a[0] >= 0 else (1 - b[0], b[0] - 1)
    shifts, divides = operation.startswith("arith.sh"), operation.startswith("arith.div")
    if operation not in _CORNERS or (divides and (a[0] < 0 or b[0] <= 0)) or (shifts and b[0] < 0):
        return None
    values = [_CORNERS[operation](x, y) for x in a for y in b]
    return min(values), max(values)
