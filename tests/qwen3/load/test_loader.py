"""Every way in which checkpoint files come, and every way in which they are wrong."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3 import Qwen3Error
from qwen3.config.hf import model_config
from qwen3.load.index import weight_bytes
from qwen3.load.loader import load_weights
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels.backend import backend

from ..conftest import write_checkpoint


def empty_model(folder, dtype=torch.float32):
    return Qwen3(model_config(folder), backend("reference"), 64, dtype)


def loaded(folder, dtype=torch.float32):
    model = empty_model(folder, dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    load_weights(model, folder)
    return {name: tensor.clone() for name, tensor in model.published().items()}


def edit(folder, change):
    """Applies `change` to the tensors of model.safetensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def folder(tmp_path):
    write_checkpoint(tmp_path)
    return tmp_path


def test_every_tensor_lands_in_its_place(folder):
    on_disk = load_file(folder / "model.safetensors")
    tensors = loaded(folder)
    assert tensors.keys() == on_disk.keys()
    assert all(torch.equal(tensors[name], on_disk[name]) for name in on_disk)


def test_shards_and_another_dtype(folder, tmp_path_factory):
    whole = loaded(folder)
    sharded = tmp_path_factory.mktemp("sharded")
    write_checkpoint(sharded, shard_size="60KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    tensors = loaded(sharded, torch.bfloat16)
    assert all(torch.equal(tensors[name], whole[name].bfloat16()) for name in whole)
    assert weight_bytes(sharded) == sum(t.nbytes for t in whole.values())


def test_stacked_expert_names(folder):
    published = loaded(folder)

    def stack(tensors):
        for layer in range(3):
            prefix = f"model.layers.{layer}.mlp.experts."
            gates, ups, downs = (
                [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(8)] for part in ("gate", "up", "down")
            )
            tensors[prefix + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups)])
            tensors[prefix + "down_proj"] = torch.stack(downs)

    edit(folder, stack)
    assert all(torch.equal(t, published[name]) for name, t in loaded(folder).items())


def test_a_head_beside_a_tied_embedding_must_be_the_embedding(tmp_path):
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded(tmp_path)
    edit(tmp_path, lambda t: t["lm_head.weight"].mul_(2))
    with pytest.raises(Qwen3Error, match="lm_head.weight.*tie_word_embeddings"):
        loaded(tmp_path)


NORM, GATE = "model.layers.1.input_layernorm.weight", "model.layers.2.mlp.experts.3.gate_proj.weight"


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.pop(GATE), GATE),
        (lambda t: t.update({"model.layers.9.input_layernorm.weight": torch.ones(64)}), "model.layers.9"),
        (lambda t: t.update({NORM: torch.ones(65)}), NORM),
        (lambda t: t.update({GATE: t[GATE].t().contiguous()}), GATE),
        (lambda t: t.update({GATE: t[GATE].to(torch.int8)}), f"{GATE}.*I8"),
        (lambda t: t.update({GATE: t[GATE].to(torch.float8_e4m3fn)}), f"{GATE}.*F8"),
        (
            lambda t: t.update({"model.layers.2.mlp.experts.gate_up_proj": torch.ones(8, 96, 64)}),
            "experts.*twice",
        ),
    ],
    ids=["missing", "unexpected", "length", "transposed", "integers", "float8", "twice"],
)
def test_a_wrong_tensor_is_named(folder, change, named):
    edit(folder, change)
    with pytest.raises(Qwen3Error, match=named) as error:
        loaded(folder)
    assert "\n" not in str(error.value)


def test_files_that_are_missing_or_broken_are_named(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content[:4], b""):
        path.write_bytes(broken)
        with pytest.raises(Qwen3Error, match="model.safetensors.*download"):
            loaded(folder)
    path.unlink()
    with pytest.raises(Qwen3Error, match="model.safetensors: no such file"):
        loaded(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(Qwen3Error, match="model-1.safetensors: no such file"):
        loaded(folder)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(Qwen3Error, match="index.json"):
        loaded(folder)


MEASURE = """
import sys
from qwen3 import LLM
from qwen3.measure.memory import peak_bytes
import torch
before = int(open("/proc/self/statm").read().split()[1]) * 4096
llm = LLM(sys.argv[1], device="cpu")
print(peak_bytes(torch.device("cpu")) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_peak_memory_is_the_model_and_little_more(tmp_path):
    """What loading adds: the model, the largest tensor, and at most 200 MB; the file is not held in memory too."""
    changes = {"hidden_size": 512, "vocab_size": 16384, "moe_intermediate_size": 512, "num_experts": 32}
    write_checkpoint(tmp_path, **changes)
    size = weight_bytes(tmp_path)
    largest = 16384 * 512 * 4
    assert size > 300e6
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    assert size < int(run.stdout) <= size + largest + 200e6
