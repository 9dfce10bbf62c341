"""Each limit: what is at it passes, one more is a breach."""

from collections import Counter
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")
from benchmarks.dryrun import limits
from benchmarks.dryrun.cards import CARDS, CONTEXT_BYTES
from benchmarks.dryrun.world import Graph, Launch, Step, World

TOTAL = 10**10


def launched(count: int, layer: int | None = None, name: str = "k", grid: tuple[int, ...] = (1,)) -> list[Launch]:
    return [Launch(name, "load", layer, False, grid) for _ in range(count)]


def decode(world: World, sequences: int = 1, context: int = 5, programs: int = 1, layer: int = 8, outside: int = 4):
    """A decode step with a graph of two layers."""
    graph = Graph(world)
    graph.phase = "load"
    attention = launched(1, 0, limits.ATTENTION, (programs, 1, 1))
    graph.launches = attention + launched(layer, 0) + launched(9, 1) + launched(outside)
    return Step("decode", True, sequences, [context] * sequences, waits=1, copies=1, graph=graph)


def eager(tokens: int = 20, sequences: int = 1, layer: int = 12, last: int = 12, outside: int = 0) -> Step:
    step = Step("prefill", False, tokens, [tokens] * sequences)
    step.launches = launched(layer, 0) + launched(last, 1) + launched(outside)
    return step


def breaches(steps=(), world=None, variants=0, serving=(), loaded=0, waits=(), dense=False) -> list[str]:
    world = world or World(CARDS[90], TOTAL)
    world.waits.update(waits)
    config = SimpleNamespace(num_layers=2, num_kv_heads=4, is_moe_layer=lambda i: not dense)
    llm = SimpleNamespace(
        config=config, device=SimpleNamespace(index=0), engine_config=SimpleNamespace(memory_utilization=0.9)
    )
    limits.check(world, SimpleNamespace(llm=llm, loaded=loaded), list(steps), variants, Counter(serving))
    return world.lines()


def of_decode(**given) -> list[str]:
    world = World(CARDS[90], TOTAL)
    return breaches([decode(world, **given)], world)


@pytest.mark.parametrize("given", [{}, {"sequences": 8}, {"sequences": 9, "layer": 10}, {"sequences": 17, "layer": 12}])
def test_a_graph_within_its_limits(given):
    assert of_decode(**given) == []


@pytest.mark.parametrize(
    "given, said",
    [
        ({"layer": 9}, "a layer (experts, graph, up to 8 tokens) launches 10 kernels, the limit is 9"),
        (
            {"layer": 11, "sequences": 9},
            "a layer (experts, graph, up to 16 tokens) launches 12 kernels, the limit is 11",
        ),
        ({"layer": 13, "sequences": 17}, "(experts, graph, any number of tokens) launches 14 kernels, the limit is 13"),
        ({"outside": 5}, "a graph has 5 launches outside of layers, the limit is 4"),
        ({"programs": 397}, "attention starts 397 programs in a graph, the limit is 396"),
        ({"programs": 801, "sequences": 100, "layer": 12}, "attention starts 801 programs"),
    ],
)
def test_a_graph_beyond_a_limit(given, said):
    (line,) = of_decode(**given)
    assert line.startswith("[decode]") and said in line


def test_programs_of_attention_with_work():
    assert of_decode(programs=396) == [] and of_decode(programs=800, sequences=100, layer=12) == []
    assert of_decode(programs=5000, context=limits.ONE_SPLIT + 1) == [], "longer contexts have more splits"


def test_a_graph_without_the_kernel_whose_programs_are_limited():
    world = World(CARDS[90], TOTAL)
    step = decode(world)
    step.graph.launches = [launch for launch in step.graph.launches if launch.name != limits.ATTENTION]
    assert breaches([step], world) == [
        f"[decode] a graph has 0 launches of {limits.ATTENTION}, whose programs are limited"
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"waits": 2}, "a decode step waits 2 times for the device, the limit is 1"),
        ({"copies": 2}, "a decode step copies 2 times from the host, the limit is 1"),
        ({"launches": launched(21)}, "a decode step makes 21 launches outside of layers, the limit is 20"),
        ({"launches": launched(1, 1)}, "a decode step makes 1 launches of its layers outside of a graph"),
        ({"graph": None}, "a decode step has 0 graphs"),
    ],
)
def test_a_decode_step_beyond_a_limit(change, said):
    world = World(CARDS[90], TOTAL)
    step = decode(world)
    step.launches = launched(20)
    assert breaches([step], world) == []
    for name, value in change.items():
        setattr(step, name, value)
    assert breaches([step], World(CARDS[90], TOTAL)) == [f"[decode] {said}"]


