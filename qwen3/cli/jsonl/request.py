"""Turns a line into a request, and an answer into the rest of the line's record."""

import math
from dataclasses import fields, replace
from typing import Any

from ...config.values import flag, refuse, text, token_ids
from ...engine.loop import Request
from ...engine.params import SamplingParams
from ...engine.request import Completion
from ...errors import Qwen3Error, brief, closest, one_line
from ...llm import LLM
from ..options import PromptOptions, prompt_ids
from .lines import parse, to_json

_PARAMETERS = {field.name for field in fields(SamplingParams)}
# OpenAI's names for ours.
_OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}
# Arguments of LLM.render that a line may set.
_RENDERING = ("add_generation_prompt", "continue_final_message", "enable_thinking")
_PROMPT = (
    "prompt", "messages", "system", "raw", "sanitize_control_tokens", "tools", "tool_choice", "chat_template_kwargs",
    *_RENDERING,
)  # fmt: skip
# What the record of a line repeats: it names the line, or says which prompt was answered.
_REPEATED = ("id", "custom_id", "metadata", *_PROMPT)
# What OpenAI's clients send and what changes no answer.
_WITHOUT_EFFECT = {"metadata", "user", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Features of OpenAI's servers that are not here: only the value that asks for nothing is taken.
_ONLY: dict[str, Any] = {
    "n": 1, "best_of": 1, "stream": False, "echo": False, "suffix": "", "response_format": {"type": "text"},
    "modalities": ["text"], "parallel_tool_calls": True, "verbosity": "medium", "functions": [],
    "use_beam_search": False, "length_penalty": 1.0, "spaces_between_special_tokens": True,
}  # fmt: skip
_NULL_ONLY = {"stream_options", "function_call", "audio", "prediction", "web_search_options", "reasoning_effort"}
_KNOWN = _PARAMETERS | {*_OTHER_NAMES, *_REPEATED, "model", "top_logprobs"} | _WITHOUT_EFFECT | {*_ONLY} | _NULL_ONLY
# What other tools call our fields.
_MEANT = {
    **dict.fromkeys(("content", "input", "inputs", "instruction", "query", "question", "text"), "prompt"),
    **dict.fromkeys(("conversation", "conversations"), "messages"),
    **dict.fromkeys(("max_length", "num_predict"), "max_new_tokens"),
    "min_new_tokens": "min_tokens", "repeat_penalty": "repetition_penalty", "stop_strings": "stop",
}  # fmt: skip
_ENDPOINTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}


def prepare(
    llm: LLM, data: bytes, params: SamplingParams, options: PromptOptions
) -> tuple[str, str | None, Request | str]:
    """Returns the beginning of a line's record, the model that it names, and its request or what is wrong with it.

    A line of any content costs at most itself: nothing that it causes is raised.
    """
    kept = "{}"
    try:
        values = _without_envelope(parse(data))
        kept = to_json({key: values[key] for key in ("id", "custom_id") if key in values})
        # A client sends null for what it does not set.
        values = {key: value for key, value in values.items() if value is not None or key in ("id", "custom_id")}
        request = _request(llm, values, params, options)
        return to_json({key: values[key] for key in _REPEATED if key in values}), values.get("model"), request
    except Qwen3Error as error:
        return kept, None, str(error)
    except Exception as error:
        return kept, None, f"cannot be answered ({one_line(error)})"


def _without_envelope(values: dict[str, Any]) -> dict[str, Any]:
    """Unpacks a line of OpenAI's batch files: {"custom_id": ..., "method": "POST", "url": ..., "body": {...}}."""
    if "body" not in values:
        return values
    body = values["body"]
    if not isinstance(body, dict):
        raise Qwen3Error(f'"body" is {brief(body)}: it must be an object')
    if unknown := values.keys() - {"custom_id", "method", "url", "body"}:
        raise Qwen3Error(f'unknown field {brief(min(unknown))} beside "body"')
    if (method := values.get("method")) not in (None, "POST"):
        refuse(method, '"method"', "POST")
    if (url := values.get("url")) is not None:
        if not isinstance(url, str) or url not in _ENDPOINTS:
            refuse(url, '"url"', " or ".join(_ENDPOINTS))
        if body.get(_ENDPOINTS[url]) is None:
            raise Qwen3Error(f'"url" is {url}, which needs "{_ENDPOINTS[url]}" in "body"')
        if _ENDPOINTS[url] == "prompt":  # completions of OpenAI know no chat template
            body = {"raw": True, **body}
    return body if "custom_id" not in values else {"custom_id": values["custom_id"], **body}


def _request(llm: LLM, values: dict[str, Any], params: SamplingParams, options: PromptOptions) -> Request:
    if unknown := values.keys() - _KNOWN:
        name = min(unknown)
        near = _MEANT.get(name) or closest(name, _KNOWN, cutoff=0.75)
        advice = f"did you mean {near!r}?" if near else 'what is your own goes into "metadata"'
        raise Qwen3Error(f"unknown field {brief(name)}: {advice}")
    for key, value in values.items():
        if key in _NULL_ONLY:
            raise Qwen3Error(f'"{key}" is not supported: leave it out')
        if key in _ONLY and key not in _PARAMETERS and (type(value), value) != (type(_ONLY[key]), _ONLY[key]):
            refuse(value, f'"{key}"', f"{to_json(_ONLY[key])}, which is all that is supported")
    if "model" in values:
        text(values["model"], '"model"')
    ids = _ids(llm, values, options)
    return llm.prepare(ids, replace(params, **_parameters(values)))


