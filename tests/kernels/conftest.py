"""Without Triton only the PyTorch backends and what they share can be tested."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

WITHOUT_TRITON = {"test_contract.py", "test_cpu.py", "test_philox.py", "test_reference.py", "test_types.py"}

collect_ignore: list[str] = []
if not importlib.util.find_spec("triton"):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in WITHOUT_TRITON]
else:
    import triton

    from .barriers import barriers_checked

    @pytest.fixture(autouse=triton.knobs.runtime.interpret)
    def barriers() -> Iterator[None]:
        """In every test, a program that reads what it has written needs a barrier between."""
        with barriers_checked():
            yield
