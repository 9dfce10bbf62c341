"""The ops at the shapes of real models: inputs, bytes and operations, and the same op in eager PyTorch.

T tokens, S sequences, H hidden size, D head_dim, E experts, k experts per token, I intermediate size, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3.config.model import ModelConfig
from qwen3.model.rope import rope_table
from qwen3_kernels import reference
from qwen3_kernels.paged_cache import PagedCache
from qwen3_kernels.weights import Dense

BLOCK_SIZE = 16
GATE_TOKENS = 8  # of experts and of a prefill are compared with float64: all would take gigabytes
MAX_DECODE_TOKENS = 2**19  # of context in one decode: eager attention copies its keys once for each query head


@dataclass(frozen=True)
class OpCase:
    """One call of one op.

    setting: the sizes, for people. bytes_moved and flops: the least that the call must do, each input read and each
    output written once. eager: the same in plain PyTorch calls (None: the reference is that already).
    written: the inputs that the op writes. compared: the floating-point values that the gate looks at, from the inputs
    and the output. exact: the same values in float64 (None: the reference on float64 inputs).
    """

    op: str
    setting: str
    inputs: tuple
    bytes_moved: int
    flops: int
    eager: Callable | None = None
    written: tuple[int, ...] = ()
    compared: Callable[[tuple, object], list[Tensor]] = lambda inputs, output: as_list(output)
    exact: Callable[[tuple], list[Tensor]] | None = None

    def outputs(self, function: Callable) -> list[Tensor]:
        """Compared outputs of `function`, called with copies of the inputs that it writes."""
        inputs = tuple(on_tensors(Tensor.clone, x) if i in self.written else x for i, x in enumerate(self.inputs))
        return self.compared(inputs, function(*inputs))

    def exact_outputs(self) -> list[Tensor]:
        if self.exact:
            return self.exact(self.inputs)
        inputs = tuple(on_tensors(widened, x) for x in self.inputs)
        return self.compared(inputs, getattr(reference, self.op)(*inputs))


def on_tensors(function: Callable[[Tensor], Tensor], value):
    """`value` with `function` applied to it, or to the tensors of a weight or a cache; anything else as it is."""
    if isinstance(value, Dense | PagedCache):
        return type(value)(*map(function, value))
    return function(value) if isinstance(value, Tensor) else value


def widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def as_list(output) -> list[Tensor]:
    return list(output) if isinstance(output, tuple) else [output]


def cases(
    config: ModelConfig, tokens: list[int], contexts: list[int], dtype: torch.dtype, device: str
) -> Iterator[OpCase]:
    """Every op of one layer of `config` for each number of tokens, attention for each context length."""
    make = Maker(config, dtype, device)
    weights = make.layer_weights()
    for T in tokens:
        yield make.rms_norm(T)
        yield make.add_rms_norm(T)
        yield make.add_norm_linear(T, weights["qkv"])
        yield make.linear(T, weights["o_proj"])
        yield make.qk_norm_rope_cache(T)
        if config.num_experts:
            yield make.route(T)
            yield make.moe_experts(T, weights["gate_up"], weights["down"])
        else:
            yield make.swiglu(T)
        if T <= 64:
            yield make.sample(T)
        for context in contexts:
            if T <= 64 and T * context <= MAX_DECODE_TOKENS:
                yield make.decode_attention(T, context)
    for context in contexts:
        yield make.prefill_attention(context)


class Maker:
    """Makes the cases of one model shape, with seeded inputs of unit size."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: str):
        self.config, self.dtype, self.device, self.size = config, dtype, device, dtype.itemsize
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.empty(shape, dtype=self.dtype, device=self.device)
        return x.normal_(std=scale, generator=self.generator)

    def layer_weights(self) -> dict[str, Dense]:
        c = self.config
        E, H, I = c.num_experts, c.hidden_size, c.moe_intermediate_size
        shapes: dict[str, tuple[int, ...]] = {"qkv": (c.q_size + 2 * c.kv_size, H), "o_proj": (H, c.q_size)}
        if E:
            shapes |= {"gate_up": (E, 2 * I, H), "down": (E, H, I)}
        return {name: Dense(self.normal(*shape, scale=H**-0.5)) for name, shape in shapes.items()}

    def norm_weight(self, size: int) -> Tensor:
        return 1 + self.normal(size, scale=0.1)

    def rms_norm(self, T: int) -> OpCase:
        H = self.config.hidden_size
        inputs = self.normal(T, H), self.norm_weight(H), self.config.rms_norm_eps
        return OpCase("rms_norm", f"{T} tokens", inputs, self.size * (2 * T * H + H), 4 * T * H, eager_rms_norm)

    def add_rms_norm(self, T: int) -> OpCase:
        H = self.config.hidden_size
        inputs = self.normal(T, H), self.normal(T, H), self.norm_weight(H), self.config.rms_norm_eps
        bytes_moved = self.size * (4 * T * H + H)
        return OpCase("add_rms_norm", f"{T} tokens", inputs, bytes_moved, 5 * T * H, eager_add_rms_norm, written=(1,))

    def add_norm_linear(self, T: int, weight: Dense) -> OpCase:
        N, H = weight.shape
        inputs = self.normal(T, H), self.normal(T, H), self.norm_weight(H), self.config.rms_norm_eps, weight
        moved = self.size * (N * H + H + 4 * T * H + T * N)
        return OpCase("add_norm_linear", f"qkv, {T} tokens", inputs, moved, 2 * T * N * H, eager_add_norm_linear, (1,))

    def linear(self, T: int, weight: Dense) -> OpCase:
        N, K = weight.shape
        moved = self.size * (N * K + T * K + T * N)
        return OpCase("linear", f"o_proj, {T} tokens", (self.normal(T, K), weight), moved, 2 * T * N * K, eager_linear)

    def cache(self, sequences: int, context: int) -> tuple[PagedCache, Tensor]:
        """Cache and block tables of `sequences` contexts whose blocks are in random order."""
        blocks = -(-context // BLOCK_SIZE)
        order = torch.randperm(sequences * blocks, generator=self.generator, device=self.device)
        shape = sequences * blocks, self.config.num_kv_heads, BLOCK_SIZE, self.config.head_dim
        return PagedCache(self.normal(*shape), self.normal(*shape)), order.view(sequences, blocks)

    def qk_norm_rope_cache(self, T: int) -> OpCase:
        c, D = self.config, self.config.head_dim
        cache, tables = self.cache(1, T)
        slots = (tables[0][:, None] * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=self.device)).flatten()[:T]
        positions = torch.arange(T, device=self.device)
        table = rope_table(c, T).to(self.device)
        qkv = self.normal(T, c.q_size + 2 * c.kv_size)
        inputs = qkv, self.norm_weight(D), self.norm_weight(D), c.rms_norm_eps, positions, table, slots, cache
        # The projection in, queries, keys and values out; position, slot and a row of the table for each token.
        moved = self.size * 2 * (qkv.numel() + D) + T * (16 + 4 * D)
        return OpCase(
            "qk_norm_rope_cache",
            f"{T} tokens",
            inputs,
            moved,
            7 * qkv.numel(),
            eager_qk_norm_rope_cache,
            written=(7,),
            compared=lambda inputs, q: [q, *inputs[7]],
        )

    def decode_attention(self, S: int, context: int) -> OpCase:
        c = self.config
        cache, tables = self.cache(S, context)
        lengths = torch.full((S,), context, device=self.device)
        inputs = self.normal(S, c.num_heads, c.head_dim), cache, tables, lengths, c.head_dim**-0.5
        moved = 2 * self.size * S * (c.q_size + context * c.kv_size) + 8 * (tables.numel() + S)
        flops = 4 * S * c.q_size * context
        return OpCase("decode_attention", f"{S} sequences of {context}", inputs, moved, flops, eager_decode_attention)

    def prefill_attention(self, T: int) -> OpCase:
        c = self.config
        cache, tables = self.cache(1, T)
        starts, lengths = torch.tensor([0, T], device=self.device), torch.tensor([T], device=self.device)
        inputs = self.normal(T, c.num_heads, c.head_dim), cache, tables, starts, lengths, c.head_dim**-0.5
        moved = 2 * self.size * T * (c.q_size + c.kv_size) + 8 * (tables.numel() + 3)
        flops = 2 * c.q_size * T * (T + 1)
        return OpCase(
            "prefill_attention",
            f"{T} tokens",
            inputs,
            moved,
            flops,
            eager_prefill_attention,
            compared=lambda inputs, output: [output[gate_rows(output)]],
            exact=exact_prefill_attention,
        )

    def swiglu(self, T: int) -> OpCase:
        I = self.config.intermediate_size
        return OpCase("swiglu", f"{T} tokens", (self.normal(T, 2 * I),), self.size * 3 * T * I, 5 * T * I)

    def route(self, T: int) -> OpCase:
        E, k = self.config.num_experts, self.config.top_k
        moved = T * (self.size * (E + k) + 8 * k)
        inputs = self.normal(T, E), k, self.config.norm_topk_prob
        return OpCase(
            "route",
            f"{T} tokens",
            inputs,
            moved,
            4 * T * E,
            # Equal logits may be chosen in either order: compare the logits of the chosen experts, not their ids.
            compared=lambda inputs, output: [output[0], inputs[0].gather(1, output[1])],
        )

    def moe_experts(self, T: int, gate_up: Dense, down: Dense) -> OpCase:
        E, H, I = down.shape
        k = self.config.top_k
        scores = torch.rand(T, E, generator=self.generator, device=self.device)
        weights, ids = reference.route(scores.to(self.dtype), k, True)
        hit = ids.unique().numel()
        moved = self.size * (hit * 3 * H * I + 2 * T * H + T * k) + 8 * T * k
        return OpCase(
            "moe_experts",
            f"{T} tokens, {hit} experts hit",
            (self.normal(T, H), gate_up, down, weights, ids),
            moved,
            6 * T * k * H * I,
            eager_moe_experts,
            compared=lambda inputs, output: [output[gate_rows(output)]],
            exact=exact_moe_experts,
        )

    def sample(self, S: int) -> OpCase:
        V = self.config.vocab_size
        logits = torch.empty(S, V, device=self.device).normal_(std=3.0, generator=self.generator)
        # Temperature, top-k, top-p, min-p, then seeds and positions.
        filters = [torch.full((S,), value, device=self.device) for value in (0.7, 20, 0.8, 0.0)]
        inputs = logits, *filters, torch.arange(S, device=self.device), torch.full((S,), 100, device=self.device)
        return OpCase(
            "sample",
            f"{S} rows of {V}",
            inputs,
            4 * S * V + S * (3 * 4 + 4 * 8),
            4 * S * V,
            compared=lambda inputs, output: [output.to(inputs[0].dtype)],
        )


