"""What each key of config.json does: read by `hf.from_hf`, without effect, or accepted with some values only.

A key in none of the tables is refused where its name says that it changes the output, unless its value says that it
does not; any other is skipped. A key that is null says nothing.
"""

import re
from typing import Any

from . import generation
from .generation import same

# Keys that `from_hf` reads.
USED = {
    "architectures", "attention_bias", "dtype", "eos_token_id", "head_dim", "hidden_size", "intermediate_size",
    "layer_types", "max_position_embeddings", "model_type", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "original_max_position_embeddings", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "tie_word_embeddings", "torch_dtype", "vocab_size",
}  # fmt: skip
# Those of a mixture of experts; a dense model does not read them.
USED_BY_MOE = {
    "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
    "num_experts_per_tok", "num_local_experts",
}  # fmt: skip

# Keys that change no score of the model, whatever their value.
NO_EFFECT = {
    # Training, and initial weights.
    "attention_dropout", "initializer_range", "output_router_logits", "router_aux_loss_coef", "pretraining_tp",
    # Of use_sliding_window, which is false.
    "max_window_layers", "sliding_window",
    # How transformers computes, and what it returns.
    "attn_implementation", "experts_implementation", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_experts_implementation", "_experts_implementation_internal",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "return_dict", "torchscript",
    "use_bfloat16", "use_cache", "tf_legacy_loss",
    # Other tasks, and other kinds of models.
    "add_cross_attention", "cross_attention_hidden_size", "finetuning_task", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "num_labels", "problem_type", "task_specific_params", "tie_encoder_decoder",
    # Tokens that the model does not read, and where the file comes from.
    "auto_map", "bos_token_id", "cls_token_id", "pad_token_id", "prefix", "sep_token_id", "tokenizer_class",
    "transformers_version", "_commit_hash", "_name_or_path", "name_or_path",
    # Settings of generation, which transformers takes from generation_config.json alone.
    *((generation.USED | generation.NO_EFFECT | generation.ONLY.keys()) - {"eos_token_id"}),
}  # fmt: skip

# Keys that change the scores and are not implemented: only these values are accepted.
ONLY: dict[str, tuple] = {
    "compression_config": ({},), "hidden_act": ("silu", "swish"), "is_causal": (True,), "partial_rotary_factor": (1,),
    "per_layer_config": ({},), "pruned_heads": ({},), "qk_norm": (True,), "quantization_config": ({},),
    "use_bidirectional_attention": (False,), "use_qk_norm": (True,), "use_sliding_window": (False,),
}  # fmt: skip

# Keys within rope_scaling and rope_parameters by rope_type: those that `from_hf` reads, and those without effect. Any
# other is accepted only where it is off or a factor of 1.
ROPE_USED = {
    "default": {"rope_type", "type", "rope_theta"},
    "yarn": {
        "rope_type", "type", "rope_theta", "attention_factor", "beta_fast", "beta_slow", "factor", "mscale",
        "mscale_all_dim", "original_max_position_embeddings", "truncate",
    },
}  # fmt: skip
ROPE_NO_EFFECT = {
    "default": {"beta_fast", "beta_slow", "finetuned", "original_max_position_embeddings", "truncate"},
    "yarn": {"attn_factor", "finetuned"},
}

# Words of a name that say that the key changes the output.
_WORDS = re.compile(
    r"""(^|_)( act | activation | alibi | bias | bidirectional | cap | capacity | chunk | clip | dense | experts?
    | factor | gate | gated | gating | interval | linear | logits? | m?rope | moe | mup | norms? | n_groups? | ntk
    | parallel_attn | position | residual | routed | router | routing | scal(ar|e|ed|es|ing) | scor(e|es|ing) | sinks?
    | sliding | softmax | swiglu | temperature | topk | windows? )(_|$)
    | logn | multiplier | quant | rotary | softcap | yarn""",
    re.VERBOSE,
)
# Words that say that it is about training or speed all the same.
_BOOKKEEPING = re.compile(
    r"""(^|_)( backend | coeff? | dropout | dtype | eval | fixed | flash | fused | implementation | init | initializer
    | jitter | kernels? | log | logging | loss | noise | save | std | train | training | version )(_|$)""",
    re.VERBOSE,
)
# What such a key may hold: it is off, or a factor of 1.
_OFF: tuple = (False, [], {}, "")
_FACTOR = re.compile(r"factor|multiplier|scal(ar|e|ed|es|ing)(_|$)|group")


def refused(key: str, value: Any) -> bool:
    """Whether a key of config.json that is not used has a value that would change the output."""
    if value is None or key in NO_EFFECT:
        return False
    if key in ONLY:
        return not any(same(value, v) for v in ONLY[key])
    name = key.lower().replace(".", "_").replace("-", "_")
    if not _WORDS.search(name) or _BOOKKEEPING.search(name):
        return False
    return not any(same(value, v) for v in (*_OFF, 1 if _FACTOR.search(name) else 0))


def rope_refused(key: str, value: Any, rope_type: str) -> bool:
    """Whether a key within rope_scaling or rope_parameters would change the rotary embedding and is not read."""
    if value is None or key in ROPE_USED[rope_type] or key in ROPE_NO_EFFECT[rope_type]:
        return False
    return not any(same(value, v) for v in (*_OFF, 1))
