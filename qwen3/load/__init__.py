"""Checkpoints: from the hub to disk, from disk to tensors."""

from ..errors import Qwen3Error, one_line

try:
    from huggingface_hub import constants  # noqa: F401
except ValueError as error:  # it reads numbers from the environment
    raise Qwen3Error(f"huggingface_hub cannot be imported ({one_line(error)}): correct the variables HF_*") from None
