"""Every key of config.json is used, without effect, or refused by name."""

import dataclasses
import logging

import pytest

from qwen3 import Qwen3Error
from qwen3.config.facts import NO_EFFECT, ONLY, ROPE_NO_EFFECT, ROPE_USED, USED, USED_BY_MOE
from qwen3.config.hf import from_hf

from .published import PUBLISHED, YARN, changed, dense

ODD = (True, False, 5, -0.5, 10**30, float("nan"), "x", "", [1], {"a": [None]}, "\x1b[31m")
WRONG = {
    "x": "x", "1": "1", "false": "false", "": "", "[]": [], "[1]": [1], "[x]": ["x"], "[null]": [None], "[[1]]": [[1]],
    "{}": {}, "{a: 2}": {"a": 2}, "true": True, "-1": -1, "0": 0, "0.5": 0.5, "10**30": 10**30, "2**63": 2**63,
    "nan": float("nan"), "inf": float("inf"), "escape": "\x1b[31m\nb", "surrogate": "\ud800", "long": "y" * 10**5,
    "digits": 10**5000,
}  # fmt: skip
# Those of them that are legal for a key.
LEGAL = {
    "architectures": {"[]"}, "attention_bias": {"true"}, "eos_token_id": {"[]", "[1]", "0"}, "layer_types": {"[]"},
    "mlp_only_layers": {"[]", "[1]"}, "norm_topk_prob": {"true"}, "num_experts": {"0"}, "num_local_experts": {"0"},
    "rms_norm_eps": {"0.5"}, "rope_parameters": {"{}"}, "rope_scaling": {"{}"}, "rope_theta": {"10**30", "2**63"},
    "tie_word_embeddings": {"true"},
}  # fmt: skip
# For each used key another value, and the field of ModelConfig that follows it.
OTHER = {
    "attention_bias": (True, "attention_bias"), "decoder_sparse_step": (2, "dense_layers"),
    "dtype": ("float16", "dtype"),
    "eos_token_id": (7, "eos_token_ids"), "head_dim": (64, "head_dim"), "hidden_size": (1024, "hidden_size"),
    "intermediate_size": (100, "intermediate_size"), "max_position_embeddings": (64, "max_positions"),
    "mlp_only_layers": ([1], "dense_layers"), "moe_intermediate_size": (96, "moe_intermediate_size"),
    "norm_topk_prob": (False, "norm_topk_prob"), "num_attention_heads": (64, "num_heads"),
    "num_experts": (64, "num_experts"), "num_experts_per_tok": (4, "top_k"), "num_hidden_layers": (3, "num_layers"),
    "num_key_value_heads": (8, "num_kv_heads"), "num_local_experts": (64, "num_experts"),
    "rms_norm_eps": (1e-2, "rms_norm_eps"), "rope_scaling": (YARN, "yarn"), "rope_theta": (5e6, "rope_theta"),
    "rope_parameters": (YARN | {"rope_theta": 5e6}, "yarn"), "tie_word_embeddings": (True, "tie_word_embeddings"),
    "torch_dtype": ("float32", "dtype"), "vocab_size": (200000, "vocab_size"),
}  # fmt: skip


def differing(config, other):
    names = [f.name for f in dataclasses.fields(config)]
    return {name for name in names if getattr(config, name) != getattr(other, name)}


@pytest.mark.parametrize("key", sorted(USED | USED_BY_MOE))
def test_a_used_key(key):
    base = from_hf(PUBLISHED)
    if key in OTHER:
        value, field = OTHER[key]
        alone = {"rope_parameters": {"rope_theta"}}.get(key, set())
        assert differing(from_hf(changed(**{key: value})), base) == {field} | alone
    for label, value in WRONG.items():
        if label in LEGAL.get(key, ()):
            from_hf(changed(**{key: value}))
            continue
        with pytest.raises(Qwen3Error) as refused:
            from_hf(changed(**{key: value}), "c.json")
        message = str(refused.value)
        assert message.startswith("c.json: ") and key in message and message.isprintable() and len(message) < 250
    # The others are refused by test_hf.py.
    assert key in OTHER or key in ("architectures", "layer_types", "model_type", "original_max_position_embeddings")


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_a_key_without_effect(key):
    for value in ODD:
        assert from_hf(changed(**{key: value})) == from_hf(PUBLISHED)


