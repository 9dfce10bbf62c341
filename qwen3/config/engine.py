"""EngineConfig: how a model runs. The command line makes its flags from these fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Qwen3Error
from . import values


def _option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A field with the help text of its flag; a boolean that is on by default becomes --no-NAME."""
    return field(default=default, metadata={"help": help, "metavar": metavar})


def _name(value: Any) -> Any:
    """The name of a torch.device or torch.dtype; any other value as it is. torch is not imported for it."""
    known = type(value).__module__ == "torch" and type(value).__name__ in ("device", "dtype")
    return str(value).removeprefix("torch.") if known else value


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a model runs: where, in which dtype, and how much of it at once.

    device: "auto" is cuda where there is one, else cpu; "cuda:N" is the N-th GPU; a torch.device is taken, too.
    dtype: "auto" is the checkpoint's own; else float32, bfloat16 or float16; a torch.dtype is taken, too.
    backend: "auto" is triton on a GPU, else cpu; one that is asked for by name runs or raises.
    max_model_len: the most tokens of prompt and answer together; None is what the model was made for.
    max_num_seqs: the most sequences that run together; the others wait.
    max_num_batched_tokens: the most tokens that one step computes.
    kv_block_size: tokens in a block of the KV cache.
    memory_utilization: the share of a GPU's memory that weights, work space and KV cache may take.
    prefix_caching: texts that begin with the same tokens share what was computed for them; None is on with a KV cache.
    cuda_graphs: a decode step is one launch; None is on where it can be: on a GPU, with triton and the KV cache.
    kv_cache: False keeps nothing between steps and computes every sequence again for every token, to compare.
    num_kv_blocks: blocks in the KV cache; None is what the memory holds.
    graph_recorder: records decode steps in place of CUDA graphs (see engine/graphs.py), on any device.

    Raises Qwen3Error for a value out of range.
    """

    device: str = _option("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = _option("auto", "auto (the checkpoint's own), float32, bfloat16 or float16")
    backend: str = _option("auto", "auto (triton on a GPU, else cpu), triton, cpu or reference")
    max_model_len: int | None = _option(None, "longest context, prompt and answer together, in tokens", "N")
    max_num_seqs: int = _option(256, "most sequences that run together", "N")
    max_num_batched_tokens: int = _option(8192, "most tokens that one step computes", "N")
    kv_block_size: int = _option(16, "tokens in a block of the KV cache", "N")
    memory_utilization: float = _option(0.9, "share of a GPU's memory that may be used", "X")
    prefix_caching: bool | None = _option(None, "share nothing between texts that begin with the same tokens")
    cuda_graphs: bool | None = _option(None, "launch every kernel of a decode step by itself")
    kv_cache: bool = _option(True, "compute everything again for each token, to compare")
    num_kv_blocks: int | None = None
    graph_recorder: Callable | None = None

    def __post_init__(self) -> None:
        for name in ("device", "dtype", "backend"):
            object.__setattr__(self, name, values.text(_name(getattr(self, name)), name))
        # Bounds far beyond what any memory holds, so that nothing is counted up to them.
        for name, most in (
            ("max_model_len", 2**31 - 1),
            ("max_num_seqs", 2**20),
            ("max_num_batched_tokens", 2**22),
            ("kv_block_size", 2**20),
            ("num_kv_blocks", 10**12),
        ):
            self._check(name, values.whole, 1, most)
        self._check("memory_utilization", values.number, 0, 1, above=True)
        for name in ("prefix_caching", "cuda_graphs", "kv_cache"):
            self._check(name, values.flag)
        if self.graph_recorder is not None and not callable(self.graph_recorder):
            values.refuse(self.graph_recorder, "graph_recorder", "a function")
        if self.prefix_caching and not self.kv_cache:
            raise Qwen3Error("prefix_caching = True needs the KV cache: leave out one of it and kv_cache = False")

    def _check(self, name: str, check: Callable, *bounds: Any, **settings: Any) -> None:
        """Checks a field, and leaves a None where None is its default."""
        value = getattr(self, name)
        if value is not None or type(self).__dataclass_fields__[name].default is not None:
            object.__setattr__(self, name, check(value, name, *bounds, **settings))

    @property
    def shares_prefixes(self) -> bool:
        """prefix_caching with its default filled in."""
        return self.kv_cache if self.prefix_caching is None else self.prefix_caching