def eager_rms_norm(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


def eager_add_rms_norm(x, residual, weight, eps):
    residual = residual + x
    return F.rms_norm(residual, weight.shape, weight, eps), residual


def eager_linear(x, weight):
    return F.linear(x, weight.data)


def eager_add_norm_linear(x, residual, norm_weight, eps, weight):
    normed, residual = eager_add_rms_norm(x, residual, norm_weight, eps)
    return F.linear(normed, weight.data), residual, normed


def eager_qk_norm_rope_cache(qkv, q_weight, k_weight, eps, positions, table, slots, cache):
    """Queries and keys separately: norm, rotation of the halves, then the cache."""
    _, kv_heads, block_size, head_dim = cache.keys.shape
    heads = qkv.view(len(qkv), -1, head_dim)
    q, k, v = heads.split((heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads), dim=1)
    cos, sin = (half.repeat(1, 2)[:, None] for half in table[positions].chunk(2, dim=-1))

    def rotate(x):
        first, second = x.float().chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)

    q = rotate(F.rms_norm(q, (head_dim,), q_weight, eps))
    k = rotate(F.rms_norm(k, (head_dim,), k_weight, eps))
    block, offset = slots // block_size, slots % block_size
    cache.keys[block, :, offset], cache.values[block, :, offset] = k, v
    return q


