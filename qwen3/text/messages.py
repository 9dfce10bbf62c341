"""Conversations as clients write them, made into what chat templates expect."""

import json
from collections.abc import Callable, Container
from typing import Any

from ..errors import Qwen3Error, brief, closest, one_line

ROLES = ("system", "user", "assistant", "tool")
# Keys under which clients send the reasoning of a message; templates read the first.
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
# Keys that say nothing to the model; templates need not read them.
SILENT_KEYS = frozenset((
    "annotations", "audio", "created", "created_at", "finish_reason", "id", "index", "logprobs", "name", "object",
    "status", "stop_reason", "timestamp", "tool_call_id", "train", "type", "weight",
))  # fmt: skip
# Types of parts, each with the key of its text.
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def normalize(messages: Any, template_strings: Container[str], argument_texts: bool = False) -> list[dict]:
    """Checks messages and copies them for a template: JSON types only, one key for reasoning, no null values.

    Content becomes text or a list of texts, None where there is none beside tool calls; the arguments of a tool call an
    object where they are the text of one, with `argument_texts` their JSON text; the role developer system.
    template_strings: the strings that stand in the template, which may name more roles.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise Qwen3Error("messages must be a list of at least one dict with role and content")
    return [_message(m, f"messages[{i}]", template_strings, argument_texts) for i, m in enumerate(messages)]


def _message(message: Any, name: str, template_strings: Container[str], argument_texts: bool) -> dict:
    if callable(getattr(message, "model_dump", None)):  # as OpenAI's client returns them
        try:
            message = message.model_dump()
        except Exception as error:  # the value may be any object
            raise Qwen3Error(f"{name} cannot be read as a message: {one_line(error)}") from None
    if not isinstance(message, dict):
        raise Qwen3Error(f"{name} is a {type(message).__name__}, a dict with role and content is needed")
    message = {key: value for key, value in plain(name, message).items() if value is not None}
    message["role"] = _role(message.get("role"), name, template_strings)
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list):
        raise Qwen3Error(f"{name}.tool_calls is {brief(calls)}: it must be a list of tool calls")
    if calls:
        named = [(call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)]
        message["tool_calls"] = [_tool_call(call, where, argument_texts) for call, where in named]
    else:
        message.pop("tool_calls", None)
    reasoning = next((message[key] for key in REASONING_KEYS if key in message), None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise Qwen3Error(f"{name} has reasoning {brief(reasoning)}: it must be text")
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    content = _content(message.get("content"), f"{name}.content")
    if content is None and not calls and reasoning is None and message["role"] != "tool":
        old = ", and function_call is the old form: give tool_calls" if "function_call" in message else ""
        raise Qwen3Error(f"{name} has no content{old}")
    return message | {"content": "" if content is None and not calls else content}


def _role(role: Any, name: str, template_strings: Container[str]) -> str:
    if not isinstance(role, str):
        raise Qwen3Error(f"{name} has no role, such as 'user'")
    if role in ROLES or role in template_strings:
        return role
    if role == "developer":
        return "system"
    close = closest(role, ROLES)
    advice = f"did you mean {close!r}?" if close else f"use one of {', '.join(ROLES)}"
    raise Qwen3Error(f"{name} has the role {brief(role)}, which the chat template does not know: {advice}")


def _content(content: Any, name: str) -> str | list[str] | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Qwen3Error(f"{name} is {brief(content)}: it must be text or a list of text parts")
    return [_part(part, f"{name}[{i}]") for i, part in enumerate(content)] or None


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise Qwen3Error(f"{name} is {brief(part)}: it must be a text part")
    kind = part.get("type", "text")
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        raise Qwen3Error(f"{name} has the type {brief(kind)}: these models read text parts only")
    if not isinstance(text := part.get(_TEXT_PARTS[kind]), str):
        raise Qwen3Error(f"{name} has no text")
    return text


def _tool_call(call: Any, name: str, as_text: bool) -> dict:
    """A tool call whose arguments are an object where they can be, or their JSON text."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Qwen3Error(f"{name} is {brief(call)}: it must have a function with a name and arguments")
    arguments = given = function.get("arguments")
    if isinstance(given, str) and given.strip():
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else given
    elif not given:  # clients send this for none
        arguments = given = {}
    if not isinstance(arguments, dict | str):
        raise Qwen3Error(f"{name} has the arguments {brief(arguments)}: they must be an object or its JSON text")
    if as_text:
        arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else function


def tool_schemas(tools: Any) -> list[dict] | None:
    """Checks and copies the JSON schemas of functions."""
    if tools is not None and not isinstance(tools, list | tuple):
        raise Qwen3Error(f"tools is a {type(tools).__name__}, a list of JSON schemas is needed")
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise Qwen3Error(f"tools[{i}] is a {type(tool).__name__}: describe the function as a JSON schema, a dict")
    return plain("tools", tools)


def plain(name: str, value: Any) -> Any:
    """Copies a value as JSON types only, so that a downloaded template cannot reach the methods of other objects."""
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError:
        raise Qwen3Error(f"{name} holds a lone surrogate: pass valid Unicode") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise Qwen3Error(f"{name} can hold JSON values only: {one_line(error)}") from None


def map_text(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a copy of a JSON value with every text in it changed, keys too."""
    match value:
        case str():
            return change(value)
        case list():
            return [map_text(item, change) for item in value]
        case dict():
            return {change(key): map_text(item, change) for key, item in value.items()}
    return value