def test_the_keys_of_experts_have_no_effect_in_a_dense_model():
    for key in USED_BY_MOE:
        for value in ODD:
            assert from_hf(dense() | {key: value}) == from_hf(dense())


@pytest.mark.parametrize("key", sorted(ONLY))
def test_a_key_of_which_only_some_values_are_supported(key):
    for value in (None, *ONLY[key]):
        assert from_hf(changed(**{key: value})) == from_hf(PUBLISHED)
    odd = [value for value in ODD if not isinstance(value, bool)]
    for value in (*odd, *({True, False} - {v for v in ONLY[key] if isinstance(v, bool)})):
        with pytest.raises(Qwen3Error, match=f"^c.json: field '{key}' = .* is not supported, only "):
            from_hf(changed(**{"sliding_window": 4096, "max_window_layers": 0, key: value}), "c.json")


def test_the_tables_hold_every_key_of_transformers():
    transformers = pytest.importorskip("transformers")
    known = USED | USED_BY_MOE | NO_EFFECT | ONLY.keys()
    tables = (USED, USED_BY_MOE, NO_EFFECT, set(ONLY))
    assert sum(map(len, tables)) == len(known), "no key is in two tables"
    for kind in (transformers.Qwen3MoeConfig, transformers.Qwen3Config):
        assert kind().to_dict().keys() | {f.name for f in dataclasses.fields(kind)} <= known
    # transformers takes none of these from config.json.
    assert transformers.GenerationConfig._get_default_generation_params().keys() <= known


# As other models, other engines and training tools write them.
CHANGES_THE_OUTPUT = {
    "attn_logit_softcapping": 30.0, "final_logit_softcapping": 30.0, "embedding_multiplier": 12.0, "logit_scale": 0.06,
    "residual_multiplier": 0.2, "attention_multiplier": 0.01, "logits_scaling": 8.0, "routed_scaling_factor": 2.5,
    "query_pre_attn_scalar": 256, "scale_emb": 12, "scale_depth": 1.4, "num_shared_experts": 1, "n_shared_experts": 2,
    "shared_expert_intermediate_size": 512, "n_group": 8, "topk_group": 4, "scoring_func": "sigmoid", "clip_qkv": 8.0,
    "sliding_window_pattern": 6, "mlp_bias": True, "qkv_bias": True, "attention_chunk_size": 8192, "norm_type": "layer",
    "attn_temperature_tuning": True, "first_k_dense_replace": 1, "rope_interleaved": True, "no_rope_layers": [1],
    "mrope_section": [16, 24, 24], "rotary_pct": 0.25, "alibi": True, "use_logn_attn": True, "use_dynamic_ntk": True,
    "moe_layer_freq": 2, "router_bias": True, "use_gating": True, "attention_sink_size": 4, "hidden_activation": "gelu",
    "activation_function": "relu", "position_embedding_type": "absolute", "swiglu_limit": 7.0, "mup_base": 256,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "quantization": {"bits": 4}, "quant_method": "fp8",
    "expert_capacity": 64, "layer_norm_eps": 1e-5, "Attn-Logit.Scale": 2, "yarn_factor": 4.0, "norm_expert_weight": 1,
}  # fmt: skip
SKIPPED = {
    "unsloth_fixed": True, "unsloth_version": "2025.5.1", "pretraining_tp": 1, "partial_rotary_factor": 1.0,
    "attn_implementation": "flash_attention_2", "model_name": "x", "transformers.js_config": {"a": 1}, "": 1,
    "use_flash_attn": True, "fused_rms_norm": True, "router_jitter_noise": 0.1, "moe_aux_loss_coeff": 0.01,
    "initializer_factor": 1.5, "seq_length": 8192, "base_model": "Qwen/Qwen3-8B", "ep_size": 1, "property": "x",
    "norm_init_std": 0.1, "max_sequence_length": 5, "gradient_checkpointing": True, "log_interval": 10, "europe": 1,
    "factory": "x", "tokens_seen": 10**12, "moe_backend": "triton", "\x1b[31m": "x", "y" * 500: 1, "bos": [None],
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES_THE_OUTPUT)
def test_an_unknown_key_whose_name_says_that_it_changes_the_output_is_refused(key):
    with pytest.raises(Qwen3Error, match=f"^c.json: field '{key}' = "):
        from_hf(changed(**{key: CHANGES_THE_OUTPUT[key]}), "c.json")
    # Unless it is off, or a factor of 1.
    factor = 1.0 if any(word in key for word in ("scal", "factor", "multiplier", "group", "Scale")) else 0
    for value in (None, False, [], {}, "", factor):
        assert from_hf(changed(**{key: value})) == from_hf(PUBLISHED)
    with pytest.raises(Qwen3Error):
        from_hf(changed(**{key: 1 - factor}))


