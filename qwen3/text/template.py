"""Chat templates: render a conversation in the format that the model was trained on."""

import json
from datetime import datetime
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import Qwen3Error, one_line

# Keys under which clients send the reasoning of a message; templates read the first.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The chat templates of one model.

    templates: by name, of which "default" and "tool_use" are used. named_tokens: tokens by their name in templates:
    `eos_token`, `pad_token` and so on. source: the name for error messages.
    """

    def __init__(self, templates: dict[str, str], named_tokens: dict[str, str], source: str):
        self.templates, self._named_tokens, self._source = templates, named_tokens, source
        self._environment = _environment(templates)

    def render(
        self, messages: list[dict], add_generation_prompt: bool, tools: list[dict] | None, variables: dict
    ) -> str:
        """Renders one conversation; see `Tokenizer.apply_chat_template`."""
        name = "tool_use" if tools is not None and "tool_use" in self.templates else "default"
        if not self.templates:
            raise Qwen3Error(f"{self._source}: this model has no chat template: use raw text (--raw)")
        if name not in self.templates:
            raise Qwen3Error(f"{self._source}: no chat template is named 'default', only {', '.join(self.templates)}")
        context = {
            **self._named_tokens,
            "documents": None,
            **_plain("a template variable", variables),
            "messages": _messages(messages),
            "tools": _tools(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._environment.get_template(name).render(context)
        except Exception as error:  # a template is a program: it can raise anything
            refusal = f"the chat template cannot render these messages: {one_line(error)}"
            raise Qwen3Error(f"{self._source}: {refusal}: change them or use raw text (--raw)") from None


def read_templates(folder: Path, config: dict) -> dict[str, str]:
    """Reads the chat templates of a model folder, by name; chat_template.jinja wins over tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    try:
        if path.is_file():
            return {"default": path.read_text(encoding="utf-8")}
        found = config.get("chat_template")
        if isinstance(found, list):
            return {entry["name"]: entry["template"] for entry in found}
    except (OSError, ValueError) as error:
        raise Qwen3Error(f"{path}: cannot be read ({error}): download the file again") from None
    except (KeyError, TypeError):
        config_path = folder / "tokenizer_config.json"
        raise Qwen3Error(f"{config_path}: chat_template is a list, but not of names and templates") from None
    return {} if found is None else {"default": found}


def _messages(messages: list[dict]) -> list[dict]:
    """Checks messages and converts them for templates: JSON types only, no null values, one key for reasoning."""
    if not isinstance(messages, list | tuple) or not messages:
        raise Qwen3Error("messages must be a list of at least one dict with role and content")
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise Qwen3Error(f"messages[{i}] is a {type(message).__name__}, a dict with role and content is needed")
        if not isinstance(message.get("role"), str):
            raise Qwen3Error(f"messages[{i}] has no role, such as 'user'")
        if message.get("content") is None and not message.get("tool_calls"):
            raise Qwen3Error(f"messages[{i}] has no content")
    plain = _plain("messages", messages)
    return [_with_reasoning({k: v for k, v in message.items() if v is not None}) for message in plain]


def _with_reasoning(message: dict) -> dict:
    reasoning = next((message[key] for key in _REASONING_KEYS if key in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _tools(tools: list[dict] | None) -> list[dict] | None:
    if tools is not None and not isinstance(tools, list | tuple):
        raise Qwen3Error(f"tools is a {type(tools).__name__}, a list of JSON schemas is needed")
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise Qwen3Error(f"tools[{i}] is a {type(tool).__name__}: describe the function as a JSON schema, a dict")
    return _plain("tools", tools)


def _plain(what: str, value):
    """Copies a value as JSON types only, so that a downloaded template cannot reach the methods of other objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise Qwen3Error(f"{what} can hold JSON values only: {one_line(error)}") from None


def _environment(templates: dict[str, str]) -> ImmutableSandboxedEnvironment:
    """Makes the sandbox in which chat templates run, with the helpers that they expect."""
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.DictLoader(templates),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


class _Generation(Extension):
    """The tag `{% generation %}`, which marks the assistant's text for training: renders its body in its own scope."""

    tags = {"generation"}  # noqa: RUF012 (as the base class declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes <, > and & for HTML; the training data did not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
