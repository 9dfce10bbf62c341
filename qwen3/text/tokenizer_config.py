"""tokenizer_config.json and the files beside it: named tokens, added tokens and chat templates.

`KEYS` says of each key that transformers knows what becomes of it here: used, refused unless it has a value that
changes nothing, or without effect on ids and text. Any other key is skipped and named with -v.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ..config.files import is_there, read_json_if_there, read_text
from ..config.values import flag, text, whole
from ..errors import Qwen3Error, brief, shown

log = logging.getLogger("qwen3")

USED, NO_EFFECT = "used", "no effect"
_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# A tuple: refused unless the value is one of these, which change nothing.
_OFF = (False, None)
KEYS: dict[str, str | tuple] = {
    **dict.fromkeys(_TOKENS, USED),
    "added_tokens_decoder": USED,
    "additional_special_tokens": USED,
    "extra_special_tokens": USED,
    "model_specific_special_tokens": USED,
    "chat_template": USED,
    "chat_control_tokens": USED,
    # These change ids, and transformers' tokenizer classes read them where tokenizer.json says nothing else.
    "add_prefix_space": _OFF,
    "do_lower_case": _OFF,
    "split_special_tokens": _OFF,
    "fix_mistral_regex": _OFF,
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": _OFF,
    # tokenizer.json's post-processor says it.
    **dict.fromkeys(("add_bos_token", "add_eos_token"), NO_EFFECT),
    # About batches, tensors and lengths, of which the engine makes none; about files, classes and history.
    **dict.fromkeys(
        [
            "auto_map",
            "backend",
            "bos_token_id",
            "clean_up_tokenization_spaces",
            "eos_token_id",
            "errors",
            "files_loaded",
            "image_token_id",
            "is_local",
            "legacy",
            "local_files_only",
            "max_len",
            "max_length",
            "merges_file",
            "model_input_names",
            "model_max_length",
            "name_or_path",
            "pad_to_multiple_of",
            "pad_token_id",
            "pad_token_type_id",
            "padding",
            "padding_side",
            "processor_class",
            "response_schema",
            "response_template",
            "return_token_type_ids",
            "special_tokens_map_file",
            "sp_model_kwargs",
            "spaces_between_special_tokens",
            "stride",
            "tokenizer_class",
            "tokenizer_file",
            "trust_remote_code",
            "truncation",
            "truncation_side",
            "truncation_strategy",
            "use_default_system_prompt",
            "use_fast",
            "verbose",
            "vocab_file",
        ],
        NO_EFFECT,
    ),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a model folder says about its tokenizer beside tokenizer.json.

    named_tokens: by their names in templates, such as `eos_token`. added: tokens by id that tokenizer.json may lack or
    describe in another way. older: ids of tokens by name, which tokenizer.json may lack. special: names of tokens that
    are special. control: further tokens that only a template may write. templates: chat templates by name.
    """

    named_tokens: dict[str, str]
    added: dict[int, tokenizers.AddedToken]
    older: dict[str, int]
    special: tuple[str, ...]
    control: tuple[str, ...]
    templates: dict[str, str]


def tokenizer_files(folder: Path) -> TokenizerFiles:
    """Reads the files beside tokenizer.json, where they are.

    As in transformers, special_tokens_map.json wins, and it and added_tokens.json are read only where
    tokenizer_config.json has no added_tokens_decoder.
    """
    path = folder / "tokenizer_config.json"
    config = read_json_if_there(path)
    _check_keys(config, str(path))
    added = _added_tokens(config.get("added_tokens_decoder"), f"{path}: added_tokens_decoder")
    older: dict[str, int] = {}
    if added is None:
        source = folder / "added_tokens.json"
        older = {key: whole(i, f"{source}: {brief(key)}", 0) for key, i in read_json_if_there(source).items()}
        legacy = folder / "special_tokens_map.json"
        tokens = read_json_if_there(legacy)
        config |= {key: value for key, value in tokens.items() if key in _TOKENS or "special_tokens" in key}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    named, listed = (extra, []) if isinstance(extra, dict) else ({}, extra)
    named_tokens = _named_tokens({**config, **(config.get("model_specific_special_tokens") or {}), **named}, str(path))
    return TokenizerFiles(
        named_tokens,
        added or {},
        older,
        (*named_tokens.values(), *_contents(listed, f"{path}: extra_special_tokens")),
        _contents(config.get("chat_control_tokens") or [], f"{path}: chat_control_tokens"),
        _templates(folder, config.get("chat_template"), str(path)),
    )


def _check_keys(config: dict[str, Any], source: str) -> None:
    for key, value in config.items():
        rule = KEYS.get(key, USED if key.endswith("_token") else None)
        if rule is None:
            log.info("%s: skipped %s = %s", source, shown(key, 80), brief(value))
        elif isinstance(rule, tuple) and not any(value is neutral for neutral in rule):
            advice = "it would change the token ids, and only tokenizer.json says how"
            raise Qwen3Error(f"{source}: {key} is {brief(value)}: {advice}: set it to false")


def _named_tokens(config: dict[str, Any], source: str) -> dict[str, str]:
    """Returns `eos_token`, `pad_token` and so on; a token is a text, or an object with its content."""
    tokens = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key in _TOKENS and content is not None:
            tokens[key] = text(content, f"{source}: {key}", empty=True)
        elif key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return tokens


def _contents(tokens: Any, name: str) -> tuple[str, ...]:
    if not isinstance(tokens, list):
        raise Qwen3Error(f"{name} is {brief(tokens)}: it must be a list of tokens")
    contents = [token.get("content") if isinstance(token, dict) else token for token in tokens]
    return tuple(text(content, f"{name}[{i}]") for i, content in enumerate(contents))


def _added_tokens(tokens: Any, name: str) -> dict[int, tokenizers.AddedToken] | None:
    if tokens is None:
        return None
    if not isinstance(tokens, dict):
        raise Qwen3Error(f"{name} is {brief(tokens)}: it must be an object from ids to tokens")
    added = {}
    for key, token in tokens.items():
        where = f"{name}[{brief(key)}]"
        if not isinstance(token, dict):
            raise Qwen3Error(f"{where} is {brief(token)}: it must be an object with content")
        number = whole(int(key) if key.isascii() and key.isdigit() and len(key) < 12 else key, where, 0)
        kind = {key: flag(token.get(key, default), f"{where}.{key}") for key, default in _FLAGS.items()}
        added[number] = tokenizers.AddedToken(text(token.get("content"), f"{where}.content"), **kind)
    return added


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


def _templates(folder: Path, found: Any, source: str) -> dict[str, str]:
    """Reads the chat templates, by name: files win over tokenizer_config.json, as in transformers."""
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if read := {name: read_text(path) for name, path in files.items() if is_there(path)}:
        return read
    name = f"{source}: chat_template"
    if isinstance(found, list):
        if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in found):
            raise Qwen3Error(f"{name} is a list, but not of names and templates")
        found = {text(entry["name"], f"{name}, a name"): entry["template"] for entry in found}
    elif not isinstance(found, dict):
        found = {} if found is None else {"default": found}
    return {key: text(value, f"{name} {brief(key)}", empty=True) for key, value in found.items()}
