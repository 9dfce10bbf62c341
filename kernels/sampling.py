"""Sampling on the device: temperature, top-k, top-p, min-p and the draw in one launch, without sorting the vocabulary.

Every filter is a threshold on the logits, so nothing has to be sorted. A row is one program. It looks for a cut that
surely lies below the thresholds and leaves at most CAPACITY candidates, usually in one to three passes over the row,
and copies these in the order of their ids. Then bisection over the bits of a float, whose order is that of integers,
finds each threshold exactly, in at most 32 passes over the few, and two more draw. Where no cut leaves few enough, and
where nothing but temperature and min-p are asked for, the same passes go over the whole row. Sums are of float32 in a
fixed order: the same row gives the same token, wherever in a batch it stands.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import require

BLOCK = 4096  # logits per step of a pass over a row; three steps in flight are 48 KB
CAPACITY = 4096  # candidates of a row
CANDIDATES_BLOCK = 1024  # per step of a pass over them
PROBES = 8  # passes that may look for a cut
NUM_WARPS = 8


@triton.jit
def _key(value):
    """The integer that stands for a float32 in the order of all floats."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _float(key):
    """The float32 of a key."""
    bits = key.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _weights(logits, best, inverse, threshold):
    """What each logit counts in the draw: its probability over that of the best, 0 below the threshold."""
    return tl.where(logits >= threshold, tl.exp((logits - best) * inverse), 0.0)


@triton.jit
def _at_least(logits_ptr, n, best, inverse, threshold, BLOCK: tl.constexpr):
    """How many of n logits are at least the threshold, and the sum of their weights."""
    count = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for begin in tl.range(0, n, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        count += ((logits >= threshold) & (index < n)).to(tl.int32)
        mass += _weights(logits, best, inverse, threshold)
    return tl.sum(count, 0), tl.sum(mass, 0)


@triton.jit
def _compact(candidates_ptr, ids_ptr, logits_ptr, n, cut, BLOCK: tl.constexpr):
    """Copies the logits that are at least the cut, and their ids, in the order of the ids."""
    count = 0
    for begin in tl.range(0, n, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        kept = ((logits >= cut) & (index < n)).to(tl.int32)
        place = count + tl.cumsum(kept, 0) - 1
        tl.store(candidates_ptr + place, logits, mask=kept > 0)
        tl.store(ids_ptr + place, index, mask=kept > 0)
        count += tl.sum(kept, 0)


@triton.jit
def _draw(logits_ptr, n, best, inverse, threshold, uniform, BLOCK: tl.constexpr):
    """The index of the first logit at which the running sum of the weights exceeds uniform times the whole sum."""
    whole = 0.0
    for begin in range(0, n, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        whole += tl.sum(_weights(logits, best, inverse, threshold), 0)
    drawn = uniform * whole
    found = -1
    before = 0.0
    begin = 0
    while found < 0:
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < n, other=float("-inf"))
        weights = _weights(logits, best, inverse, threshold)
        after = before + tl.sum(weights, 0)
        begin += BLOCK
        if (after > drawn) | (begin >= n):
            # Running sums are rounded one by one: only what has weight is drawn, and something is.
            last = tl.max(tl.where(weights > 0, index, 0), 0)
            hit = (weights > 0) & (before + tl.cumsum(weights, 0) > drawn)
            found = tl.min(tl.where(hit, index, last), 0)
        before = after
    return found


@triton.jit
def _choose(
    logits_ptr, n, best, inverse, threshold, low, filters_k, top_k, filters_p, top_p, mass, uniform, BLOCK: tl.constexpr
):
    """The index that is drawn from n logits, among which are all that the filters keep.

    threshold is min-p's; low is a key that is not above the thresholds of the other filters; mass is the sum of the
    weights of the whole row, needed for top-p alone.
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
        # Of tokens that equal the last one only so many count as fill up top_k.
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
    return _draw(logits_ptr, n, best, inverse, threshold, uniform, BLOCK)


@triton.jit
def _uniform(seed, position):
    """float32 in [0, 1) with 24 random bits, the same as `qwen3_kernels.philox.uniform` gives; both are int64."""
    low = position.to(tl.uint32)
    word, _, _, _ = tl.philox(seed, low, (position >> 32).to(tl.uint32), low * 0, low * 0)
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def sample_kernel(
    tokens_ptr,
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    candidates_ptr,
    candidate_ids_ptr,
    V,
    BLOCK: tl.constexpr,
    CAPACITY: tl.constexpr,
    CANDIDATES_BLOCK: tl.constexpr,
    PROBES: tl.constexpr,
):
    """tokens[s] is the token of row s of the logits, as `sample` says.

    tokens [S] int64, logits [S, V] float32, parameters [S]; candidates [S, CAPACITY] float32 and candidate_ids
    [S, CAPACITY] int32 are a workspace. Grid: (S,). A program owns one row.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    # Each lane keeps the first of its best; the lowest of these ids is the first of all.
    lane_best = tl.full((BLOCK,), float("-inf"), tl.float32)
    lane_id = tl.arange(0, BLOCK)
    for begin in tl.range(0, V, BLOCK, num_stages=4):
        index = begin + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + index, mask=index < V, other=float("-inf"))
        lane_id = tl.where(logits > lane_best, index, lane_id)
        lane_best = tl.maximum(lane_best, logits)
    best = tl.max(lane_best, 0)
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0:
        best_id = tl.min(tl.where(lane_best == best, lane_id, V), 0)
        tl.store(tokens_ptr + row, best_id.to(tl.int64))
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

    # The cut lies `reach` temperatures below the best: deep enough for all that is kept, and not deeper than it must.
    low = _key(tl.full((), float("-inf"), tl.float32))
    mass = 0.0
    candidates = 0
    cut = best
    if filters_k | filters_p:
        if not filters_k:
            _, mass = _at_least(logits_ptr, V, best, inverse, float("-inf"), BLOCK)
        near = 0.0
        far = float("inf")
        reach = 8.0
        probe = 0
        while probe < PROBES:
            cut = best - reach * temperature
            count, reached = _at_least(logits_ptr, V, best, inverse, cut, BLOCK)
            if (filters_k & (count >= top_k)) | ((not filters_k) & (reached >= top_p * mass)):
                low = _key(cut)
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
        _compact(candidates_ptr, candidate_ids_ptr, logits_ptr, V, cut, BLOCK)
        # What one thread has written others will read.
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
    """One token id per row, a function of its logits, its parameters and (seed, position) alone.

    logits [S, V] contiguous float32; temperature [S], 0 is greedy and takes the first of the best; top_k [S] int64, V
    keeps all; top_p [S], 1 keeps all; min_p [S], 0 keeps all; seeds [S] int64; positions [S] int64 of the token to be
    drawn -> [S] int64. Temperature, top-k, top-p (the token that crosses top_p stays), min-p relative to the most
    likely; tokens of equal logits stay or go together. One uniform of Philox (Salmon et al., 2011) picks from what is
    kept, in the order of the ids. Nothing waits for the device. Raises ValueError for other layouts or dtypes.
    """
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
            BLOCK=BLOCK,
            CAPACITY=CAPACITY,
            CANDIDATES_BLOCK=CANDIDATES_BLOCK,
            PROBES=PROBES,
            num_warps=NUM_WARPS,
        )
    return tokens
