"""Builds a model and the engine around it: memory for weights and KV cache, block pool, scheduler, graphs."""

from pathlib import Path

import torch

from qwen3_kernels.ops import Ops

from ..config.engine import EngineConfig
from ..config.model import ModelConfig, dtype_name
from ..errors import Qwen3Error
from ..load.loader import load_weights
from ..measure.memory import gigabytes, kv_cache_bytes, out_of_memory_is_an_error, require
from ..measure.stats import Stats
from ..model.footprint import planned_footprint
from ..model.kv_cache import KVCache
from ..model.qwen3 import Qwen3, random_weights
from ..model.rope import rope_table_bytes
from .blocks import BlockPool
from .engine import Engine
from .graphs import DecodeGraphs
from .inputs import forward_batch
from .params import Sampling
from .runner import ModelRunner
from .scheduler import Scheduled, Scheduler, Work
from .sequence import Sequence


def load_model(
    config: ModelConfig,
    ops: Ops,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path | None,
    progress: bool = False,
) -> Qwen3:
    """The model with the weights of `folder`, or with random ones where it is None.

    Raises Qwen3Error where they do not fit, and what `load_weights` raises.
    """
    needed = planned_footprint(config, dtype).nbytes + rope_table_bytes(config, max_model_len)
    source = Path(config.source).parent
    place = (device, f"{source} in {dtype_name(dtype)}", "use a smaller model, a narrower dtype or max_model_len")
    require(needed, *place)
    with out_of_memory_is_an_error(needed, *place):
        model = Qwen3(config, ops, max_model_len, dtype, device)
    if folder is None:
        random_weights(model)
    else:
        load_weights(model, folder, progress)
    return model.eval()


def records_graphs(options: EngineConfig, device: torch.device, backend: str) -> bool:
    """Returns whether decode steps become CUDA graphs; raises Qwen3Error if they were requested and cannot."""
    can_record = device.type == "cuda" and backend == "triton" and options.kv_cache
    if options.cuda_graphs and not can_record:
        raise Qwen3Error("cuda_graphs = True needs a GPU, the triton backend and the KV cache: leave it out")
    return can_record if options.cuda_graphs is None else options.cuda_graphs


def assemble(model: Qwen3, options: EngineConfig, max_model_len: int, backend: str, stats: Stats) -> Engine:
    """Builds the engine of a loaded model. backend: the name of the model's ops."""
    records = records_graphs(options, model.device, backend)
    cache = _kv_cache(model, options, max_model_len)
    name = f"{model.config.source} {model.dtype}"
    pool = BlockPool(cache.num_blocks, cache.block_size, name, options.shares_prefixes)
    scheduler = Scheduler(pool, options.max_num_seqs, options.max_num_batched_tokens, options.kv_cache)
    graphs = None
    if options.graph_recorder or records:
        width = pool.blocks_for(max_model_len)
        graphs = DecodeGraphs(model, cache, options.max_num_seqs, width, options.graph_recorder)
    return Engine(scheduler, ModelRunner(model, cache, graphs), stats)


def _kv_cache(model: Qwen3, options: EngineConfig, max_model_len: int) -> KVCache:
    """A KV cache of options.num_kv_blocks blocks, or of as many as the memory holds."""
    config, device, block_size = model.config, model.device, options.kv_block_size
    block_bytes = block_size * config.kv_bytes_per_token(model.dtype)
    num_blocks = options.num_kv_blocks
    if num_blocks is None:
        longest = -(-max_model_len // block_size)
        step_bytes = _step_bytes(model, options, max_model_len) if device.type == "cuda" else 0
        advice = "lower max_num_batched_tokens or kv_block_size, or use a smaller model"
        room = kv_cache_bytes(device, options.memory_utilization, step_bytes, longest * block_bytes)
        num_blocks = min(room // block_bytes, options.max_num_seqs * longest)
        if num_blocks < 1:
            raise Qwen3Error(
                f"out of memory: the KV cache needs {gigabytes(block_bytes)} for {block_size} tokens, {device} has "
                f"{gigabytes(max(0, room))} for it: raise memory_utilization, {advice}"
            )
    else:
        advice = "lower num_kv_blocks or kv_block_size, or use a smaller model"
        require(num_blocks * block_bytes, device, "the KV cache", advice)
    with out_of_memory_is_an_error(num_blocks * block_bytes, device, "the KV cache", advice):
        return KVCache(config, num_blocks, block_size, model.dtype, device)


@torch.inference_mode()
def _step_bytes(model: Qwen3, options: EngineConfig, max_model_len: int) -> int:
    """The most GPU memory that a step takes beside weights and KV cache, found by running the largest one."""
    left, work, num_blocks = options.max_num_batched_tokens, [], 0
    while left:
        count = min(left, max_model_len)
        needed = -(-count // options.kv_block_size)
        blocks = list(range(num_blocks, num_blocks + needed))
        work.append(Work(Sequence([0] * count, Sampling(), frozenset(), count, blocks=blocks), 0, count, True))
        num_blocks += needed
        left -= count
    try:
        return _largest_step(model, options, tuple(work), num_blocks)
    except torch.OutOfMemoryError:
        raise Qwen3Error(
            f"out of memory: a step of {options.max_num_batched_tokens} tokens of {options.max_num_seqs} sequences "
            f"does not fit on {model.device}: lower max_num_batched_tokens or max_num_seqs, or use a smaller model"
        ) from None


def _largest_step(model: Qwen3, options: EngineConfig, work: tuple[Work, ...], num_blocks: int) -> int:
    """Measures the GPU memory that one step takes beside weights and KV cache."""
    cache = KVCache(model.config, num_blocks, options.kv_block_size, model.dtype, model.device)
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    hidden = model(forward_batch(Scheduled(work), options.kv_block_size, model.device), cache)
    model.logits(hidden.states.new_zeros(options.max_num_seqs, model.config.hidden_size))
    step_bytes = torch.cuda.max_memory_allocated(model.device) - before
    del cache, hidden
    torch.cuda.empty_cache()
    return step_bytes
