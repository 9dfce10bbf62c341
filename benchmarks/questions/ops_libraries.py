"""The same ops from other libraries that are installed, each prepared once, outside the timing."""

import importlib.util
from collections.abc import Callable

import torch


def library_sides(op: str, inputs: tuple) -> dict[str, Callable]:
    """Functions of the case's inputs with the output of the op, by library. Only for a GPU."""
    found = {}
    for (name, library), prepare in LIBRARIES.items():
        if name == op and importlib.util.find_spec(library):
            try:
                found[library] = prepare(inputs)
            except Exception as error:  # another version of the library, or a device that it does not know
                found[library] = _fails_with(error)
    return found


def _fails_with(error: Exception) -> Callable:
    def run(*inputs):
        raise error

    return run


def flashinfer_rms_norm(inputs: tuple) -> Callable:
    from flashinfer.norm import rmsnorm

    return lambda x, weight, eps: rmsnorm(x, weight, eps=eps)


def flashinfer_swiglu(inputs: tuple) -> Callable:
    from flashinfer.activation import silu_and_mul

    return silu_and_mul


def flash_attn_decode(inputs: tuple) -> Callable:
    """Its blocks hold a multiple of 256 tokens: the contexts are made contiguous instead."""
    from flash_attn import flash_attn_with_kvcache

    _, cache, block_tables, seq_lens, scale = inputs
    keys, values = (x[block_tables].transpose(2, 3).flatten(1, 2).contiguous() for x in cache)
    lengths = seq_lens.int()
    return lambda q, *_: flash_attn_with_kvcache(
        q[:, None], keys, values, cache_seqlens=lengths, softmax_scale=scale, causal=True
    )[:, 0]


def flash_attn_prefill(inputs: tuple) -> Callable:
    from flash_attn import flash_attn_func

    q, cache, block_tables, _, _, scale = inputs
    keys, values = (x[block_tables[0]].transpose(1, 2).flatten(0, 1)[None, : len(q)].contiguous() for x in cache)
    return lambda q, *_: flash_attn_func(q[None], keys, values, softmax_scale=scale, causal=True)[0]


def vllm_moe_experts(inputs: tuple) -> Callable:
    from vllm.model_executor.layers.fused_moe import fused_experts

    expert_ids = inputs[4].to(torch.int32)
    return lambda x, gate_up, down, weights, _: fused_experts(x, gate_up.data, down.data, weights.float(), expert_ids)


LIBRARIES = {
    ("rms_norm", "flashinfer"): flashinfer_rms_norm,
    ("swiglu", "flashinfer"): flashinfer_swiglu,
    ("decode_attention", "flash_attn"): flash_attn_decode,
    ("prefill_attention", "flash_attn"): flash_attn_prefill,
    ("moe_experts", "vllm"): vllm_moe_experts,
}
