"""How fast is each op compared with eager PyTorch, torch.compile and other libraries, and how near to the limit?

At the shapes of one layer of real models. On a GPU: Triton, reference, eager, compiled, and other libraries that are
installed, each call with an empty L2 cache. Without one: the reference path beside an eager form on this CPU, and what
the compiler says about each kernel (registers, spills, blocks of a multiprocessor). A side is timed only after its
error against float64 was at most twice the reference's own. The limit is measured: bytes that a large copy reads and
writes, operations of a large matmul. Data that fits into a cache can be faster than the copy.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from qwen3.config.hf import model_config
from qwen3.config.model import DTYPES
from qwen3_kernels.backend import BACKENDS, backend
from qwen3_kernels.testing.contract import compare

from ..common import Answer, config_folder, seconds, side_by_side
from .bandwidth import bytes_per_second
from .ops_cases import OpCase, cases
from .ops_libraries import library_sides

MODELS = ("Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-235B-A22B")
CPU_DEFAULTS = {"models": MODELS[:2], "tokens": (1, 16), "contexts": (1024,), "rounds": 7}
GPU_DEFAULTS = {"models": MODELS, "tokens": (1, 4, 16, 64, 256, 2048), "contexts": (512, 4096, 32768), "rounds": 50}
L2_FLUSH_BYTES = 2**28
AOT_ARCHITECTURE = "sm_90"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=MODELS, help="shapes (CPU: the first two)")
    parser.add_argument("--tokens", type=int, nargs="+", help="tokens of a step")
    parser.add_argument("--contexts", type=int, nargs="+", help="context lengths, in tokens")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--only", nargs="+", metavar="OP", help="these ops alone")
    parser.add_argument("--rounds", type=int, help="turns that each side takes")


def run(args: argparse.Namespace) -> Answer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = dict(GPU_DEFAULTS if device == "cuda" else CPU_DEFAULTS)
    settings |= {name: value for name in settings if (value := getattr(args, name))} | {"dtype": args.dtype}
    dtype = DTYPES[args.dtype]
    ceiling = {
        "bytes_per_second": bytes_per_second(torch.device(device), getattr(args, "output", None)),
        "flops_per_second": matmul_speed(device, dtype),
    }
    print(
        f"limits of this device: {ceiling['bytes_per_second'] / 1e9:.1f} GB/s, "
        f"{ceiling['flops_per_second'] / 1e12:.3f} TFLOP/s in {args.dtype}"
    )
    figures = []
    for name in settings["models"]:
        config = model_config(config_folder(name))
        for case in cases(config, settings["tokens"], settings["contexts"], dtype, device):
            if not args.only or case.op in args.only:
                rows = measure(case, device, settings["rounds"], ceiling)
                print_rows(name, case, rows)
                figures += [{"figure": "time", "model": name} | row for row in rows]
    if device == "cpu":
        figures += (compiled := compiled_kernels())
        spills = sum(row["spill_bytes"] > 0 for row in compiled)
        print(f"{len(compiled)} kernels compiled for {AOT_ARCHITECTURE}, {spills} of them spill registers")
    timed = [row for row in figures if row["figure"] == "time" and row["side"] in BACKENDS]
    return Answer(settings | ceiling, figures, within=all(row["within"] for row in timed))


def ours(device: str) -> list[str]:
    """The backends that are timed on `device`; Triton's interpreter is not."""
    other = {"cuda": "cpu", "cpu": "triton"}[device]
    return [name for name in BACKENDS if name != other]


def sides(case: OpCase, device: str) -> dict[str, Callable]:
    """Everything that can run this case here, by name."""
    found = {name: getattr(backend(name, device), case.op) for name in ours(device)}
    if case.eager:
        found["eager"] = case.eager
    if device == "cuda":
        # Without this, the ninth shape of a function would run uncompiled.
        torch.compiler.reset()
        found["compiled"] = torch.compile(case.eager or found["reference"], dynamic=False)
        found |= library_sides(case.op, case.inputs)
    return found


def measure(case: OpCase, device: str, rounds: int, ceiling: dict[str, float]) -> list[dict]:
    """One row for each side: within the contract or not, and if so its time."""
    exact, own = case.exact_outputs(), case.outputs(getattr(backend("reference"), case.op))
    rows, runs = {}, {}
    for name, function in sides(case, device).items():
        rows[name] = {"op": case.op, "setting": case.setting, "side": name} | gate(case, function, exact, own, name)
        if rows[name]["within"]:
            runs[name] = partial(cold_seconds, partial(function, *case.inputs), device)
    del exact, own
    limits = case.bytes_moved / ceiling["bytes_per_second"], case.flops / ceiling["flops_per_second"]
    for name, timing in side_by_side(runs, rounds).items():
        rows[name] |= {
            "median_us": timing.median * 1e6,
            "min_us": timing.low * 1e6,
            "max_us": timing.high * 1e6,
            "bytes": case.bytes_moved,
            "flops": case.flops,
            "gb_per_second": case.bytes_moved / timing.median / 1e9,
            "tflops": case.flops / timing.median / 1e12,
            "bound": "bytes" if limits[0] >= limits[1] else "flops",
            "fraction_of_limit": max(limits) / timing.median,
        }
    return list(rows.values())


def gate(case: OpCase, function: Callable, exact: list[Tensor], own: list[Tensor], side: str) -> dict:
    """Whether the side keeps the contract on every output, and its largest error ratio; only our sides may raise."""
    try:
        outputs = case.outputs(function)
    except Exception as error:  # whatever another library raises for a shape or a device that it has no kernel for
        if side in BACKENDS:
            raise
        return {"within": False, "error_ratio": None, "failed": " ".join(str(error).split())[:200]}
    checks = [compare(*tensors, ratio=2.0) for tensors in zip(outputs, exact, own, strict=True)]
    return {"within": not any(broken for broken, _ in checks), "error_ratio": max(ratio for _, ratio in checks)}


def cold_seconds(run: Callable[[], object], device: str) -> float:
    """Time of one call: on a GPU between two events, L2 emptied first; on a CPU the mean of calls over 2 ms or more."""
    if device == "cuda":
        # The flush also keeps the GPU busy while the call is queued: launches are not waited for.
        torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device=device).zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
    taken = [seconds(run)]
    while sum(taken) < 2e-3:
        taken.append(seconds(run))
    return sum(taken) / len(taken)


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large square matmul."""
    n = 8192 if device == "cuda" else 1024
    a, b = (torch.ones(n, n, dtype=dtype, device=device) for _ in range(2))
    return 2 * n**3 / side_by_side({"matmul": lambda: cold_seconds(lambda: a @ b, device)}, 9)["matmul"].median


def compiled_kernels() -> list[dict]:
    """What the ahead-of-time table says of one architecture; nothing without Triton."""
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: its compiled kernels are left out")
        return []
    from qwen3_kernels.aot import table

    rows = []
    for key, compiled in table.read()["kernels"].items():
        model, architecture, module, kernel = key.split("/")
        if architecture == AOT_ARCHITECTURE:
            names = {"model": model, "module": module, "kernel": kernel, "architecture": architecture}
            rows.append({"figure": "compiled"} | names | compiled)
    return rows


def print_rows(model: str, case: OpCase, rows: list[dict]) -> None:
    cells = []
    for row in rows:
        if "median_us" in row:
            cells.append(f"{row['side']} {row['median_us']:.1f} us ({row['fraction_of_limit']:.0%})")
        else:
            cells.append(f"{row['side']} {row.get('failed') or 'is outside the contract'}")
    print(f"{model:15} {case.op:19} {case.setting:28} {', '.join(cells)}", flush=True)