def _parameters(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of SamplingParams that a line sets."""
    given = {key: value for key, value in values.items() if key in _PARAMETERS}
    for name, ours in _OTHER_NAMES.items():
        if name in values and given.setdefault(ours, values[name]) != values[name]:
            raise Qwen3Error(f'"{name}" is {brief(values[name])} beside another limit of {brief(given[ours])}')
    # OpenAI's chats say whether, and how many beside; its completions, and we, say how many.
    if isinstance(wanted := given.get("logprobs"), bool):
        given["logprobs"] = values.get("top_logprobs", 0) if wanted else None
    if "top_logprobs" in values and wanted is not True and values["top_logprobs"] != 0:
        raise Qwen3Error('"top_logprobs" goes with "logprobs": true')
    return given


def _ids(llm: LLM, values: dict[str, Any], options: PromptOptions) -> list[int]:
    if ("prompt" in values) == ("messages" in values):
        raise Qwen3Error('either "prompt" or "messages" is needed')
    rendering = _rendering(values)
    if "raw" in values:
        options = replace(options, raw=flag(values["raw"], '"raw"'))
    if "sanitize_control_tokens" in values:
        options = replace(options, sanitize=flag(values["sanitize_control_tokens"], '"sanitize_control_tokens"'))
    if "system" in values:
        options = replace(options, system=text(values["system"], '"system"', empty=True))
    if "messages" in values:
        if options.raw or options.system is not None:
            raise Qwen3Error('"messages" go through the chat template as they are: raw and a system text do not apply')
        return prompt_ids(llm, options, messages=values["messages"], **rendering)
    prompt = values["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]  # as OpenAI's completions take many
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        raise Qwen3Error(f'"prompt" is a list of {len(prompt)} prompts: give each a line of its own')
    if isinstance(prompt, list):
        if rendering or options.system is not None:
            raise Qwen3Error('"prompt" is token ids, which know no chat template: leave out what is meant for one')
        return token_ids(prompt, '"prompt"', llm.config.vocab_size)
    if not isinstance(prompt, str) or not prompt:
        raise Qwen3Error('"prompt" must be text that is not empty, or a list of token ids: one prompt a line')
    return prompt_ids(llm, options, prompt=prompt, **rendering)


def _rendering(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of LLM.render that a line sets: the template's variables, tools and switches."""
    variables = values.get("chat_template_kwargs", {})
    if not isinstance(variables, dict):
        refuse(variables, '"chat_template_kwargs"', "an object with variables of the chat template")
    if reserved := variables.keys() & {"messages", "tools", "prompt", "sanitize_control_tokens"}:
        raise Qwen3Error(f'"chat_template_kwargs" holds {brief(min(reserved))}, which is a field of the line itself')
    rendering = dict(variables)
    for name in _RENDERING:
        if name in values and rendering.setdefault(name, values[name]) != values[name]:
            raise Qwen3Error(f'"{name}" is also in "chat_template_kwargs", and not the same: leave one out')
    if "enable_thinking" in rendering:
        flag(rendering["enable_thinking"], '"enable_thinking"')
    choice = values.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        refuse(choice, '"tool_choice"', '"auto" or "none"')
    if "tools" in values and choice == "auto":
        rendering["tools"] = values["tools"]
    return rendering


def answer(llm: LLM, done: Completion) -> dict[str, Any]:
    """Returns what a record says about an answer."""
    values: dict[str, Any] = {"text": done.text, "finish_reason": done.finish_reason}
    if done.stop_reason is not None:
        values["stop_reason"] = done.stop_reason
    if done.error is not None:
        values["error"] = done.error
    values |= {"prompt_tokens": done.metrics.prompt_tokens, "generated_tokens": done.metrics.generated_tokens}
    if done.logprobs is not None:
        values["logprobs"] = [
            _token(llm, token.token_id, token.logprob) | {"top": [_token(llm, *likely) for likely in token.top]}
            for token in done.logprobs
        ]
    return values


def _token(llm: LLM, token_id: int, logprob: float) -> dict[str, Any]:
    # JSON has no infinity; OpenAI's servers write -9999 for it.
    value = logprob if math.isfinite(logprob) else -9999.0
    return {"token_id": token_id, "token": llm.tokenizer.decode([token_id]), "logprob": round(value, 6)}


def model_names(llm: LLM, repo_id: str | None) -> set[str]:
    """The names by which a line can mean the loaded model: as on the command line, its folder, or its id on the hub."""
    folder = llm.folder.absolute()
    return {repo_id or "", str(llm.folder), str(folder), folder.name, "/".join(folder.parts[-2:])}
