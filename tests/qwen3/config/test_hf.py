"""config.json in both dialects, and what is refused."""

import json

import pytest
import torch

from qwen3 import Qwen3Error
from qwen3.config.hf import from_hf, model_config

# The fields of Qwen3-30B-A3B's config.json.
PUBLISHED = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768, "norm_topk_prob": True,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48,
    "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip


def changed(**changes):
    return {k: v for k, v in (PUBLISHED | changes).items() if v != "absent"}


def test_published_sizes():
    config = from_hf(PUBLISHED)
    assert config.kv_bytes_per_token(torch.bfloat16) == 98_304
    assert config.max_context == 40960 and config.eos_token_ids == (151645,)


def test_both_dialects_say_the_same():
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    old = changed(rope_scaling={"type": "yarn", **yarn})
    new = changed(
        num_experts="absent",
        num_local_experts=128,
        torch_dtype="absent",
        dtype="bfloat16",
        rope_theta="absent",
        rope_scaling="absent",
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn},
    )
    assert from_hf(old) == from_hf(new)
    assert from_hf(new).max_context == 131072


def test_dense_layers():
    config = from_hf(changed(num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3]))
    assert [config.is_moe_layer(i) for i in range(6)] == [False, True, False, False, False, True]


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "llama"}, "llama"),
        ({"architectures": ["Qwen3MoeForSequenceClassification"]}, "Qwen3MoeForSequenceClassification"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position_embeddings"),
        (
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 64,
                    "mscale": 0.7,
                }
            },
            "mscale",
        ),
        ({"rope_theta": "absent"}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"num_experts_per_tok": 200}, "num_experts_per_tok"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 63}, "head_dim"),
        ({"torch_dtype": "int8"}, "int8"),
    ],
)
def test_what_would_change_the_output_is_refused_by_name(changes, named):
    with pytest.raises(Qwen3Error, match=named) as refused:
        from_hf(changed(**changes), "folder/config.json")
    assert str(refused.value).startswith("folder/config.json") and "\n" not in str(refused.value)


def test_generation_config_names_the_end_of_text(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    assert model_config(tmp_path).eos_token_ids == (151645,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}))
    assert model_config(tmp_path).eos_token_ids == (151645, 151643)


@pytest.mark.parametrize("content", [None, "", '{"model_type": "qwen3_', "[1]"])
def test_missing_or_broken_file_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(Qwen3Error, match="config.json"):
        model_config(tmp_path)
