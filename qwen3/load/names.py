"""Tensor names as files have them: the prefixes that wrappers add, and what names of other models mean."""

import re
from collections.abc import Iterable

from ..errors import Qwen3Error, brief

# What stands before the names of the decoder and of the head: nothing, "model.", and what torch.compile, DDP, FSDP,
# PEFT, Lightning and multimodal models add.
_DECODER = re.compile(r"((?:[^.]+\.)*?)(?:embed_tokens\.|layers\.\d+\.|norm\.)")
_HEAD = re.compile(r"((?:[^.]+\.)*?)lm_head\.")
# Parts that FSDP, torch.compile and activation checkpointing put into names where they wrap single layers.
_WRAPPED = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_LAYER = re.compile(r"(.*?\blayers\.\d+\.)(.*)", re.DOTALL)
# Buffers that older files hold beside the weights; they are computed.
_COMPUTED = re.compile(r".*\b(rotary_emb\.((original_)?inv_freq|(cos|sin)_cached)|self_attn\.masked_bias)")

_QUANTIZED = ("quantized weights", "take the model in bfloat16")
# What a part of a tensor's name says about the checkpoint, and what to do; the first that fits is said.
_FOREIGN = {
    r"\blora_[ABE]\b|\blora_embedding": ("a LoRA adapter", "merge it into its base model first"),
    r"\bbase_layer\.|\bmodules_to_save\.": ("a PEFT model that is not merged", "merge_and_unload() it and save that"),
    r"\.(qweight|qzeros|scales|g_idx|zero_point|absmax|quant_map|SCB)$|\bquant_state\b": _QUANTIZED,
    r"\.weight_(packed|shape|scale\w*)$|\.\w+_scale$": _QUANTIZED,
    r"\b(qkv_proj|query_key_value|W_pack)\.|\bmlp\.gate_up_proj\.": (
        "another engine, which joins projections",
        "take the original model, with q_proj, k_proj, v_proj, gate_proj and up_proj",
    ),
    r"\b(visual|vision_tower|vision_model|language_model|audio_tower|thinker|talker)\.": (
        "a multimodal model",
        "take a model of text alone",
    ),
    r"\b(score|classifier|v_head|value_head|reward_head)\.": ("a classifier or reward model", "take a language model"),
    r"\b(shared_experts?|shared_expert_gate|linear_attn|mtp)\.|^(transformer|blk)\.": (
        "another architecture",
        "only qwen3 and qwen3_moe are supported",
    ),
}


def published_names(names: Iterable[str], source: str) -> dict[str, str]:
    """Returns each file's name -> the published name, without buffers that are computed.

    The decoder's names have one prefix, and the head's a beginning of it; raises Qwen3Error for a mixture.
    """
    given = {name: _unwrapped(name) for name in names if not _COMPUTED.fullmatch(name)}
    kept = list(given.values())
    decoder, head = _prefixes(_DECODER, kept), _prefixes(_HEAD, kept)
    odd = list(decoder.values())[:2] if len(decoder) > 1 else list(head.values())[:2] if len(head) > 1 else []
    before, before_head = next(iter(decoder), "model."), next(iter(head), "")
    if decoder and not before.startswith(before_head):
        odd = [decoder[before], head[before_head]]
    if odd:
        for name in (*decoder.values(), *head.values()):
            if said := meaning(name):
                raise Qwen3Error(f"{source}: tensor {brief(name)} {said}")
        shown = " and ".join(map(brief, odd))
        raise Qwen3Error(f"{source}: tensors {shown} have different prefixes: name all tensors alike")
    found = {}
    for as_given, name in given.items():
        if _HEAD.match(name):
            found[as_given] = name.removeprefix(before_head)
        else:
            found[as_given] = f"model.{name.removeprefix(before)}" if name.startswith(before) else name
    return found


def _unwrapped(name: str) -> str:
    """A name without what wrappers put into it behind the number of a layer."""
    layer = _LAYER.fullmatch(name)
    return layer[1] + _WRAPPED.sub("", f".{layer[2]}")[1:] if layer else name


def _prefixes(pattern: re.Pattern[str], names: list[str]) -> dict[str, str]:
    """What stands before the pattern in the names, each with the first name that has it."""
    found: dict[str, str] = {}
    for name in names:
        if match := pattern.match(name):
            found.setdefault(match[1], name)
    return found


def meaning(name: str) -> str | None:
    """Returns "belongs to ...: what to do" for a name that tells of another kind of checkpoint, None for others."""
    for pattern, (what, advice) in _FOREIGN.items():
        if re.search(pattern, name):
            return f"belongs to {what}: {advice}"
    return None
