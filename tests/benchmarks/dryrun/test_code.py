"""What is read from PTX and TTIR. Whole kernels are in planted.py."""

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")
from benchmarks.dryrun.code import overflows, uneven_sums

SUM = """
    mul.f32 %f3, %f1, %f2;
    mov.b32 %r1, %f3;
    shfl.sync.bfly.b32 %r2, %r1, 16, 31, -1;
    mov.b32 %f4, %r2;
    {}
"""
FMA = "fma.rn.f32 %f5, %f1, %f2, %f4;"


@pytest.mark.parametrize(
    "last, found",
    [
        (FMA, [FMA.rstrip(";")]),
        ("@%p1 fma.rn.ftz.f32 %f5, %f2, %f1, %f4;", ["fma"]),
        ("add.f32 %f5, %f3, %f4;", []),
        ("fma.rn.f32 %f5, %f1, %f9, %f4;", []),
        ("fma.rn.f32 %f5, %f1, %f2, %f3;", []),
    ],
    ids=["contracted", "swapped", "add", "another product", "no shuffle"],
)
def test_sums_whose_lanes_differ(last, found):
    lines = uneven_sums(SUM.format(last))
    assert len(lines) == len(found) and all(word in line for word, line in zip(found, lines))


TTIR = """
  tt.func public @kernel(%out_ptr: !tt.ptr<f32>, %n: i32) attributes {{noinline = false}} {{
    %c4 = arith.constant 4096 : i32 loc(#loc1)
    %row = tt.get_program_id x : i32 loc(#loc2)
    {} loc(#loc2)
  }}
#loc1 = loc(unknown)
#loc2 = loc("/somewhere/kernel.py":7:3)
"""


def variant(text: str, programs: int, n: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        kernel=SimpleNamespace(asm={"ttir": TTIR.format(text)}),
        grids=Counter({(programs, 1, 1): 1, (2, 1, 1): 1}),
        integers={"n": n},
        arguments={"out_ptr": ("*fp32", "D"), "n": ("i32", "")},
        constants=set(),
    )


@pytest.mark.parametrize(
    "text, programs, n, reached",
    [
        ("%0 = arith.muli %row, %c4 : i32", 2**19, (0, 0), None),  # 2^31 - 4096
        ("%0 = arith.muli %row, %c4 : i32", 2**19 + 1, (0, 0), "2,147,483,648"),
        ("%0 = arith.muli %row, %c4 : i64", 2**30, (0, 0), None),
        ("%0 = arith.muli %n, %c4 : i32", 1, (5, 2**20), "4,294,967,296"),
        ("%0 = arith.subi %row, %n : i32", 5, (0, 2**31 - 1), None),
        ("%0 = arith.subi %n, %row : i32", 2**31 - 1, (-10, 0), "-2,147,483,656"),
        ("%0 = arith.addi %n, %row : i32", 2, (0, 2**31 - 2), None),
        ("%0 = arith.addi %n, %row : i32", 2, (0, 2**31 - 1), "2,147,483,648"),
        ("%0 = arith.maxsi %n, %c4 : i32", 1, (1, 5000), None),
        ("%1 = arith.remsi %n, %c4 : i32\n    %0 = arith.muli %1, %c4 : i32", 1, (0, 2**31 - 1), None),
    ],
)
def test_offsets_of_32_bits(text, programs, n, reached):
    found, unknown = overflows(variant(text, programs, n))
    assert unknown == 0 and len(found) == (reached is not None)
    if reached is not None:
        assert reached in found[0] and found[0].endswith("at kernel.py:7")


def test_an_offset_that_is_not_followed_is_counted():
    text = "%0 = tt.load %out_ptr : i32\n    %1 = tt.addptr %out_ptr, %0 : !tt.ptr<f32>, i32"
    assert overflows(variant(text, 1, (0, 0))) == ([], 1)
