"""Faults planted in a world without an engine, and controls beside them: prints {name: [breaches]} as JSON.

In a process of its own, as a dry run is: `python -m tests.benchmarks.dryrun.planted`.
"""

import gc
import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from benchmarks.dryrun import code, launches, stand_in
from benchmarks.dryrun.cards import CARDS
from benchmarks.dryrun.world import World


@triton.jit
def rows_in_32_bits(out_ptr, H: tl.constexpr):
    row = tl.program_id(0)
    tl.store(out_ptr + row * H + tl.arange(0, H), 0.0)


@triton.jit
def rows_in_64_bits(out_ptr, H: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + row * H + tl.arange(0, H), 0.0)


@triton.jit
def product(out_ptr, a_ptr, n, B: tl.constexpr):
    i = tl.arange(0, B)
    acc = tl.zeros((B, B), tl.float32)
    for k in range(0, n, B):
        a = tl.load(a_ptr + i[:, None] * n + (k + i)[None, :])
        b = tl.load(a_ptr + (k + i)[:, None] * n + i[None, :])
        acc = tl.dot(a, b, acc)
    tl.store(out_ptr + i[:, None] * B + i[None, :], acc)


@triton.jit
def many_values(out_ptr, a_ptr, B: tl.constexpr):
    i = tl.arange(0, B)
    x = tl.load(a_ptr + i[:, None] * B + i[None, :]).to(tl.float32)
    y = tl.load(a_ptr + i[:, None] * B + i[None, :] + B * B).to(tl.float32)
    x *= tl.sum(tl.sum(x * y, 1), 0)
    tl.store(out_ptr + i[:, None] * B + i[None, :], x * tl.sum(tl.sum(x + y, 1), 0) + y)


@triton.jit
def sum_of_products(out_ptr, a_ptr, FUSED: tl.constexpr):
    i = tl.arange(0, 32)
    x = tl.load(a_ptr + i)
    y = tl.load(a_ptr + 32 + i)
    total = tl.sum(x * y, 0) if FUSED else tl.sum(tl.fma(x, y, tl.zeros_like(x)), 0)
    tl.store(out_ptr + i, total + x)


