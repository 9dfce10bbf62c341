"""A dry run finds each fault that was planted (planted.py), and nothing wrong with the controls."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.common import REPOSITORY

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

# Each fault, and what a line about it says; a control says nothing.
EXPECTED = {
    "offset_past_32_bits": "32-bit arith.muli reaches 4,294,963,200 at planted.py:",
    "no_offset_past_64_bits": None,
    "grid": "grid (1, 70000, 1) of rows_in_64_bits is beyond the card's",
    "shared_memory": "product wants 393,216 bytes of shared memory, sm_90 has 232,448",
    "no_shared_memory": None,
    "spill": "many_values spills",
    "lanes_that_differ": "sum_of_products: lanes of a sum differ",
    "no_lanes_that_differ": None,
    "item_in_a_capture": "in a capture: waits: item",
    "pageable_copy_in_a_capture": "in a capture: waits: copy of [64] to the device",
    "no_wait_of_a_pinned_copy_in_a_capture": None,
    "pinned_allocation_in_a_capture": "in a capture: allocates pinned memory",
    "allocation_on_another_stream_in_a_capture": "outside of the graph's pool",
    "no_allocation_outside_of_the_pool": None,
    "compile_in_a_capture": "in a capture: compiles rows_in_64_bits",
    "no_compile_in_a_capture": None,
    "freed_memory_in_a_graph": "a graph points to memory that was freed: 1",
    "no_freed_memory_in_a_graph": None,
    "launch_on_another_device": "rows_in_64_bits is launched on cuda:0 with a tensor on cuda:1",
    "no_launch_on_another_device": None,
    "compiled_for_other_addresses": "it was compiled for multiples of 16",
    "compiled_for_another_constant": "with H = 8, it was compiled for 16",
    "no_other_arguments_than_compiled_for": None,
    "operands_on_two_devices": "raises FakeTensorDeviceMismatchError",
    "pointer_to_the_host": "rows_in_64_bits is launched with a tensor on cpu",
    "out_of_memory": "out of memory: 400,000 MB wanted",
    "rounded_sums": "may round sums to torch.bfloat16",
    "no_rounded_sums": None,
    "written_while_it_is_copied": "writes to pinned memory while a copy of it may be under way",
    "no_write_while_it_is_copied": None,
    "read_before_it_has_come": "reads pinned memory before the copy into it has ended",
    "no_read_before_it_has_come": None,
    "no_memory_of_graphs_that_are_gone": None,
    "memory_of_graphs": "out of memory: 68,000 MB wanted",
    "read_while_it_is_copied": "reads pinned memory before the copy into it has ended",
}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TRITON_DEFAULT_FP_FUSION": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "tests.benchmarks.dryrun.planted"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_fault_is_planted(found):
    assert list(found) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_fault_is_found_and_a_control_is_clean(name, found):
    if EXPECTED[name] is None:
        assert found[name] == []
    else:
        assert any(EXPECTED[name] in line for line in found[name]), found[name]
