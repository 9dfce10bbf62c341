"""What an engine may launch, copy, wait for, compile and hold: one table, and what a run did beyond it."""

import math
from collections import Counter
from collections.abc import Iterator

from .cards import CONTEXT_BYTES, Allocator
from .scenario import Driven
from .world import Graph, Step, World

# Launches of one layer: (tokens of the step up to, launches), in graphs and outside of them.
Table = tuple[tuple[float, int], ...]
LAYER: dict[tuple[str, str], Table] = {
    ("experts", "graph"): ((8, 9), (16, 11), (math.inf, 13)),
    ("experts", "eager"): ((8, 8), (16, 10), (math.inf, 12)),
    ("dense", "graph"): ((8, 8), (math.inf, 10)),
    ("dense", "eager"): ((8, 7), (math.inf, 9)),
}
# Outside of graphs: the last layer picks the rows that sample; decodes beside chunks have attention of their own.
LAST_LAYER = MIXED = 3
# Launches outside of layers: in a graph, of a decode step beside its graph, of any other step.
GRAPH_OUTSIDE, DECODE_OUTSIDE, STEP_OUTSIDE = 4, 20, 30
# Copies from the host: of a decode step, of any other step, which prepares the next one too.
DECODE_COPIES, STEP_COPIES = 1, 4
WAITS = 1
LOAD_COPIES = 0  # that are not from pinned memory
VARIANTS, GRAPHS = 32, 13
# Programs of decode attention while no context is longer than one split: at least one for each key/value head has work.
ATTENTION, ONE_SPLIT = "decode_split_kernel", 128
ATTENTION_PROGRAMS = 3 * 132


def check(world: World, driven: Driven, steps: list[Step], variants: int, serving: Counter[str]) -> None:
    """Notes as breaches of `world` what a driven engine did beyond the limits.

    variants: how many kernels were compiled; serving: those compiled after load.
    """
    llm = driven.llm
    for name, count in serving.items():
        world.breach(f"{name}: {_times(count, 'variant')} compiled while requests are served", "serving")
    if variants > VARIANTS:
        world.breach(f"{variants} variants, the limit is {VARIANTS}", "all")
    copies = sum(n for text, n in world.waits.items() if text.startswith("[load] copy") and "to the device" in text)
    if copies > LOAD_COPIES:
        world.breach(f"{_times(copies, 'copy', 'copies')} to the device from memory that is not pinned", "load")
    _check_memory(world, driven)
    kinds = ["experts" if llm.config.is_moe_layer(i) else "dense" for i in range(llm.config.num_layers)]
    graphs = {step.graph: step for step in steps if step.graph is not None}
    if len(graphs) > GRAPHS:
        world.breach(f"{len(graphs)} sizes of graphs, the limit is {GRAPHS}", "all")
    for graph in graphs:
        if graph.phase != "load":
            world.breach("a graph is recorded while requests are served", graph.phase)
    found = [(step, beyond) for graph, step in graphs.items() for beyond in _of_graph(graph, step, kinds, driven)]
    found += [(step, beyond) for step in steps for beyond in _of_step(step, kinds)]
    # One line for each limit, with the worst number.
    worst = {what: max(number for _, (other, number) in found if other == what) for _, (what, _) in found}
    for step, (what, _) in found:
        world.breach(what.format(worst[what]), step.phase)


def _check_memory(world: World, driven: Driven) -> None:
    llm = driven.llm
    allocator = world.allocators[llm.device.index or 0]
    budget = memory_budget(llm.engine_config.memory_utilization, allocator)
    for what, held in (("after load", driven.loaded + CONTEXT_BYTES), ("at the peak", allocator.peak_held)):
        if held > budget:
            world.breach(f"{held / 1e9:.2f} GB held {what}, memory_utilization allows {budget / 1e9:.2f}", "memory")


def memory_budget(utilization: float, allocator: Allocator) -> int:
    return int(utilization * allocator.total)


# What was beyond a limit, with {} for the number, and the number.
Beyond = tuple[str, int]


def _of_graph(graph: Graph, step: Step, kinds: list[str], driven: Driven) -> Iterator[Beyond]:
    counts = Counter(launch.layer for launch in graph.launches)
    yield from _layers(counts, kinds, "graph", step.num_tokens, 0)
    if counts[None] > GRAPH_OUTSIDE:
        yield f"a graph has {{}} launches outside of layers, the limit is {GRAPH_OUTSIDE}", counts[None]
    attention = [math.prod(launch.grid) for launch in graph.launches if launch.name == ATTENTION]
    if not attention:
        yield f"a graph has {{}} launches of {ATTENTION}, whose programs are limited", 0
    elif max(step.contexts) <= ONE_SPLIT:
        work = len(step.contexts) * driven.llm.config.num_kv_heads
        if max(attention) > max(ATTENTION_PROGRAMS, 2 * work):
            limit = f"the limit is {ATTENTION_PROGRAMS}, or 2 for each that has work"
            yield f"attention starts {{:,}} programs in a graph, {limit}", max(attention)


def _of_step(step: Step, kinds: list[str]) -> Iterator[Beyond]:
    counts = Counter(launch.layer for launch in step.launches)
    what = "a decode step" if step.decode else "a step"
    outside = counts.pop(None, 0)
    if step.decode and step.graph is None:
        yield f"{what} has {{}} graphs", 0
    if step.decode and counts:
        yield f"{what} makes {{}} launches of its layers outside of a graph", counts.total()
    elif counts:
        yield from _layers(counts, kinds, "eager", step.num_tokens, MIXED if len(step.contexts) > 1 else 0)
    limit = DECODE_OUTSIDE if step.decode else STEP_OUTSIDE
    if outside > limit:
        yield f"{what} makes {{}} launches outside of layers, the limit is {limit}", outside
    limit = DECODE_COPIES if step.decode else STEP_COPIES
    if step.copies > limit:
        yield f"{what} copies {{}} times from the host, the limit is {limit}", step.copies
    if step.waits > WAITS:
        yield f"{what} waits {{}} times for the device, the limit is {WAITS}", step.waits


def _layers(counts: Counter, kinds: list[str], where: str, tokens: int, mixed: int) -> Iterator[Beyond]:
    """Layers that launch more than their kind may."""
    for i, kind in enumerate(kinds):
        last = LAST_LAYER if i == len(kinds) - 1 and where == "eager" else 0
        most, limit = next((most, launches) for most, launches in LAYER[kind, where] if tokens <= most)
        limit += max(last, mixed)
        if counts[i] > limit:
            size = "any number of" if most == math.inf else f"up to {most}"
            yield f"a layer ({kind}, {where}, {size} tokens) launches {{}} kernels, the limit is {limit}", counts[i]


def _times(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
