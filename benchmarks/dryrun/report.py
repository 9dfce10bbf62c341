"""What a dry run found, as a record and as text."""

from collections import Counter

from . import code, limits
from .launches import Variant
from .scenario import Driven, Options
from .world import Launch, Step, World


def describe(world: World, driven: Driven, options: Options, steps: list[Step], variants: list[Variant]) -> dict:
    """The record of one engine; what is wrong with it becomes a breach of `world`."""
    llm = driven.llm
    device = llm.device.index or 0
    allocator = world.allocators[device]
    mine = [variant for variant in variants if variant.device == device]
    serving = Counter(variant.name for variant in mine if variant.phase != "load")
    limits.check(world, driven, steps, len(mine), serving)
    reserved, results = allocator.graph_bytes()
    return {
        "card": f"sm_{world.card.arch}",
        "card_name": world.card.name,
        "device": str(llm.device),
        "dtype": str(llm.dtype).removeprefix("torch."),
        "layers": llm.config.num_layers,
        "max_num_seqs": options.max_num_seqs,
        "bytes": {
            "card": allocator.total,
            "budget": limits.memory_budget(llm.engine_config.memory_utilization, allocator),
            "weights": driven.weights,
            "kv_cache": driven.kv_cache,
            "after_load": driven.loaded + limits.CONTEXT_BYTES,
            "peak": allocator.peak_held,
            "graphs": reserved,
            "graph_results": results,
            "cublas_workspaces": sum(b.size for (index, _), b in world.workspaces.items() if index == device),
        },
        "layer_launches": _layer_launches(steps),
        "steps": _steps(steps),
        "variants": [_variant(world, variant) for variant in mine],
        "compile_seconds": round(sum(variant.seconds for variant in mine), 1),
        "serving_variants": sum(serving.values()),
    }


def _layer_launches(steps: list[Step]) -> dict[str, list[str]]:
    """What the second layer launches, wherever that is more or less than in the steps before."""
    found: dict[str, list[str]] = {}
    for step in steps:
        for where, launches in (("graph", step.graph.launches if step.graph else []), ("eager", step.launches)):
            first, *more = _of_layer(launches, 1) or _of_layer(launches, 0) or [None]
            if first is None or (where == "eager" and step.decode):
                continue
            names = [first.name, *(launch.name for launch in more)]
            if names not in found.values():
                found[f"{where}, {step.phase}"] = names
    return found


def _of_layer(launches: list[Launch], layer: int) -> list[Launch]:
    return [launch for launch in launches if launch.layer == layer]


def _steps(steps: list[Step]) -> list[dict]:
    """Steps that did the same, counted."""
    rows = Counter(
        (
            s.phase,
            len(s.contexts),
            s.num_tokens,
            len(s.graph.launches) if s.graph else 0,
            len(s.launches),
            s.copies,
            s.waits,
        )
        for s in steps
    )
    names = ("phase", "sequences", "tokens", "graph_nodes", "launches", "host_copies", "waits")
    return [dict(zip(names, row)) | {"count": count} for row, count in rows.items()]


def _variant(world: World, variant: Variant) -> dict:
    """Reads a variant; its faults become breaches."""
    resources = code.read(variant)
    for text in code.faults(variant, resources, world.card):
        world.breach(text, variant.phase)
    return {
        "module": variant.function.__module__,
        "kernel": variant.name,
        "phase": variant.phase,
        "seconds": round(variant.seconds, 2),
        "arguments": variant.arguments,
        "options": variant.options,
        "grids": [[*grid, count] for grid, count in variant.grids.items()],
        "registers": resources.registers,
        "shared_bytes": resources.shared,
        "stack_bytes": resources.stack,
        "largest_tensor": variant.elements,
        "unknown_offsets": code.overflows(variant)[1],
    }


def print_report(name: str, result: dict) -> None:
    for run in result["runs"]:
        sizes = {key: f"{value / 1e9:.2f}" for key, value in run["bytes"].items()}
        print(f"{name}, {run['layers']} layers, {run['dtype']} on {run['device']}, {run['card']} ({run['card_name']})")
        print(f"torch {result['torch']}, triton {result['triton']}")
        print(f"\nMemory, GB of {sizes['card']}, by the rules of PyTorch's allocator")
        print(f"  may be held {sizes['budget']}, held after load {sizes['after_load']}, at the peak {sizes['peak']}")
        print(f"  weights {sizes['weights']}, KV cache {sizes['kv_cache']}, cuBLAS {sizes['cublas_workspaces']}")
        print(f"  graphs {sizes['graphs']}, of which results {sizes['graph_results']}")
        print("\nLaunches of a layer")
        for where, names in run["layer_launches"].items():
            print(f"  {where}: {len(names)}: {' '.join(text.removesuffix('_kernel') for text in names)}")
        print("\nSteps: sequences, tokens; nodes of the graph; launches, copies from the host and waits outside of it")
        for s in run["steps"]:
            beside = f"{s['launches']:5} {s['host_copies']:3} {s['waits']:3}"
            print(f"  {s['count']:3} x {s['sequences']:4} {s['tokens']:6} {s['graph_nodes']:6} {beside}  {s['phase']}")
        compiled = f"{len(run['variants'])} variants, {run['compile_seconds']} s of compiling"
        print(f"\n{compiled} (none where Triton's cache has them); {run['serving_variants']} of them after load")
        for v in run["variants"]:
            numbers = f"{v['registers']:4} registers {v['shared_bytes']:7,} B shared"
            print(f"  {v['kernel']:26} {numbers} {v['seconds']:6.2f} s  {v['phase']}")
        print()
    print(f"{len(result['breaches'])} breaches, {result['cpu_seconds']} s of processor time")
    for text in result["breaches"]:
        print(f"WRONG {text}")
