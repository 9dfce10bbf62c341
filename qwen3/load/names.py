"""Tensor names as files have them: the prefixes that wrappers add, and what names of other models mean."""

import re
from collections.abc import Iterable

from ..errors import Qwen3Error, brief

# Wrappers of the whole model (torch.compile, DDP, FSDP, PEFT), then the model in its head, which may be compiled alone.
_PREFIX = re.compile(
    r"(?P<outer>(?:_orig_mod\.|module\.|_fsdp_wrapped_module\.|base_model\.model\.)*)"
    r"(?P<inner>(?:model\.)?(?:_orig_mod\.)?)(?=embed_tokens\.|layers\.\d|norm\.)"
)
# Buffers that older files hold beside the weights; they are computed.
_COMPUTED = re.compile(r".*\brotary_emb\.inv_freq")

_QUANTIZED = ("quantized weights", "take the model in bfloat16")
# What a part of a tensor's name says about the checkpoint, and what to do; the first that fits is said.
_FOREIGN = {
    r"\blora_[ABE]\b|\blora_embedding": ("a LoRA adapter", "merge it into its base model first"),
    r"\bbase_layer\.|\bmodules_to_save\.": ("a PEFT model that is not merged", "merge_and_unload() it and save that"),
    r"\.(qweight|qzeros|scales|g_idx|zero_point|absmax|quant_map|SCB)$|\bquant_state\b": _QUANTIZED,
    r"\.weight_(packed|shape|scale\w*)$": _QUANTIZED,
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

    One prefix holds for the whole checkpoint; raises Qwen3Error for a mixture.
    """
    kept = [name for name in names if not _COMPUTED.fullmatch(name)]
    prefixes: dict[tuple[str, str], str] = {}
    for name in kept:
        if match := _PREFIX.match(name):
            prefixes.setdefault((match["outer"], match["inner"]), name)
    if len(prefixes) > 1:
        for name in prefixes.values():
            if said := meaning(name):
                raise Qwen3Error(f"{source}: tensor {brief(name)} {said}")
        first, second = list(prefixes.values())[:2]
        raise Qwen3Error(
            f"{source}: tensors {brief(first)} and {brief(second)} have different prefixes: name all alike"
        )
    outer, inner = next(iter(prefixes), ("", "model."))
    found = {}
    for name in kept:
        if name.startswith(f"{outer}lm_head."):
            found[name] = name.removeprefix(outer)
        else:
            found[name] = f"model.{name.removeprefix(outer + inner)}" if name.startswith(outer + inner) else name
    return found


def meaning(name: str) -> str | None:
    """Returns "belongs to ...: what to do" for a name that tells of another kind of checkpoint, None for others."""
    for pattern, (what, advice) in _FOREIGN.items():
        if re.search(pattern, name):
            return f"belongs to {what}: {advice}"
    return None
