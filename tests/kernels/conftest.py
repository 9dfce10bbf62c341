"""Without Triton only the PyTorch backends and what they share can be tested."""

import importlib.util
from pathlib import Path

WITHOUT_TRITON = {"test_contract.py", "test_cpu.py", "test_philox.py", "test_reference.py", "test_types.py"}

collect_ignore: list[str] = []
if not importlib.util.find_spec("triton"):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in WITHOUT_TRITON]