@pytest.mark.parametrize(
    "given, limit",
    [
        ({"tokens": 8, "layer": 8, "last": 11}, 8),
        ({"tokens": 9, "layer": 10, "last": 13}, 10),
        ({"tokens": 17, "layer": 12, "last": 15}, 12),
        ({"tokens": 17, "sequences": 2, "layer": 15, "last": 15}, 15),
        ({"tokens": 17, "outside": 30}, 30),
    ],
)
def test_a_step_without_a_graph(given, limit):
    assert breaches([eager(**given)]) == []
    more = "outside" if "outside" in given else "layer"
    (line,) = breaches([eager(**given | {more: given[more] + 1})])
    assert f"{limit + 1} " in line and f"the limit is {limit}" in line
    if "last" in given:
        assert len(breaches([eager(**given | {"last": given["last"] + 1})])) == 1


def test_layers_without_experts_have_limits_of_their_own():
    assert breaches([eager(tokens=8, layer=7, last=10)], dense=True) == []
    (line,) = breaches([eager(tokens=8, layer=8, last=10)], dense=True)
    assert "a layer (dense, eager, up to 8 tokens) launches 8 kernels, the limit is 7" in line


def test_the_worst_of_many_steps_is_one_line():
    steps = [eager(tokens=20, layer=n) for n in (13, 14, 13)]
    steps[2].phase = "mixed"
    (line,) = breaches(steps)
    assert line.startswith("[prefill and 1 more] a layer") and "launches 14 kernels" in line


def test_variants_and_graphs():
    assert breaches(variants=32) == []
    assert breaches(variants=33) == ["[all] 33 variants, the limit is 32"]
    assert breaches(serving={"k": 2}) == ["[serving] k: 2 variants compiled while requests are served"]
    world = World(CARDS[90], TOTAL)
    steps = [decode(world) for _ in range(13)]
    assert breaches(steps, world) == []
    steps.append(decode(world))
    assert breaches(steps, world) == ["[all] 14 sizes of graphs, the limit is 13"]
    steps = steps[:1]
    steps[0].graph.phase = "decode 4"
    assert breaches(steps) == ["[decode 4] a graph is recorded while requests are served"]


def test_copies_at_load_are_from_pinned_memory():
    assert breaches(waits={"[load] copy of [5] to the host": 1, "[decode] copy of [5] to the device": 1}) == []
    (line,) = breaches(waits={"[load] copy of [5] to the device": 2})
    assert line == "[load] 2 copies to the device from memory that is not pinned"


def test_memory_is_within_its_share():
    share = 9 * TOTAL // 10
    assert breaches(loaded=share - CONTEXT_BYTES) == []
    (line,) = breaches(loaded=share - CONTEXT_BYTES + 10**7)
    assert line == "[memory] 9.01 GB held after load, memory_utilization allows 9.00"
    world = World(CARDS[90], TOTAL)
    world.allocators[0].peak_reserved = share
    (line,) = breaches(world=world)
    assert "held at the peak" in line


def test_breaches_that_are_alike_are_one_line():
    world = World(CARDS[90], TOTAL)
    for world.phase, count in ("decode 8", 8), ("decode 16", 16):
        world.fails(ValueError(f"a step of {count}\ntokens did not fit"))
        world.breach(f"{count} of them", like="them")
    world.fails(TypeError("a step of 8 tokens did not fit"))
    assert world.lines() == [
        "[decode 8 and 1 more] raises ValueError: a step of 8 tokens did not fit",
        "[decode 8 and 1 more] 8 of them",
        "[decode 16] raises TypeError: a step of 8 tokens did not fit",
    ]
