"""The random numbers against the published known answers, and their spread."""

import torch

from qwen3_kernels.philox import philox, uniform


def words(*values):
    return tuple(torch.tensor([v]) for v in values)


def test_known_answers():
    """From the Random123 distribution's kat_vectors file, philox4x32 with 10 rounds."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    cases = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (pi, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, expected in cases:
        assert tuple(w.item() for w in philox(words(*counter), words(*key))) == expected


def test_uniform_is_spread_evenly_and_knows_all_64_bits_of_a_seed():
    positions = torch.arange(100_000)
    numbers = uniform(torch.zeros_like(positions), positions)
    assert numbers.min() >= 0 and numbers.max() < 1
    # A mean of 100,000 numbers has a standard deviation of 0.0009.
    assert abs(numbers.mean().item() - 0.5) < 0.005 and abs(numbers.var().item() - 1 / 12) < 0.003
    seeds = torch.tensor([1, 1 + 2**32, -1])
    assert len(set(uniform(seeds, torch.zeros_like(seeds)).tolist())) == 3
