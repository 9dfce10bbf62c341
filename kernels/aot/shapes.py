"""The op calls that are compiled: every kernel and every row of every tile table, at the shapes of two real models."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import triton_ops as ops
from ..moe.grouped import TILES as EXPERT_TILES
from ..paged_cache import PagedCache
from ..weights import Dense
from .record import Launch, launches_of

# All others stream weights, keys and values, or whole rows, and must do so with wide loads. These read ids and logits.
NARROW_KERNELS = ("route_kernel", "sort_by_expert_kernel")


@dataclass(frozen=True)
class Model:
    """The sizes that decide a kernel's shapes."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    vocab_size: int


MODELS = {
    "30B": Model(2048, 32, 4, 128, 128, 8, 768, 151936),
    "235B": Model(4096, 64, 4, 128, 128, 8, 1536, 151936),
}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Makes a tensor without data."""
    return torch.empty(shape, dtype=dtype, device="meta")


ids = functools.partial(empty, dtype=torch.int64)
floats = functools.partial(empty, dtype=torch.float32)


def calls(m: Model) -> Iterator[tuple[str, Callable, tuple]]:
    """Yields a label, an op and its arguments for each call."""
    H, D, E, k, I, V = m.hidden_size, m.head_dim, m.num_experts, m.top_k, m.moe_intermediate_size, m.vocab_size
    heads, kv_heads = m.num_heads, m.num_kv_heads
    qkv, T, S, eps = (heads + 2 * kv_heads) * D, 4096, 8, 1e-6

    for hidden in (H, 8192):
        yield f"H={hidden}", ops.rms_norm, (empty(T, hidden), empty(hidden), eps)
        yield f"H={hidden}", ops.add_rms_norm, (empty(T, hidden), empty(T, hidden), empty(hidden), eps)
    yield "I=25600", ops.swiglu, (empty(T, 2 * 25600),)  # the dense MLP of Qwen3-32B
    table = floats(40960, D)
    yield f"heads={heads}", ops.rope, (empty(T, heads, D), ids(T), table)
    for block_size in (16, 256):  # smaller and larger than every tile of attention
        cache = PagedCache(empty(64, kv_heads, block_size, D), empty(64, kv_heads, block_size, D))
        new = empty(T, qkv), empty(D), empty(D), eps, ids(T), table, ids(T), cache
        yield f"block_size={block_size}", ops.qk_norm_rope_cache, new
        for dtype in (torch.bfloat16, torch.float32):
            label = f"{str(dtype)[6:]} block_size={block_size}"
            cached = PagedCache(cache.keys.to(dtype), cache.values.to(dtype))
            tables = ids(S, 8192 // block_size)
            yield label, ops.decode_attention, (empty(S, heads, D, dtype=dtype), cached, tables, ids(S), D**-0.5)
            q = empty(T, heads, D, dtype=dtype)
            yield label, ops.prefill_attention, (q, cached, tables, ids(S + 1), ids(S), D**-0.5)

    for tokens in (1, 8):  # a dot product for each output, and tensor cores
        for name, outputs in (("router", E), ("qkv", qkv), ("lm_head", V)):
            x, residual, norm, weight = empty(tokens, H), empty(tokens, H), empty(H), Dense(empty(outputs, H))
            yield f"{name} {tokens} tokens", ops.add_norm_linear, (x, residual, norm, eps, weight)
        yield f"o_proj {tokens} tokens", ops.linear, (empty(tokens, heads * D), Dense(empty(H, heads * D)))

    # Rows too long for the kernel of dot products: float32 that no tensor core may round to tf32.
    long = floats(8, 25600), Dense(floats(H, 25600))
    yield "float32 8 tokens", ops.linear, long

    yield f"{E} experts top {k}", ops.route, (empty(8192, E), k, True)
    experts = Dense(empty(E, 2 * I, H)), Dense(empty(E, H, I))
    # Up to 16 tokens have kernels of their own; of the others, each row of the tile table at the most tokens it is for.
    for tokens in (1, 16, 32, *(int(min(8192, tile.max_rows * E // k)) for tile in EXPERT_TILES)):
        yield f"{tokens} tokens", ops.moe_experts, (empty(tokens, H), *experts, empty(tokens, k), ids(tokens, k))
    for tokens in (16, 4096):  # float32 through both paths, too
        experts32 = Dense(floats(E, 2 * I, H)), Dense(floats(E, H, I))
        yield (
            f"float32 {tokens} tokens",
            ops.moe_experts,
            (floats(tokens, H), *experts32, floats(tokens, k), ids(tokens, k)),
        )
    limits = floats(1), ids(1), floats(1), floats(1)
    yield f"V={V}", ops.sample, (floats(1, V), *limits, ids(1), ids(1))


@functools.cache
def launches(model: str) -> dict[str, Launch]:
    """Records every different launch of the calls, by "module/kernel label". The first call that makes it names it."""
    found: dict[str, Launch] = {}
    for label, op, arguments in calls(MODELS[model]):
        for launch in launches_of(op, *arguments):
            module = launch.kernel.__module__.removeprefix(f"{__package__.rpartition('.')[0]}.")
            key = f"{module}/{launch.kernel.__name__.removesuffix('_kernel')} {label}"
            if launch in found.values():
                continue
            if key in found:
                raise ValueError(f"two launches are named {key}")
            found[key] = launch
    return found


def modules() -> list[str]:
    """Names the modules that have kernels."""
    return sorted({key.split("/")[0] for model in MODELS for key in launches(model)})
