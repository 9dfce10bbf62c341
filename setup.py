import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = (ROOT / "qwen3/__init__.py").read_text(encoding="utf-8")
[version] = re.findall(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)
KERNELS = ["qwen3_kernels", *(f"qwen3_kernels.{name}" for name in find_packages("kernels"))]

setup(
    name="qwen3-triton",
    version=version,
    description="A small, readable, fast engine for the Qwen3-MoE family, in PyTorch and Triton",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*KERNELS, *find_packages(include=["qwen3", "qwen3.*", "benchmarks", "benchmarks.*"])],
    package_dir={"qwen3_kernels": "kernels"},
    package_data={
        "qwen3_kernels": ["py.typed"],
        "qwen3_kernels.aot": ["*.json"],
        "qwen3": ["py.typed"],
        "qwen3.tiny": ["*.json", "*.safetensors", "*.md"],
        "benchmarks": ["configs/*/config.json"],
    },
    install_requires=[
        "torch>=2.9,<2.14",
        "triton>=3.6,<3.10; sys_platform == 'linux'",
        "tokenizers>=0.21",
        "huggingface_hub>=1.0",
        "safetensors>=0.5",
        "jinja2>=3.1.6",
        "tqdm>=4.60",
        "numpy>=1.26",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "transformers>=5.0", "matplotlib>=3.8"],
        "bench": ["transformers>=5.0", "matplotlib>=3.8"],
        "dev": ["ruff==0.17.6", "mypy==2.4.1", "types-tqdm"],
        "tour": ["matplotlib>=3.8", "nbclient>=0.10", "ipykernel>=6"],
    },
    entry_points={"console_scripts": ["qwen3=qwen3.__main__:entry"]},
)