class Faults:
    """Each method is a fault, or a control where its name begins with `no_`. x: a small tensor on the device."""

    def __init__(self) -> None:
        self.big = torch.empty(2**20, 4096, dtype=torch.bfloat16, device="cuda:0")
        self.x = torch.empty(64, device="cuda:0")
        rows_in_64_bits[(4,)](self.x, 16)

    def offset_past_32_bits(self) -> None:
        rows_in_32_bits[(2**20,)](self.big, 4096)

    def no_offset_past_64_bits(self) -> None:
        rows_in_64_bits[(2**20,)](self.big, 4096)

    def grid(self) -> None:
        rows_in_64_bits[(1, 70000)](self.big, 4096)

    def shared_memory(self) -> None:
        product[(1,)](self.big, self.big, 4096, 128, num_warps=8, num_stages=6)

    def no_shared_memory(self) -> None:
        product[(1,)](self.big, self.big, 4096, 64, num_warps=4, num_stages=2)

    def spill(self) -> None:
        many_values[(1,)](self.big, self.big, 64, num_warps=1)

    def lanes_that_differ(self) -> None:
        sum_of_products[(1,)](self.x, self.x, True, num_warps=1)

    def no_lanes_that_differ(self) -> None:
        sum_of_products[(1,)](self.x, self.x, False, num_warps=1)

    def item_in_a_capture(self) -> None:
        captured(lambda: self.x.sum().item())

    def pageable_copy_in_a_capture(self) -> None:
        captured(lambda: self.x.copy_(torch.zeros(64), non_blocking=True))

    def no_wait_of_a_pinned_copy_in_a_capture(self) -> None:
        pinned = torch.tensor([1.0] * 64, pin_memory=True)
        captured(lambda: self.x.copy_(pinned, non_blocking=True))

    def pinned_allocation_in_a_capture(self) -> None:
        captured(lambda: torch.empty(64, pin_memory=True))

    def allocation_on_another_stream_in_a_capture(self) -> None:
        def run() -> None:
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.empty(64, device="cuda:0")

        captured(run)

    def no_allocation_outside_of_the_pool(self) -> None:
        captured(lambda: self.x + 1)

    def compile_in_a_capture(self) -> None:
        captured(lambda: rows_in_64_bits[(4,)](self.x, 8))

    def no_compile_in_a_capture(self) -> None:
        captured(lambda: rows_in_64_bits[(4,)](self.x, 16))

    def freed_memory_in_a_graph(self) -> None:
        outside = [torch.empty(64, device="cuda:0")]
        graph = captured(lambda: rows_in_64_bits[(4,)](outside[0], 16))
        outside.clear()
        gc.collect()
        graph.replay()

    def no_freed_memory_in_a_graph(self) -> None:
        captured(lambda: rows_in_64_bits[(4,)](self.x, 16)).replay()

    def launch_on_another_device(self) -> None:
        rows_in_64_bits[(4,)](torch.empty(64, device="cuda:1"), 16)

    def no_launch_on_another_device(self) -> None:
        with torch.cuda.device("cuda:1"):
            rows_in_64_bits[(4,)](torch.empty(64, device="cuda:1"), 16)

    def compiled_for_other_addresses(self) -> None:
        compiled = rows_in_64_bits[(4,)](self.x, 16)
        compiled[(4,)](self.x[1:], 16)

    def compiled_for_another_constant(self) -> None:
        compiled = rows_in_64_bits[(4,)](self.x, 16)
        compiled[(4,)](self.x, 8)

    def no_other_arguments_than_compiled_for(self) -> None:
        compiled = rows_in_64_bits[(4,)](self.x, 16)
        compiled[(4,)](self.x[16:], 16)

    def operands_on_two_devices(self) -> None:
        self.x + torch.empty(64, device="cuda:1")

    def pointer_to_the_host(self) -> None:
        rows_in_64_bits[(4,)](torch.empty(64), 16)

    def out_of_memory(self) -> None:
        torch.empty(10**11, device="cuda:0")

    def rounded_sums(self) -> None:
        self.big[:4] @ self.big[:4].T

    def no_rounded_sums(self) -> None:
        self.big[:4].float() @ self.big[:4].float().T
        flags = torch.backends.cuda.matmul
        flags.allow_bf16_reduced_precision_reduction = False
        self.big[:4] @ self.big[:4].T
        flags.allow_bf16_reduced_precision_reduction = True

    def written_while_it_is_copied(self) -> None:
        pinned = torch.zeros(64, pin_memory=True)
        self.x.copy_(pinned, non_blocking=True)
        pinned.fill_(1)

    def no_write_while_it_is_copied(self) -> None:
        pinned, event = torch.zeros(64, pin_memory=True), torch.cuda.Event()
        self.x.copy_(pinned, non_blocking=True)
        event.record()
        event.synchronize()
        pinned.fill_(1)

    def read_before_it_has_come(self) -> None:
        self.x.to("cpu", non_blocking=True).tolist()

    def no_read_before_it_has_come(self) -> None:
        came = self.x.to("cpu", non_blocking=True)
        torch.cuda.current_stream().synchronize()
        assert came.tolist() == came.numpy().tolist() == [0.0] * 64

    def no_memory_of_graphs_that_are_gone(self) -> None:
        graph = captured(lambda: torch.empty(12 * 10**9, device="cuda:0"))
        del graph
        torch.cuda.empty_cache()
        torch.empty(17 * 10**9, device="cuda:0")

    def memory_of_graphs(self) -> None:
        self.graph = captured(lambda: torch.empty(12 * 10**9, device="cuda:0"))
        torch.cuda.empty_cache()
        torch.empty(17 * 10**9, device="cuda:0")

    def read_while_it_is_copied(self) -> None:
        pinned = torch.zeros(64, pin_memory=True)
        pinned.copy_(self.x, non_blocking=True)
        pinned.tolist()


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def main() -> None:
    world = World(CARDS[90], int(80e9))
    stand_in.enter(world)
    variants = launches.intercept(world)
    found: dict[str, list[str]] = {}

    def plant() -> None:
        faults = Faults()
        for name in [name for name in vars(Faults) if not name.startswith("__")]:
            world.breaches.clear()
            first = len(variants)
            try:
                getattr(faults, name)()
            except Exception as error:
                world.fails(error)
            for variant in variants[first:]:
                for text in code.faults(variant, code.read(variant), world.card):
                    world.breach(text)
            found[name] = world.lines()

    stand_in.in_thread(plant)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
