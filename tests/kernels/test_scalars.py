"""Every number and flag that an op takes changes its result, and in every backend to that of the reference."""

import inspect
from collections.abc import Callable

import pytest
import torch

from qwen3_kernels import cpu, reference, triton_ops
from qwen3_kernels.ops import Ops
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.weights import Dense

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(DEVICE)


def add_norm_linear(ops, eps: float, tokens: int, residual: bool, dtype: torch.dtype = torch.float32) -> tuple:
    x, more, norm, weight = (
        normal(*shape, scale=scale, seed=seed).to(dtype)
        for seed, (shape, scale) in enumerate([((tokens, 32), 0.1), ((tokens, 32), 0.1), ((32,), 1.0), ((24, 32), 1.0)])
    )
    return ops.add_norm_linear(x, more if residual else None, norm, eps, Dense(weight))


def qk_norm_rope_cache(ops, eps: float) -> tuple:
    cache = PagedCache(*(torch.zeros(2, 2, 16, 8, device=DEVICE) for _ in range(2)))
    ids, weights = torch.arange(3, device=DEVICE), (normal(8, seed=1), normal(8, seed=2))
    q = ops.qk_norm_rope_cache(normal(3, 64, scale=0.1), *weights, eps, ids, normal(9, 8, seed=3), ids, cache)
    return q, *cache


def attention(ops, name: str, scale: float) -> torch.Tensor:
    cache = PagedCache(normal(2, 2, 16, 16), normal(2, 2, 16, 16, seed=1))
    tables, lengths = torch.tensor([[1, 0], [0, 1]], device=DEVICE), torch.tensor([20, 7], device=DEVICE)
    if name == "decode_attention":
        return ops.decode_attention(normal(2, 4, 16, seed=2), cache, tables, lengths, scale)
    starts = torch.tensor([0, 3, 5], device=DEVICE)
    return ops.prefill_attention(normal(5, 4, 16, seed=2), cache, tables, starts, lengths, scale)


EPS = 1e-6, 0.3
# An op's parameter: a call with its value, and two values.
CASES: dict[tuple[str, str], list[tuple[Callable, tuple]]] = {
    ("rms_norm", "eps"): [(lambda ops, eps: ops.rms_norm(normal(3, 32, scale=0.1), normal(32, seed=1), eps), EPS)],
    ("add_rms_norm", "eps"): [
        (
            lambda ops, eps: ops.add_rms_norm(
                normal(3, 32, scale=0.1), normal(3, 32, scale=0.1, seed=2), normal(32, seed=1), eps
            ),
            EPS,
        )
    ],
    ("add_norm_linear", "eps"): [
        (lambda ops, eps, n=tokens, r=residual: add_norm_linear(ops, eps, n, r), EPS)
        for tokens in (1, 4, 12)
        for residual in (True, False)
    ]
    # In float32 the kernel of a few tokens is that of one.
    + [(lambda ops, eps: add_norm_linear(ops, eps, 4, True, torch.bfloat16), EPS)],
    ("qk_norm_rope_cache", "eps"): [(qk_norm_rope_cache, EPS)],
    ("decode_attention", "scale"): [(lambda ops, scale: attention(ops, "decode_attention", scale), (0.25, 1.7))],
    ("prefill_attention", "scale"): [(lambda ops, scale: attention(ops, "prefill_attention", scale), (0.25, 1.7))],
    ("route", "top_k"): [(lambda ops, k: ops.route(normal(5, 9), k, False)[0].sum(-1), (2, 3))],
    ("route", "renormalize"): [(lambda ops, flag: ops.route(normal(5, 9), 3, flag)[0], (True, False))],
}


def test_every_number_and_flag_has_a_case():
    found = {
        (op, name)
        for op, function in vars(Ops).items()
        if not op.startswith("_")
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation in (int, float, bool, "int", "float", "bool")
    }
    assert found == {*CASES}


@pytest.mark.parametrize("ops", [triton_ops, cpu], ids=["triton", "cpu"])
@pytest.mark.parametrize(
    "call, values",
    [pytest.param(*case, id=f"{op}-{name}-{n}") for (op, name), cases in CASES.items() for n, case in enumerate(cases)],
)
def test_a_number_or_flag_has_its_effect(call, values, ops):
    with torch.inference_mode():
        first, second = (as_tuple(call(reference, value)) for value in values)
        assert (first[0] - second[0]).abs().max() > 0.05, "the two values must make a difference"
        for value, expected in zip(values, (first, second)):
            close = {"rtol": 1e-4, "atol": 1e-5} if expected[0].dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
            torch.testing.assert_close(as_tuple(call(ops, value)), expected, **close)


def as_tuple(out: torch.Tensor | tuple) -> tuple:
    return out if isinstance(out, tuple) else (out,)
