"""Every way in which checkpoint files come, and every way in which they are wrong."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from qwen3 import Qwen3Error
from qwen3.config.hf import model_config
from qwen3.load import loader
from qwen3.load.index import weight_bytes
from qwen3.load.reader import read_headers
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels.backend import backend

from ..conftest import write_checkpoint
from .checkpoints import edit, loaded


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


@pytest.mark.parametrize("mlx", [False, True])
def test_stacked_expert_names(folder, mlx):
    published = loaded(folder)

    def stack(tensors):
        for layer in range(3):
            prefix = f"model.layers.{layer}.mlp.experts."
            gates, ups, downs = (
                [tensors.pop(f"{prefix}{e}.{part}_proj.weight") for e in range(8)] for part in ("gate", "up", "down")
            )
            if mlx:
                prefix = prefix.replace("experts", "switch_mlp")
                parts = {"gate": gates, "up": ups, "down": downs}
                tensors.update({f"{prefix}{part}_proj.weight": torch.stack(every) for part, every in parts.items()})
                continue
            tensors[prefix + "gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gates, ups)])
            tensors[prefix + "down_proj"] = torch.stack(downs)

    edit(folder, stack)
    assert all(torch.equal(t, published[name]) for name, t in loaded(folder).items())


def test_a_head_beside_a_tied_embedding_must_be_the_embedding(tmp_path):
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    loaded(tmp_path)
    edit(tmp_path, lambda t: t["lm_head.weight"].mul_(2))
    with pytest.raises(Qwen3Error, match="lm_head.weight.*set tie_word_embeddings to false in .*config.json"):
        loaded(tmp_path)


def test_a_head_is_compared_in_the_models_dtype(tmp_path):
    """Some checkpoints hold it in another one than the embedding."""
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    name = "model.embed_tokens.weight"
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t[name].clone(), name: t[name].bfloat16()}))
    assert torch.isfinite(loaded(tmp_path, torch.bfloat16)[name]).all()


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_where_it_is_asked_for(folder, capfd, progress):
    model = Qwen3(model_config(folder), backend("reference"), 64, torch.float32)
    loader.load_weights(model, folder, progress)
    assert ("loading" in capfd.readouterr().err) is progress


def test_a_head_without_its_tied_embedding_is_the_embedding(tmp_path):
    """safetensors' save_model keeps one name of tied tensors, the first; transformers loads it as well."""
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    wanted = loaded(tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    found = loaded(tmp_path)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][1:].contiguous()}))
    with pytest.raises(Qwen3Error, match=r"lm_head.weight' has shape \[319, 64\]"):
        loaded(tmp_path)


NORM, GATE = "model.layers.1.input_layernorm.weight", "model.layers.2.mlp.experts.3.gate_proj.weight"


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.pop(GATE), GATE),
        (lambda t: t.update({"model.layers.9.input_layernorm.weight": torch.ones(64)}), "model.layers.9"),
        (lambda t: t.update({NORM: torch.ones(65)}), NORM),
        (lambda t: t.update({GATE: t[GATE].t().contiguous()}), GATE),
        (lambda t: t.update({GATE: t[GATE].to(torch.int32)}), f"{GATE}.*I32"),
        (
            lambda t: t.update({"model.layers.2.mlp.experts.gate_up_proj": torch.ones(8, 96, 64)}),
            "experts.*twice",
        ),
    ],
    ids=["missing", "unexpected", "length", "transposed", "integers", "twice"],
)
def test_a_wrong_tensor_is_named_before_any_is_read(folder, change, named, monkeypatch):
    edit(folder, change)
    monkeypatch.setattr(loader, "read_tensors", None)
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


# Every dtype that the format knows, with its bits: https://github.com/huggingface/safetensors, tensor.rs.
DTYPES = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
FLOATING = {"F16", "BF16", "F32", "F64"}


