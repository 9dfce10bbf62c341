"""Checkpoints whose tensors have other names: those that wrappers gave, and those of other models."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen3 import Qwen3Error
from qwen3.load.names import meaning, published_names

from ..conftest import write_checkpoint
from .checkpoints import edit, loaded

# Prefix of the decoder's tensors, prefix of the head.
PREFIXES = [
    ("", ""),
    ("model.", ""),
    ("_orig_mod.model.", "_orig_mod."),
    ("_orig_mod.", "_orig_mod."),
    ("model._orig_mod.", ""),
    ("module.model.", "module."),
    ("module._orig_mod.model.", "module._orig_mod."),
    ("_fsdp_wrapped_module.model.", "_fsdp_wrapped_module."),
    ("base_model.model.model.", "base_model.model."),
    ("base_model.model.", "base_model.model."),
    ("_orig_mod.base_model.model.model.", "_orig_mod.base_model.model."),
    ("model.model.", "model."),
    ("policy.model.", "policy."),
    ("language_model.model.", "language_model."),
    ("model.language_model.", ""),
]
NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.gate.weight", "model.norm.weight", "lm_head.weight"]


MIXED = "have different prefixes: name all tensors alike|belongs to a multimodal model"


def renamed(name: str, decoder: str, head: str) -> str:
    return decoder + name.removeprefix("model.") if name.startswith("model.") else head + name


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    write_checkpoint(folder, dense=True, num_hidden_layers=2)
    return folder


@pytest.mark.parametrize("decoder, head", PREFIXES)
def test_one_prefix_for_the_whole_checkpoint(decoder, head):
    found = published_names([renamed(name, decoder, head) for name in NAMES], "m")
    assert list(found.values()) == NAMES


@pytest.mark.parametrize("tied", [False, True])
def test_every_tensor_finds_its_place_under_any_prefix(tmp_path, tied):
    write_checkpoint(tmp_path, tie_word_embeddings=tied, num_hidden_layers=1)
    file = tmp_path / "model.safetensors"
    tensors, wanted = load_file(file), loaded(tmp_path)
    for decoder, head in PREFIXES:
        save_file({renamed(name, decoder, head): tensor for name, tensor in tensors.items()}, file)
        found = loaded(tmp_path)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), (decoder, head)


@pytest.mark.parametrize("decoder, head", [pair for pair in PREFIXES if pair != ("model.", "")])
def test_a_mixture_of_prefixes_is_an_error(dense, tmp_path, decoder, head):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((dense / name).read_bytes())
    odd = "model.layers.0.input_layernorm.weight"
    edit(tmp_path, lambda t: t.update({renamed(odd, decoder, head): t.pop(odd)}))
    with pytest.raises(Qwen3Error, match=MIXED):
        loaded(tmp_path)
    edit(tmp_path, lambda t: t.update({odd: t.pop(renamed(odd, decoder, head))}))
    if not "model.".startswith(head):
        edit(tmp_path, lambda t: t.update({f"{head}lm_head.weight": t.pop("lm_head.weight")}))
        with pytest.raises(Qwen3Error, match=MIXED):
            loaded(tmp_path)
        edit(tmp_path, lambda t: t.update({"lm_head.weight": t[f"{head}lm_head.weight"].clone()}))
        with pytest.raises(Qwen3Error, match=MIXED):
            loaded(tmp_path)


@pytest.mark.parametrize("inside", ["_orig_mod.", "_fsdp_wrapped_module._checkpoint_wrapped_module."])
def test_wrappers_of_single_layers_are_no_part_of_a_name(dense, tmp_path, inside):
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    wanted = loaded(dense)
    tensors = load_file(dense / "model.safetensors")
    wrapped = {
        name.replace("layers.1.", f"layers.1.{inside}").replace("mlp.", f"mlp.{inside}"): name for name in tensors
    }
    save_file({name: tensors[old] for name, old in wrapped.items()}, tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded(tmp_path).items())
    edit(
        tmp_path,
        lambda t: t.update(
            {"model.layers.1.mlp.up_proj.weight": t[f"model.layers.1.{inside}mlp.{inside}up_proj.weight"].clone()}
        ),
    )
    with pytest.raises(Qwen3Error, match="is given twice"):
        loaded(tmp_path)


def test_empty_tensors_are_told_as_those_of_zero_3(dense, tmp_path):
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    save_file(
        load_file(dense / "model.safetensors") | {"model.embed_tokens.weight": torch.zeros(0)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(Qwen3Error, match="DeepSpeed's ZeRO-3 .*: run zero_to_fp32.py"):
        loaded(tmp_path)


def test_buffers_that_are_computed_are_skipped(tmp_path):
    write_checkpoint(tmp_path, num_hidden_layers=1)
    wanted = loaded(tmp_path)
    names = ("model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq")
    names += ("model.layers.0.self_attn.rotary_emb.cos_cached", "model.layers.0.self_attn.masked_bias")
    edit(tmp_path, lambda t: t.update({name: torch.ones(16, dtype=torch.int64) for name in names}))
    assert loaded(tmp_path).keys() == wanted.keys()


FOREIGN = {
    "model.layers.0.self_attn.q_proj.lora_A.weight": "LoRA",
    "base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight": "LoRA",
    "model.layers.0.self_attn.q_proj.base_layer.weight": "not merged",
    "model.layers.0.mlp.down_proj.qweight": "quantized",
    "model.layers.0.mlp.down_proj.qzeros": "quantized",
    "model.layers.0.mlp.down_proj.scales": "quantized",
    "model.layers.0.mlp.down_proj.g_idx": "quantized",
    "model.layers.0.mlp.down_proj.weight_scale_inv": "quantized",
    "model.layers.0.mlp.down_proj.weight_scale": "quantized",
    "model.layers.0.mlp.down_proj.weight_packed": "quantized",
    "model.layers.0.mlp.down_proj.weight.absmax": "quantized",
    "model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4": "quantized",
    "model.layers.0.mlp.down_proj.SCB": "quantized",
    "model.layers.0.self_attn.k_scale": "quantized",
    "model.layers.0.self_attn.q_proj.input_scale": "quantized",
    "model.layers.0.self_attn.qkv_proj.weight": "another engine",
    "model.layers.0.mlp.gate_up_proj.weight": "another engine",
    "visual.blocks.0.norm1.weight": "multimodal",
    "model.visual.patch_embed.proj.weight": "multimodal",
    "model.language_model.layers.0.input_layernorm.weight": "multimodal",
    "thinker.model.layers.0.input_layernorm.weight": "multimodal",
    "score.weight": "classifier",
    "v_head.summary.weight": "reward",
    "model.layers.0.mlp.shared_expert.up_proj.weight": "another architecture",
    "model.layers.0.linear_attn.A_log": "another architecture",
    "mtp.fc.weight": "another architecture",
    "transformer.h.0.ln_1.weight": "another architecture",
    "blk.0.attn_q.weight": "another architecture",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_names_of_other_checkpoints_are_explained(dense, tmp_path, name):
    tensors = load_file(dense / "model.safetensors")
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    save_file({name: torch.zeros(2)} | tensors, tmp_path / "model.safetensors")
    with pytest.raises(Qwen3Error, match=FOREIGN[name]) as caught:
        loaded(tmp_path)
    assert name in str(caught.value) and str(caught.value).isprintable()


def test_a_vocabulary_that_grew_says_what_to_set(dense, tmp_path):
    config = json.loads((dense / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((dense / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    with pytest.raises(
        Qwen3Error, match=r"has shape \[320, 64\], .*config.json says \[300, 64\]: set vocab_size to 320 there"
    ):
        loaded(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 320, "intermediate_size": 95}))
    with pytest.raises(Qwen3Error, match=r"config.json says \[\d+, \d+\]$"):
        loaded(tmp_path)
    # An embedding that is wider is of another model, however many rows it has.
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 300, "hidden_size": 32}))
    edit(tmp_path, lambda t: [t.pop(name) for name in list(t) if "embed_tokens" not in name])
    with pytest.raises(Qwen3Error, match=r"has shape \[320, 64\], .*config.json says \[300, 32\]$"):
        loaded(tmp_path)


def test_names_of_this_family_say_nothing(dense):
    assert [name for name in load_file(dense / "model.safetensors") if meaning(name)] == []


@pytest.mark.parametrize(
    "add, words",
    [
        ({"model.layers.2.mlp.up_proj.weight": (96, 64)}, "is of layer 2: num_hidden_layers is 2"),
        ({"model.layers.0.self_attn.q_proj.bias": (128,)}, "is a bias, but attention_bias is false"),
        ({"model.layers.0.mlp.experts.0.up_proj.weight": (48, 64)}, "is of an expert, but .* is of a dense model"),
        ({"model.layers.99999999999.x": (1,)}, "has no place in the model"),
        ({"model.layers.x": (1,)}, "has no place in the model"),
        ({"a\x1b[31m\nb": (1,)}, "has no place in the model"),
    ],
)
def test_what_the_config_does_not_say(dense, tmp_path, add, words):
    (tmp_path / "config.json").write_bytes((dense / "config.json").read_bytes())
    tensors = load_file(dense / "model.safetensors")
    save_file(tensors | {name: torch.zeros(shape) for name, shape in add.items()}, tmp_path / "model.safetensors")
    with pytest.raises(Qwen3Error, match=words) as caught:
        loaded(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes, lost, words",
    [
        ({}, r"lm_head\.weight", "if this model ties its embeddings, set tie_word_embeddings to true in .*config.json"),
        ({"attention_bias": True}, r".*\.bias", "if this model has no biases, set attention_bias to false"),
        ({}, r".*\.[qk]_norm\.weight", "not a Qwen3 model"),
        (
            {"num_hidden_layers": 3},
            r"model\.layers\.[12]\..*",
            "num_hidden_layers is 3 .*, the files end before layer 1",
        ),
        ({"num_hidden_layers": 3}, r"model\.layers\.1\..*", "download it again"),
        ({}, r"lm_head\.weight|model\.norm\.weight", "and 1 more missing from the checkpoint: download it again"),
    ],
)
def test_what_is_missing_says_why(tmp_path, changes, lost, words):
    write_checkpoint(tmp_path, dense=True, **{"num_hidden_layers": 2} | changes)
    loaded(tmp_path)
    edit(tmp_path, lambda t: [t.pop(name) for name in list(t) if re.fullmatch(lost, name)])
    with pytest.raises(Qwen3Error, match=words):
        loaded(tmp_path)
