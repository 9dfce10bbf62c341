"""What the reference path does in its own way on a CPU, where PyTorch's shortest way is slow: products and attention.

The mathematics and the rounding are those of the functions in `reference` that call this.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores that are computed at once in attention: 2 MB in float32, which stays in a core's cache.
_SCORES = 2**19
# Queries that are computed at once, at least and at most.
_QUERIES = 16, 128


class _WithoutOneDNN:
    """Inside, PyTorch's own products: oneDNN repacks bfloat16 weights for every call, these only read them."""

    def __enter__(self) -> None:
        self.enabled = torch.backends.mkldnn.enabled
        torch.backends.mkldnn.enabled = False

    def __exit__(self, *exception: object) -> None:
        torch.backends.mkldnn.enabled = self.enabled


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, not always contiguous, in the way that reads the weights fastest. x [T, K], weight [N, K] -> [T, N]."""
    rows = x.shape[0]
    if x.dtype == torch.float32 and x.device.type == "cpu" and 0 < rows <= 128:
        # W xᵀ reads up to twice as fast as x Wᵀ.
        out = _one_column(weight, x.t()) if rows == 1 else torch.mm(weight, x.t()).t()
        return out if bias is None else out + bias
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and 0 < rows <= 2:
        with _WithoutOneDNN():
            return F.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def products(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    """Rows that lie together by expert, each expert's through its matrix.

    rows [R, K], weight [E, N, K], counts: the rows of each of E experts, R together -> [R, N].
    """
    hit = [(expert, part) for expert, part in enumerate(rows.split(counts)) if len(part)]
    if len(rows) <= 512 or torch.is_grad_enabled():
        return torch.cat([product(part, weight[expert]) for expert, part in hit])
    # Many rows: each product is written where it belongs, which autograd cannot follow.
    out = rows.new_empty(len(rows), weight.shape[1])
    parts = [part for part in out.split(counts) if len(part)]
    for (expert, part), target in zip(hit, parts):
        torch.mm(part, weight[expert].t(), out=target)
    return out


def row_products(rows: Tensor, weight: Tensor, experts: list[int]) -> Tensor:
    """Row i through the matrix of experts[i]. rows [k, K], weight [E, N, K] -> [k, N]."""
    if rows.dtype == torch.float32 and rows.device.type == "cpu":
        size, length = weight.shape[1:]
        halves = _halves(size)
        matrices = weight.view(-1, halves, size // halves, length)
        columns = rows[:, None, None].mT.expand(-1, halves, -1, -1).unbind()
        out = torch.cat([torch.bmm(matrices[expert], column) for expert, column in zip(experts, columns)])
        return out.view(len(experts), size)
    with _WithoutOneDNN():
        return torch.stack([torch.mv(weight[expert], row) for expert, row in zip(experts, rows.unbind())])


def _one_column(weight: Tensor, column: Tensor) -> Tensor:
    """weight [N, K] times column [K, 1], a transposed row -> [1, N]."""
    size, length = weight.shape
    halves = _halves(size)
    return torch.bmm(weight.view(halves, -1, length), column.expand(halves, length, 1)).view(1, size)


def _halves(size: int) -> int:
    """Into how many matrices one of `size` rows is cut: as a batch of two, all cores read weights, else only one."""
    return 2 if size % 2 == 0 else 1


def causal_attention(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal grouped-query attention, softmax and scores wide, a block of queries at a time and no key after it.

    q [Hq, n, D]: the last n of the keys' tokens; keys, values [Hkv, length, D] -> [Hq, n, D]. Not differentiable.
    """
    heads, n, head_dim = q.shape
    kv_heads, length, _ = keys.shape
    fewest, most = _QUERIES
    block = min(n, most, max(fewest, _SCORES // (heads * length)))
    q, keys = q.float() * scale, keys.float().mT
    future = q.new_full((block, block), float("-inf")).triu_(1)
    # One buffer for all blocks: new memory has to be cleared by the system each time.
    buffer, outs = q.new_empty(heads * block * length), []
    for start in range(0, n, block):
        rows = q[:, start : start + block]
        count = rows.shape[1]
        seen = length - n + start + count
        scores = buffer[: heads * count * seen].view(heads, count, seen)
        # The heads of a group are rows of one matrix: no key is repeated.
        torch.bmm(rows.reshape(kv_heads, -1, head_dim), keys[..., :seen], out=scores.view(kv_heads, -1, seen))
        scores[..., seen - count :] += future[:count, :count]
        torch.softmax(scores, -1, out=scores)
        probabilities = scores.view(kv_heads, -1, seen).to(values.dtype)
        outs.append(torch.bmm(probabilities, values[:, :seen]).view(heads, count, head_dim))
    return torch.cat(outs, 1)