def write_raw(path, name: str, dtype: str, shape: list[int]) -> None:
    """A file of one tensor of zeros of any dtype, written by hand."""
    size = DTYPES[dtype] * torch.Size(shape).numel() // 8
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - FLOATING))
def test_only_floating_point_is_loaded(tmp_path, dtype):
    write_raw(tmp_path / "x.safetensors", "a\nb", dtype, [8, 8])
    # An older safetensors cannot read the newest dtypes at all.
    newest = "" if dtype[0] in "BUIC" else "|cannot be read"
    with pytest.raises(Qwen3Error, match=f"x has dtype {dtype}: only F64, F32, F16, BF16 are supported{newest}"):
        read_headers(tmp_path / "x.safetensors")["a\nb"].check("x")


@pytest.mark.parametrize("dtype", sorted(FLOATING))
def test_every_floating_dtype_is_loaded(folder, dtype):
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
    edit(folder, lambda t: t.update({name: tensor.to(kinds[dtype]) for name, tensor in t.items()}))
    on_disk, tensors = load_file(folder / "model.safetensors"), loaded(folder)
    assert all(torch.equal(tensors[name], on_disk[name].float()) for name in on_disk)


BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}


@pytest.mark.parametrize(
    "value, dtype", [("nan", torch.float32), ("inf", torch.bfloat16), ("-inf", torch.float16), ("nan", torch.float16)]
)
@pytest.mark.parametrize("name", [NORM, GATE, "lm_head.weight"])
def test_values_that_are_not_finite_are_named(folder, caplog, name, value, dtype):
    loaded(folder, dtype)
    assert not caplog.records
    edit(folder, lambda t: t[name].view(-1)[-1:].fill_(BAD[value]))
    assert not loaded(folder, dtype)[name].isfinite().all()
    (record,) = caplog.records
    assert record.levelname == "WARNING" and name in record.getMessage() and "not finite" in record.getMessage()
    assert "more tensors" not in record.getMessage()


def test_of_many_tensors_that_are_not_finite_one_is_named(folder, caplog):
    edit(folder, lambda t: [t[name].view(-1)[:1].fill_(float("nan")) for name in (NORM, GATE, "lm_head.weight")])
    loaded(folder)
    assert len(caplog.records) == 1 and "as have 2 more tensors" in caplog.text


@pytest.mark.parametrize(
    "on_disk, value, dtype, fits",
    [
        (torch.bfloat16, 70_000.0, torch.float16, torch.bfloat16),
        (torch.float32, -65_520.0, torch.float16, torch.bfloat16),
        (torch.float32, 3.4e38, torch.bfloat16, torch.float32),
        (torch.float64, 1e39, torch.float32, None),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(folder, on_disk, value, dtype, fits):
    def change(tensors):
        tensors[GATE] = tensors[GATE].to(on_disk)
        tensors[GATE].view(-1)[5:7] = value

    edit(folder, change)
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(Qwen3Error, match=f"{GATE}' has 2 values too large for {name}, up to .*: use dtype") as caught:
        loaded(folder, dtype)
    assert f"{abs(value):.2g}"[:1] in str(caught.value)
    if fits:
        loaded(folder, fits)


def test_the_largest_values_of_a_dtype_are_loaded(folder, caplog):
    """Their sum overflows, they do not."""
    edit(folder, lambda t: t[GATE].fill_(65_504.0))
    assert (loaded(folder, torch.float16)[GATE] == 65_504).all()
    edit(folder, lambda t: t[GATE].fill_(3e38))
    assert (loaded(folder, torch.bfloat16)[GATE] > 2.9e38).all() and not caplog.records


@pytest.mark.parametrize(
    "content, words",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>log in</html>", "web page"),
        (b"\n <HTML>", "web page"),
        (b"PK\x03\x04" + b"x" * 50, "cannot be read.*download"),
    ],
)
def test_what_stands_in_a_files_place_is_named(folder, content, words):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(Qwen3Error, match=f"model.safetensors: .*{words}"):
        loaded(folder)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(Qwen3Error, match="config.json: "):
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
