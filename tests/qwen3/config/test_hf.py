"""config.json in both dialects, and what is refused."""

import json
import logging

import pytest
import torch

from qwen3 import Qwen3Error
from qwen3.config.hf import from_hf, model_config

from .published import PUBLISHED, YARN, changed, dense


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


# What a key that is left out counts as, by the name that it has in transformers' config classes.
FIELDS = {
    "attention_bias": "attention_bias", "head_dim": "head_dim", "num_key_value_heads": "num_kv_heads",
    "rms_norm_eps": "rms_norm_eps", "tie_word_embeddings": "tie_word_embeddings", "dtype": "dtype",
    "norm_topk_prob": "norm_topk_prob",
}  # fmt: skip

# transformers has defaults for these too, which are those of one model.
REQUIRED = {
    "hidden_size", "intermediate_size", "max_position_embeddings", "moe_intermediate_size", "num_attention_heads",
    "num_experts", "num_experts_per_tok", "num_hidden_layers", "rope_theta", "vocab_size",
}  # fmt: skip


def test_a_key_that_is_left_out_counts_as_in_transformers():
    transformers = pytest.importorskip("transformers")
    for values, kind in ((PUBLISHED, transformers.Qwen3MoeConfig), (dense(), transformers.Qwen3Config)):
        for key in sorted(values.keys() - {"model_type"}):
            less = {k: v for k, v in values.items() if k not in (key, "torch_dtype")}
            if key in REQUIRED:
                with pytest.raises(Qwen3Error, match=f"{key} is missing|no {key}"):
                    from_hf(less)
                continue
            ours = from_hf(less)
            theirs = kind.from_dict(less)
            for name, field in FIELDS.items():
                if name == "head_dim":
                    default = less["hidden_size"] // less["num_attention_heads"]
                    assert ours.head_dim == getattr(theirs, "head_dim", default)
                elif name in kind().to_dict() or name == "dtype":
                    assert getattr(ours, field) == getattr(theirs, name), (key, name)
            layers = range(ours.num_layers)
            if kind is transformers.Qwen3MoeConfig:
                step, only = theirs.decoder_sparse_step, theirs.mlp_only_layers
                assert ours.dense_layers == {i for i in layers if i in only or (i + 1) % step}
            assert theirs.hidden_act == "silu" and theirs.sliding_window is None
            assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))
    # Defaults that are not what a neighbour says.
    for values, heads in ((PUBLISHED | {"num_attention_heads": 64}, 4), (dense(num_attention_heads=64), 32)):
        assert from_hf({k: v for k, v in values.items() if k != "num_key_value_heads"}).num_kv_heads == heads
    assert from_hf(dense(num_attention_heads=64, num_key_value_heads=None)).num_kv_heads == 64
    assert from_hf(changed(head_dim="absent")).head_dim == 64


def test_null_says_nothing():
    for values in (PUBLISHED, dense()):
        for key in values.keys() - {"model_type", "num_key_value_heads"}:
            results = []
            for less in (values | {key: None}, {k: v for k, v in values.items() if k != key}):
                try:
                    results.append(from_hf(less))
                except Qwen3Error as error:
                    results.append(str(error))
            assert results[0] == results[1], key


