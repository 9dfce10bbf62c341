"""Sampling on the device: temperature, top-k, top-p, min-p and the choice in one launch, without sorting.

Every filter is a threshold on the logits, so nothing has to be sorted. A program owns a row. It looks for a cutoff that
is surely below the thresholds and leaves at most CAPACITY candidates, usually in one to three passes over the row, and
copies the candidates in the order of their ids. Then bisection over the bits of a float, whose order is that of
integers, finds each threshold exactly, in at most 32 passes over the candidates. Two more passes choose the token.
Where no cutoff leaves few enough, and where only temperature and min-p are asked for, the passes go over the whole row.
Sums are in float32 in a fixed order: a row gives the same token wherever in a batch it is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import require
from .ops import NO_TOKEN

BLOCK = 4096  # logits per step of a pass over a row; three steps in flight are 48 KB
CAPACITY = 4096  # candidates of a row
CANDIDATES_BLOCK = 1024  # per step of a pass over them
PROBES = 8  # passes that may look for a cutoff
NUM_WARPS = 8


@triton.jit
def _key(value):
    """An integer for each float32, in the same order."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _float(key):
    """The float32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weights(logits, best, inverse, threshold):
    """The weight of each logit: its probability relative to that of the largest, 0 below the threshold."""
    return tl.where(logits >= threshold, tl.exp((logits - best) * inverse), 0.0)


@triton.jit
def _at_least(logits_ptr, n, best, inverse, threshold, BLOCK: tl.constexpr):
    """The number of logits that are at least the threshold, and the sum of their weights."""
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for begin in tl.range(0, n, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        count += ((logits >= threshold) & (index < n)).to(tl.int32)
        mass += _weights(logits, best, inverse, threshold)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _compact(candidates_ptr, ids_ptr, logits_ptr, n, cutoff, BLOCK: tl.constexpr):
    """Copies the logits that are at least the cutoff, and their ids, in the order of the ids."""
    count = 0
    for begin in tl.range(0, n, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        cutoff_mask = ((logits >= cutoff) & (index < n)).to(tl.int32)
        place = count + tl.cumsum(cutoff_mask, 0) - 1
        tl.store(candidates_ptr + place, logits, mask=cutoff_mask > 0)
        tl.store(ids_ptr + place, index, mask=cutoff_mask > 0)
        count += tl.sum(cutoff_mask, 0)


@triton.jit
def _pick(logits_ptr, n, best, inverse, threshold, uniform, BLOCK: tl.constexpr):
    """The index of the first logit at which the running sum of the weights exceeds uniform times the total."""
    total = 0.0
    for begin in range(0, n, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        total += tl.sum(_weights(logits, best, inverse, threshold), 0)
    target = uniform * total
    found = -1
    before = 0.0
    begin = 0
    while found < 0:
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        weights = _weights(logits, best, inverse, threshold)
        after = before + tl.sum(weights, 0)
        begin += BLOCK
        if (after > target) | (begin >= n):
            # Running sums are rounded one by one: pick a token that has weight, the last one if no sum exceeds target.
            last = tl.max(tl.where(weights > 0, index, 0), 0)
            pick_mask = (weights > 0) & (before + tl.cumsum(weights, 0) > target)
            found = tl.min(tl.where(pick_mask, index, last), 0)
        before = after
    return found


@triton.jit
def _choose(
    logits_ptr, n, best, inverse, threshold, low, filters_k, top_k, filters_p, top_p, mass, uniform, BLOCK: tl.constexpr
):
    """Index of the sampled one of n logits, which include all that the filters keep.

    threshold: that of min-p. low: a key that is not above the thresholds of the other filters. mass: sum of the weights
    of the whole row, needed for top-p without top-k.
    """
    high = _key(best)
    if filters_k:
        kth = high
        while low < kth:
            middle = (low + kth + 1) >> 1
            count, _ = _at_least(logits_ptr, n, best, inverse, _float(middle), BLOCK)
            if count >= top_k:
                low = middle
            else:
                kth = middle - 1
        # Of the tokens equal to the k-th, only as many count as fill up top_k.
        larger, larger_mass = _at_least(logits_ptr, n, best, inverse, _float(low + 1), BLOCK)
        mass = larger_mass + (top_k - larger).to(tl.float32) * tl.exp((_float(low) - best) * inverse)
        threshold = tl.maximum(threshold, _float(low))
    if filters_p:
        while low < high:
            middle = (low + high) >> 1
            _, larger_mass = _at_least(logits_ptr, n, best, inverse, _float(middle + 1), BLOCK)
            if larger_mass < top_p * mass:
                high = middle
            else:
                low = middle + 1
        threshold = tl.maximum(threshold, _float(high))
    return _pick(logits_ptr, n, best, inverse, threshold, uniform, BLOCK)


@triton.jit
def _uniform(seed, position):
    """float32 in [0, 1) with 24 random bits of two int64, equal to `qwen3_kernels.philox.uniform`."""
    low = position.to(tl.uint32)
    word, _, _, _ = tl.philox(seed, low, (position >> 32).to(tl.uint32), low * 0, low * 0)
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def sample_kernel(
    tokens_ptr,  # [S] int64
    logits_ptr,  # [S, V] float32
    temperature_ptr,  # [S] float32
    top_k_ptr,  # [S] int64
    top_p_ptr,  # [S] float32
    min_p_ptr,  # [S] float32
    seeds_ptr,  # [S] int64
    positions_ptr,  # [S] int64
    candidates_ptr,  # [S, CAPACITY] float32, workspace
    candidate_ids_ptr,  # [S, CAPACITY] int32, workspace
    V,
    NO_TOKEN: tl.constexpr,
    BLOCK: tl.constexpr,
    CAPACITY: tl.constexpr,
    CANDIDATES_BLOCK: tl.constexpr,
    PROBES: tl.constexpr,
):
    """tokens[s] = the token sampled from row s, or NO_TOKEN. Grid: (S,). A program owns one row."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    # Each lane keeps the id of its first largest logit; the lowest of these ids is the first of the row.
    lane_best = tl.full((BLOCK,), float("-inf"), tl.float32)
    lane_id = tl.arange(0, BLOCK)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < V, other=float("-inf"))
        lane_id = tl.where(logits > lane_best, index, lane_id)
        lane_best = tl.maximum(lane_best, logits, propagate_nan=tl.PropagateNan.ALL)
    best = tl.max(lane_best, 0)  # of the lanes that are not NaN
    has_nan = tl.max((lane_best != lane_best).to(tl.int32), 0)
    finite = (has_nan == 0) & (tl.abs(best) < float("inf"))
    temperature = tl.load(temperature_ptr + row)
    if (temperature == 0) | (not finite):
        best_id = tl.min(tl.where(lane_best == best, lane_id, V), 0)
        tl.store(tokens_ptr + row, tl.where(finite, best_id, NO_TOKEN).to(tl.int64))
        return

    inverse = 1 / temperature
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    filters_k = top_k < V
    filters_p = top_p < 1
    threshold = float("-inf")
    if min_p > 0:
        threshold = best + temperature * tl.log(min_p)

    # The cutoff is best - reach * temperature: lowered until it keeps every token that the filters keep, then raised
    # again while more than CAPACITY remain.
    low = _key(tl.full((), float("-inf"), tl.float32))
    mass = 0.0
    candidates = 0
    cutoff = best
    if filters_k | filters_p:
        if not filters_k:
            _, mass = _at_least(logits_ptr, V, best, inverse, float("-inf"), BLOCK)
        near = 0.0
        far = float("inf")
        reach = 8.0
        probe = 0
        while probe < PROBES:
            cutoff = best - reach * temperature
            count, reached = _at_least(logits_ptr, V, best, inverse, cutoff, BLOCK)
            if (filters_k & (count >= top_k)) | ((not filters_k) & (reached >= top_p * mass)):
                low = _key(cutoff)
                far = reach
                if count <= CAPACITY:
                    candidates = count
                    probe = PROBES
            else:
                near = reach
            reach = tl.where(far == float("inf"), 2 * reach, (near + far) / 2)
            probe += 1

    uniform = _uniform(tl.load(seeds_ptr + row), tl.load(positions_ptr + row))
    if candidates > 0:
        candidates_ptr += row * CAPACITY
        candidate_ids_ptr += row * CAPACITY
        _compact(candidates_ptr, candidate_ids_ptr, logits_ptr, V, cutoff, BLOCK)
        # Other threads read what one thread has written.
        tl.debug_barrier()
        place = _choose(
            candidates_ptr,
            candidates,
            best,
            inverse,
            threshold,
            low,
            filters_k,
            top_k,
            filters_p,
            top_p,
            mass,
            uniform,
            CANDIDATES_BLOCK,
        )
        token = tl.load(candidate_ids_ptr + place)
    else:
        token = _choose(
            logits_ptr, V, best, inverse, threshold, low, filters_k, top_k, filters_p, top_p, mass, uniform, BLOCK
        )
    tl.store(tokens_ptr + row, token.to(tl.int64))


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, positions: Tensor
) -> Tensor:
    """One token id per row, in one launch; the host waits for nothing. Takes contiguous tensors."""
    require("logits", logits, torch.float32, ("S", "V"))
    rows, vocabulary = logits.shape
    if vocabulary == 0:
        raise ValueError(f"logits must have columns, got {list(logits.shape)}")
    require("temperature", temperature, torch.float32, (rows,), like=logits)
    require("top_k", top_k, torch.int64, (rows,), like=logits)
    require("top_p", top_p, torch.float32, (rows,), like=logits)
    require("min_p", min_p, torch.float32, (rows,), like=logits)
    require("seeds", seeds, torch.int64, (rows,), like=logits)
    require("positions", positions, torch.int64, (rows,), like=logits)
    tokens = torch.empty((rows,), dtype=torch.int64, device=logits.device)
    if rows:
        candidates = torch.empty((rows, CAPACITY), dtype=torch.float32, device=logits.device)
        candidate_ids = torch.empty((rows, CAPACITY), dtype=torch.int32, device=logits.device)
        sample_kernel[(rows,)](
            tokens,
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            positions,
            candidates,
            candidate_ids,
            vocabulary,
            NO_TOKEN=NO_TOKEN,
            BLOCK=BLOCK,
            CAPACITY=CAPACITY,
            CANDIDATES_BLOCK=CANDIDATES_BLOCK,
            PROBES=PROBES,
            num_warps=NUM_WARPS,
        )
    return tokens
