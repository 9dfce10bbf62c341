"""A thread that waits has no team of OpenMP threads, and gets one again when it computes."""

import os
import sys
import threading

import pytest
import torch

from qwen3.engine.openmp import release_threads

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/task")


def threads():
    return len(os.listdir("/proc/self/task"))


def compute():
    torch.ones(512, 512) @ torch.ones(512, 512)


def test_a_team_is_given_back_and_made_again():
    counts = []

    def work():
        before = threads()
        for _ in range(2):
            compute()
            counts.append(threads() - before)
            release_threads()
            counts.append(threads() - before)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    with_team, without, again, at_the_end = counts
    if with_team == 0:
        pytest.skip("this PyTorch does not use GNU's OpenMP for products")
    assert with_team == again == 2 and without == at_the_end == 0


def test_without_a_team_nothing_happens():
    release_threads()
    release_threads()
