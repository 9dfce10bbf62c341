from setuptools import setup

setup(
    name="qwen3-triton",
    version="0.1.0",
    description="A small, readable, fast engine for the Qwen3-MoE family, in PyTorch and Triton",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=["qwen3_kernels", "qwen3", "qwen3.tiny", "benchmarks", "benchmarks.questions", "benchmarks.report"],
    package_dir={"qwen3_kernels": "kernels"},
    package_data={
        "qwen3_kernels": ["*.json"],
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
        "dev": ["ruff==0.17.6", "mypy==2.4.1"],
        "tour": ["matplotlib>=3.8", "nbclient>=0.10", "ipykernel>=6"],
    },
    entry_points={"console_scripts": ["qwen3=qwen3.cli:main"]},
)
