"""Checkpoints of random weights, written by transformers under the published names: both sides load the same file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers

from .byte_tokenizer import write_tokenizer
from .common import config_folder, release_memory

transformers.utils.logging.disable_progress_bar()


@contextmanager
def random_checkpoint(shape: str, dtype: torch.dtype, device: str | torch.device = "cpu", **changes) -> Iterator[Path]:
    """A temporary folder with weights of a shape of `configs/`, made on `device`; `changes` to its config.json."""
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.AutoConfig.from_pretrained(config_folder(shape), **changes)
        torch.manual_seed(0)
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.save_pretrained(folder)
        del model
        release_memory(device)
        write_tokenizer(Path(folder))
        yield Path(folder)