def repeated(keys_or_values, block_table, heads):
    """The blocks of one sequence as [heads, tokens, D]: each key/value head once for each query head that reads it."""
    blocks = keys_or_values[block_table].transpose(0, 1).flatten(1, 2)
    return blocks.repeat_interleave(heads // len(blocks), dim=0)


def eager_decode_attention(q, cache, block_tables, seq_lens, scale):
    """All contexts are of one length."""
    length, heads = block_tables.shape[1] * cache.keys.shape[2], q.shape[1]
    keys, values = (torch.stack([repeated(x, table, heads) for table in block_tables]) for x in cache)
    mask = (torch.arange(length, device=q.device) < seq_lens[:, None])[:, None, None]
    return F.scaled_dot_product_attention(q[:, :, None], keys, values, mask, scale=scale)[:, :, 0]


def eager_prefill_attention(q, cache, block_tables, query_start_loc, seq_lens, scale):
    """One sequence, nothing cached before."""
    keys, values = (repeated(x, block_tables[0], q.shape[1])[None, :, : len(q)] for x in cache)
    out = F.scaled_dot_product_attention(q.transpose(0, 1)[None], keys, values, is_causal=True, scale=scale)
    return out[0].transpose(0, 1)


def eager_moe_experts(x, gate_up, down, weights, expert_ids):
    """One expert after the other, each over the tokens that chose it."""
    out = torch.zeros_like(x, dtype=torch.float32)
    for expert in expert_ids.unique().tolist():
        rows, place = (expert_ids == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[rows], gate_up.data[expert]).chunk(2, dim=-1)
        hidden = F.linear(F.silu(gate) * up, down.data[expert])
        out.index_add_(0, rows, hidden.float() * weights[rows, place, None].float())
    return out.to(x.dtype)


def gate_rows(x: Tensor) -> Tensor:
    """Up to GATE_TOKENS rows of x from its first to its last."""
    return torch.linspace(0, len(x) - 1, min(GATE_TOKENS, len(x)), device=x.device).long()


def exact_moe_experts(inputs: tuple) -> list[Tensor]:
    """Some tokens in float64, with the weights of their experts alone."""
    x, gate_up, down, weights, ids = inputs
    rows = gate_rows(x)
    hit, renumbered = ids[rows].unique(return_inverse=True)
    wide = (Dense(weight.data[hit].double()) for weight in (gate_up, down))
    return [reference.moe_experts(x[rows].double(), *wide, weights[rows].double(), renumbered)]


def exact_prefill_attention(inputs: tuple) -> list[Tensor]:
    """Some queries in float64, each as a decode over the tokens before it."""
    q, cache, tables, _, _, scale = inputs
    rows = gate_rows(q)
    tables = tables.expand(len(rows), -1)
    return [reference.decode_attention(q[rows].double(), on_tensors(widened, cache), tables, rows + 1, scale)]
