"""Gives back the OpenMP threads of a thread that is going to wait.

GNU's OpenMP, which PyTorch uses on Linux, keeps a team of threads for every thread that has computed something. While
there are more of them than cores, none of them spins for more work, which makes a decode step on a CPU up to three
times slower. So of the engine's thread and its callers only the one that computes should have a team.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

_SOFT = 1  # omp_pause_soft of OpenMP 5.0: a team is made again when it is needed


def release_threads() -> None:
    """Ends the team of the calling thread; does nothing with another OpenMP or where there is no team."""
    _pause()(_SOFT)


@cache
def _pause() -> Callable[[int], object]:
    """omp_pause_resource_all of the GNU library that this process has loaded."""
    try:
        loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        return ctypes.CDLL(loaded.pop()).omp_pause_resource_all if len(loaded) == 1 else lambda kind: None
    except (OSError, AttributeError):
        return lambda kind: None