def test_any_other_unknown_key_is_skipped_and_named(caplog):
    with caplog.at_level(logging.INFO, "qwen3"):
        for key, value in SKIPPED.items():
            assert from_hf(changed(**{key: value}), "c\x1b.json") == from_hf(PUBLISHED)
            if key not in NO_EFFECT and key not in ONLY:
                message = caplog.messages[-1]
                assert message.startswith("c\\x1b.json: skipped [") and key[:300] in message.replace("\\x1b", "\x1b")
                assert message.isprintable() and len(message) < 450
    count = len(caplog.messages)
    from_hf(PUBLISHED)
    assert len(caplog.messages) == count, "nothing is said where nothing is skipped"


@pytest.mark.parametrize("rope_type", sorted(ROPE_USED))
def test_keys_of_the_rotary_embedding(rope_type):
    block = (YARN if rope_type == "yarn" else {}) | {"rope_type": rope_type}
    for key in ROPE_NO_EFFECT[rope_type]:
        for value in ODD:
            assert from_hf(changed(rope_scaling=block | {key: value})) == from_hf(changed(rope_scaling=block))
    rest = {"partial_rotary_factor", "mrope_section", "short_factor", "low_freq_factor", "factor", "unknown"}
    for key in sorted((ROPE_USED["yarn"] | rest) - ROPE_USED[rope_type] - ROPE_NO_EFFECT[rope_type]):
        for value in (None, False, [], {}, 1.0):
            assert from_hf(changed(rope_scaling=block | {key: value})) == from_hf(changed(rope_scaling=block))
        for name in ("rope_scaling", "rope_parameters"):
            for value in (0.5, 4, True, "x", [1]):
                with pytest.raises(Qwen3Error, match=f"^c.json: {name}: field '{key}' = "):
                    from_hf(changed(**{name: block | {key: value}}), "c.json")


def test_wrong_values_within_yarn():
    legal = {
        "rope_theta": {"10**30", "2**63"}, "truncate": {"true"}, "beta_fast": {"0", "0.5"},
        "beta_slow": {"0", "0.5"}, "mscale": {"0", "0.5"}, "mscale_all_dim": {"0", "0.5"}, "attention_factor": {"0.5"},
        "type": set(WRONG),
    }  # fmt: skip
    for key in sorted(ROPE_USED["yarn"]):
        for label, value in WRONG.items():
            if label in legal.get(key, ()):
                continue
            with pytest.raises(Qwen3Error, match=rf"^c.json: rope_(scaling[.:] ?{key}|theta) ") as refused:
                from_hf(changed(rope_scaling=YARN | {key: value}), "c.json")
            assert str(refused.value).isprintable() and len(str(refused.value)) < 250
    with pytest.raises(Qwen3Error, match=r"rope_scaling.factor is missing"):
        from_hf(changed(rope_scaling={"type": "yarn"}))
    with pytest.raises(Qwen3Error, match=r"more than 2\*\*31 tokens"):
        from_hf(changed(rope_scaling=YARN | {"factor": 1e6}))
