"""Without Triton there is nothing here to test but the PyTorch backends."""

import importlib.util

collect_ignore_glob: list[str] = []
if not importlib.util.find_spec("triton"):
    collect_ignore_glob = ["test_*.py"]
