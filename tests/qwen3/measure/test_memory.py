"""Free memory: of the machine, of its control groups in both versions of their files, of a GPU."""

import io
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from qwen3 import Qwen3Error
from qwen3.measure import memory
from qwen3.measure.memory import available_bytes, gigabytes, kv_cache_bytes, out_of_memory_is_an_error, require

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GB = 10**9
MEMINFO = "MemTotal: 64000000 kB\nMemFree: 1 kB\nMemAvailable: 32000000 kB\n"
STAT = "anon 1\nfile 9\ninactive_file 4000000000\nactive_file 2000000000\nslab_reclaimable 500000000\nweird\n"
ROOT = "/sys/fs/cgroup"
IN_B = {"/proc/self/cgroup": "0::/a/b\n"}


def group(place: str, limit: str, used: str = "7000000000", stat: str = STAT) -> dict[str, str]:
    """The files of a control group of version 2."""
    return {f"{place}/memory.max": limit, f"{place}/memory.current": used, f"{place}/memory.stat": stat}


def group1(place: str, limit: str, used: str = "7000000000", stat: str = STAT) -> dict[str, str]:
    """The files of a control group of version 1."""
    names = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": used, "memory.stat": stat}
    return {f"{place}/{name}": content for name, content in names.items()}


@pytest.fixture
def system(monkeypatch):
    """Puts other contents in the place of the system's files; those that are not given are not there."""

    def put(files: dict[str, str]) -> None:
        given = {"/proc/meminfo": MEMINFO} | files

        def fake(path, *_, **__):
            if str(path) not in given:
                raise FileNotFoundError(path)
            return io.StringIO(given[str(path)])

        monkeypatch.setattr(memory, "open", fake, raising=False)

    return put


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, 32_768_000_000),
        # Limit 8 GB, 7 GB used, of which 6.5 GB can be dropped.
        (group(ROOT, "8000000000\n"), int(7.5 * GB)),
        (group(ROOT, "8000000000", stat=""), GB),
        (group(ROOT, "8000000000", stat="inactive_file 4000000000\n"), 5 * GB),
        (group(ROOT, "8000000000", stat="active_file 4000000000\n"), 5 * GB),
        (group(ROOT, "8000000000", stat="slab_reclaimable 4000000000\n"), 5 * GB),
        (group(ROOT, "8000000000", stat="inactive_file 9000000000\n"), 8 * GB),  # never more than the limit
        (group(ROOT, "8000000000", stat="inactive_file x\n"), GB),
        (group(ROOT, "5000000000", stat=""), 0),  # used beyond the limit
        (group(ROOT, "max\n"), 32_768_000_000),
        (group(ROOT, "99000000000000"), 32_768_000_000),
        (group(ROOT, "max") | {f"{ROOT}/memory.high": "8000000000"}, int(7.5 * GB)),
        # The group of this process and those above it.
        (IN_B | group(f"{ROOT}/a/b", "8000000000"), int(7.5 * GB)),
        (IN_B | group(f"{ROOT}/a/b", "max") | group(f"{ROOT}/a", "8000000000"), int(7.5 * GB)),
        (IN_B | group(ROOT, "9000000000") | group(f"{ROOT}/a", "8000000000"), int(7.5 * GB)),
        # In a container the path is the host's, and the group is the root.
        ({"/proc/self/cgroup": "0::/docker/x\n"} | group(ROOT, "8000000000"), int(7.5 * GB)),
        ({"/proc/self/cgroup": "0::/../../x\n"} | group(ROOT, "8000000000"), int(7.5 * GB)),
        # Version 1.
        (group1(f"{ROOT}/memory", "8000000000"), int(7.5 * GB)),
        (group1(f"{ROOT}/memory", "9223372036854771712"), 32_768_000_000),
        (group1(f"{ROOT}/memory", "8000000000", stat="inactive_file 1\ntotal_inactive_file 4000000000\n"), 5 * GB),
        ({"/proc/self/cgroup": "4:cpu,memory:/a\n0::/\n"} | group1(f"{ROOT}/memory/a", "8000000000"), int(7.5 * GB)),
        ({"/proc/self/cgroup": "4:memory:/a\n0::/b\n"} | group(f"{ROOT}/b", "8000000000"), int(7.5 * GB)),
        # Both at once, and files that say nothing.
        (group(ROOT, "9000000000", stat="") | group1(f"{ROOT}/memory", "8000000000", stat=""), GB),
        ({f"{ROOT}/memory.max": "8000000000"}, 32_768_000_000),
        ({f"{ROOT}/memory.max": "", "/proc/self/cgroup": "nonsense\n\n:::\n"}, 32_768_000_000),
    ],
)  # fmt: skip
def test_what_can_be_dropped_is_free(system, files, free):
    system(files)
    assert available_bytes(CPU) == free


