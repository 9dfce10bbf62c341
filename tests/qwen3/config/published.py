"""Values of config.json to start from."""

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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def changed(**changes):
    """PUBLISHED with `changes`; "absent" takes a key out."""
    return {k: v for k, v in (PUBLISHED | changes).items() if v != "absent"}


def dense(**changes):
    """The same as a dense model."""
    moe = ("decoder_", "mlp_only", "moe_", "norm_topk", "num_experts", "router_", "output_router")
    values = changed(model_type="qwen3", architectures=["Qwen3ForCausalLM"], **changes)
    return {k: v for k, v in values.items() if not k.startswith(moe)}