PAIRS = [
    # (what config.json says, what wins)
    ({"num_experts": 128, "num_local_experts": 64}, {"num_experts": 64}),
    ({"torch_dtype": "float32", "dtype": "float16"}, {"torch_dtype": "float16"}),
    ({"torch_dtype": "float32", "dtype": None}, {"torch_dtype": "float32"}),
    ({"rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}}, {"rope_scaling": YARN}),
    ({"rope_scaling": {"rope_type": "default"}, "rope_parameters": YARN}, {}),
    ({"rope_scaling": {}, "rope_parameters": YARN}, {"rope_scaling": YARN}),
    ({"rope_scaling": None, "rope_parameters": YARN}, {"rope_scaling": YARN}),
    ({"rope_scaling": YARN, "rope_parameters": YARN | {"factor": 2.0}}, {"rope_scaling": YARN}),
    ({"rope_scaling": YARN | {"type": "linear"}}, {"rope_scaling": YARN}),
    ({"rope_scaling": {("type" if k == "rope_type" else k): v for k, v in YARN.items()}}, {"rope_scaling": YARN}),
    ({"rope_theta": 1e7, "rope_parameters": {"rope_theta": 5e6}}, {"rope_theta": 5e6}),
    ({"rope_theta": 1e7, "rope_scaling": YARN | {"rope_theta": 5e6}}, {"rope_theta": 5e6, "rope_scaling": YARN}),
    (
        {"rope_theta": 1e7, "rope_scaling": YARN, "rope_parameters": {"rope_theta": 5e6}},
        {"rope_theta": 1e7, "rope_scaling": YARN},
    ),
    (
        {"original_max_position_embeddings": 64, "rope_scaling": YARN},
        {"rope_scaling": YARN | {"original_max_position_embeddings": 64}},
    ),
    ({"original_max_position_embeddings": 64}, {}),
]
# transformers refuses these, or fails with them.
OURS_ALONE = [
    ({"num_experts": None, "num_local_experts": 64}, {"num_experts": 64}),
    ({"num_experts": 64, "num_local_experts": None}, {"num_experts": 64}),
    ({"torch_dtype": "torch.float16"}, {"torch_dtype": "float16"}),
    ({"rope_theta": 1e7, "rope_parameters": {"rope_theta": None}}, {"rope_theta": 1e7}),
]  # fmt: skip


@pytest.mark.parametrize("both, winner", PAIRS)
def test_of_two_keys_that_say_the_same_the_winner_is_that_of_transformers(both, winner):
    transformers = pytest.importorskip("transformers")
    config = from_hf(changed(**both))
    assert config == from_hf(changed(**winner))
    theirs = transformers.Qwen3MoeConfig.from_dict(json.loads(json.dumps(changed(**both))))
    rope = theirs.rope_parameters
    assert (config.num_experts, config.rope_theta, config.dtype) == (
        theirs.num_experts,
        rope["rope_theta"],
        theirs.dtype,
    )
    if config.yarn:
        transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs)
        yarn = (config.yarn.factor, config.yarn.original_max_positions)
        assert yarn == (rope["factor"], rope["original_max_position_embeddings"])
    assert (config.yarn is not None) == (rope["rope_type"] == "yarn")


@pytest.mark.parametrize("both, winner", OURS_ALONE)
def test_null_and_prefixes_in_pairs(both, winner):
    assert from_hf(changed(**both)) == from_hf(changed(**winner)) != from_hf(PUBLISHED)


def test_a_theta_beside_the_block_that_lost_still_counts():
    """transformers falls back to theta 1e4 here, which is no model's of this family."""
    both = changed(rope_theta="absent", rope_scaling=YARN, rope_parameters={"rope_type": "default", "rope_theta": 5e6})
    assert from_hf(both) == from_hf(changed(rope_theta=5e6, rope_scaling=YARN))


def test_yarn_as_people_write_it(caplog):
    config = from_hf(changed(rope_scaling={"type": "yarn", "factor": 4.0}), "c.json")
    assert config.yarn.original_max_positions == 40960 and config.max_context == 4 * 40960
    assert "c.json: rope_scaling: no original_max_position_embeddings" in caplog.messages[0]
    assert "40960" in caplog.messages[0] and "32768" in caplog.messages[0]
    # DeepSeek-R1-0528-Qwen3-8B
    published = YARN | {"attn_factor": 0.8782488562869419}
    assert from_hf(dense(rope_scaling=published), "c.json") == from_hf(dense(rope_scaling=YARN))
    assert caplog.messages[1:] == ["c.json: rope_scaling: attn_factor has no effect, as in transformers"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert from_hf(changed(rope_scaling=YARN | {"original_max_position_embeddings": None})).max_context == 4 * 40960
    block = YARN | {"factor": None}
    assert from_hf(changed(rope_scaling=block)).yarn.factor == 40960 / 32768
    assert block["factor"] is None, "the caller's values stay as they are"


LARGEST = {
    "num_hidden_layers": 10_000, "num_attention_heads": 10_000, "num_key_value_heads": 10_000, "head_dim": 10_000,
    "num_experts": 10_000, "num_local_experts": 10_000, "num_experts_per_tok": 10_000, "hidden_size": 1_000_000,
    "vocab_size": 10_000_000, "intermediate_size": 10_000_000, "moe_intermediate_size": 10_000_000,
    "max_position_embeddings": 2**31 - 1, "decoder_sparse_step": 2**31 - 1,
}  # fmt: skip


@pytest.mark.parametrize("key", LARGEST)
def test_sizes_are_bounded(key):
    beside = {"num_attention_heads": 10_000, "num_key_value_heads": 1, "num_experts": 10_000, key: LARGEST[key]}
    assert from_hf(changed(**beside))
    with pytest.raises(Qwen3Error, match=f"{key} is {LARGEST[key] + 1}: it must be a whole number from"):
        from_hf(changed(**beside | {key: LARGEST[key] + 1}))


@pytest.mark.parametrize("names", [None, [], ["Qwen3MoeModel"], ["FSDPQwen3MoeForCausalLM"], "Qwen3MoeForCausalLM"])
def test_architectures_of_the_same_model(names):
    assert from_hf(changed(architectures=names)) == from_hf(PUBLISHED)
    assert from_hf(dense() | {"architectures": ["Qwen3Model"]}) == from_hf(dense())


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "llama"}, "llama"),
        ({"architectures": ["Qwen3MoeForSequenceClassification"]}, "Qwen3MoeForSequenceClassification"),
        ({"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 0}, "use_sliding_window"),
        ({"rope_scaling": {"factor": 4.0}}, 'has a factor, but no rope_type: add "rope_type": "yarn"'),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
        ({"architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM"),
        ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": YARN}}, "full_attention"),
        ({"rope_theta": 1}, "rope_theta"),
        ({"rope_theta": "x", "rope_parameters": {"rope_theta": 1e6}}, "rope_theta"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"hidden_size": 16, "head_dim": "absent"}, "head_dim 0"),
        ({"num_hidden_layers": 10_001}, "from 1 to 10000"),
        ({"eos_token_id": 151936}, "from 0 to 151935"),
        ({"eos_token_id": [0, -1]}, "eos_token_id is -1"),
        ({"model_type": "absent"}, "model_type is None"),
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


def test_a_sliding_window_that_reaches_no_layer_is_none():
    layers = PUBLISHED["num_hidden_layers"]
    for changes in (
        {"sliding_window": None},
        {"sliding_window": 4096, "max_window_layers": layers},
        {"sliding_window": 4096, "max_window_layers": layers - 1, "layer_types": ["full_attention"] * layers},
    ):
        assert from_hf(changed(use_sliding_window=True, **changes)) == from_hf(PUBLISHED)
    with pytest.raises(Qwen3Error, match="use_sliding_window"):
        from_hf(changed(use_sliding_window=True, sliding_window=4096, max_window_layers=layers - 1))


def test_a_dtype_has_more_than_one_name():
    names = {"float16": ("half", "fp16", "torch.float16"), "float32": ("float", "fp32"), "bfloat16": ("bf16",)}
    for name, others in names.items():
        for other in others:
            assert from_hf(changed(torch_dtype=other)).dtype == getattr(torch, name)
    assert from_hf(changed(torch_dtype="auto")).dtype is None
    assert from_hf(changed(dtype="auto", torch_dtype="half")).dtype == torch.float16


def test_a_length_may_be_written_as_a_product():
    for within in (32768, 32768.0):
        yarn = from_hf(changed(rope_scaling=YARN | {"original_max_position_embeddings": within})).yarn
        assert type(yarn.original_max_positions) is int and yarn.original_max_positions == 32768
    with pytest.raises(Qwen3Error, match="original_max_position_embeddings is 32768.5"):
        from_hf(changed(rope_scaling=YARN | {"original_max_position_embeddings": 32768.5}))


def test_generation_config_names_the_end_of_text(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    for said, ends in (
        (None, (151645,)),
        ({}, (151645,)),
        ({"eos_token_id": None}, (151645,)),
        ({"eos_token_id": [151645, 151643]}, (151645, 151643)),
        ({"eos_token_id": 0}, (0,)),
        ({"eos_token_id": []}, ()),
    ):
        if said is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(said))
        assert model_config(tmp_path).eos_token_ids == ends
    for wrong in ("0", -1, 151936, True, ["x"], {"a": 1}, 0.5):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(Qwen3Error, match="generation_config.json: eos_token_id is .* from 0 to 151935"):
            model_config(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").symlink_to(tmp_path / "gone")
    with pytest.raises(Qwen3Error, match="generation_config.json: is a link whose target is missing"):
        model_config(tmp_path)


@pytest.mark.parametrize("content", [None, "", '{"model_type": "qwen3_', "[1]"])
def test_missing_or_broken_file_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(Qwen3Error, match="config.json"):
        model_config(tmp_path)