@pytest.mark.parametrize("system_calls", [{}, {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}])
def test_a_system_that_does_not_tell_what_is_free(system, monkeypatch, system_calls):
    def sysconf(name):
        if name not in system_calls:
            raise ValueError("unrecognized configuration name")
        return system_calls[name]

    system({"/proc/meminfo": ""})
    monkeypatch.setattr(os, "sysconf", sysconf)
    assert available_bytes(CPU) == (4_096_000 if system_calls else memory.UNLIMITED)
    monkeypatch.delattr(os, "sysconf")  # Windows
    assert available_bytes(CPU) == memory.UNLIMITED
    require(10**15, CPU, "it", "")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 80 GB: 50 GB are used, of which this process holds 30 GB, 10 GB of it for later."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 20 * GB)


def test_memory_that_pytorch_keeps_for_later_is_free(gpu):
    assert available_bytes(GPU) == 40 * GB
    require(40 * GB, GPU, "it", "")
    with pytest.raises(Qwen3Error, match=r"out of memory: it needs 40.0 GB, cuda has 40.0 GB free: less"):
        require(40 * GB + 1, GPU, "it", "less")


def test_kv_cache_bytes_of_a_gpu(gpu):
    # 90% of 80 GB, without the 40 GB that are used and the 5 GB of a step.
    assert kv_cache_bytes(GPU, 0.9, 5 * GB, 1) == 27 * GB
    assert kv_cache_bytes(GPU, 0.5, 0, 1) == 0
    assert kv_cache_bytes(GPU, 0.25, 0, 1) == -20 * GB


def test_kv_cache_bytes_of_a_cpu(system):
    system(group(ROOT, "8000000000"))
    assert kv_cache_bytes(CPU, 0.5, 99 * GB, 1) == 2**30
    assert kv_cache_bytes(CPU, 0.5, 0, 3 * GB) == 3 * GB
    assert kv_cache_bytes(CPU, 0.5, 0, 5 * GB) == int(3.75 * GB)


def test_an_allocation_that_fails_is_an_error_of_one_line(system):
    system({})
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x\ny"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        told = pytest.raises(Qwen3Error, match=r"out of memory: it needs 5.0 GB, cpu has 32.8 GB free: less")
        with told, out_of_memory_is_an_error(5 * GB, CPU, "it", "less"):
            raise error
    with pytest.raises(RuntimeError, match="other"), out_of_memory_is_an_error(1, CPU, "it", ""):
        raise RuntimeError("other")


def test_peak_memory_is_in_bytes(system, monkeypatch):
    """The kernel's figure is in kilobytes, getrusage's too, but for macOS."""
    system({"/proc/self/status": "VmPeak: 9 kB\nVmHWM:\t   7 kB\n"})
    assert memory.peak_bytes(CPU) == 7 * 1024
    system({})
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=5000))
    monkeypatch.setitem(sys.modules, "resource", usage)
    for platform, expected in (("linux", 5000 * 1024), ("darwin", 5000)):
        monkeypatch.setattr(memory.sys, "platform", platform)
        assert memory.peak_bytes(CPU) == expected


def test_sizes_for_people():
    assert [gigabytes(n) for n in (0, 15_900_000, 999_999_999, GB, 61_100_000_000, 10**13)] == [
        "0.0 MB", "15.9 MB", "1,000.0 MB", "1.0 GB", "61.1 GB", "10,000.0 GB",
    ]  # fmt: skip
