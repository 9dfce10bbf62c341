"""Text to ids and back: tokenizer.json, the model's chat template, and decoding one token at a time."""

import codecs
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .config import read_json
from .errors import Qwen3Error

# The names under which clients send a message's reasoning, the one that templates read first.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes are numbered from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class Tokenizer:
    """A byte-level tokenizer and its chat template; same ids and same text as transformers' AutoTokenizer."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        named_tokens: dict[str, str] | None = None,
        templates: dict[str, str] | None = None,
        source: str = "tokenizer",
    ):
        """
        Args:
            backend: a tokenizer with a ByteLevel decoder; its truncation and padding are switched off.
            named_tokens: what templates know as `eos_token`, `pad_token` and so on.
            templates: chat templates by name, of which "default" and "tool_use" are used.
            source: the name for error messages.
        """
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise Qwen3Error(f"{source}: the tokenizer's decoder is {kind}: only ByteLevel is supported")
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._source = backend, source
        self._special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._named_tokens, self._templates = dict(named_tokens or {}), dict(templates or {})
        self._environment = _environment(self._templates)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json and, where they are, tokenizer_config.json and chat_template.jinja, which wins.

        Raises:
            Qwen3Error: a file is missing or cannot be read.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise Qwen3Error(f"{path}: no such file: a model folder holds its tokenizer as tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise Qwen3Error(f"{path}: cannot be read ({_line(error)}): download the file again") from None
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path, "") if config_path.is_file() else {}
        return cls(backend, _named_tokens(config), _templates(folder, config), str(folder))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included; the embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_id(self) -> int | None:
        """The id of tokenizer_config.json's eos_token, None if there is none."""
        name = self._named_tokens.get("eos_token")
        return None if name is None else self.token_to_id(name)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; the name of a special token inside it becomes that token's id.

        Args:
            text: any valid Unicode.
            add_special_tokens: False leaves out what tokenizer.json's post-processor adds, if anything: a rendered
                chat template has it already.
        """
        if not isinstance(text, str):
            raise Qwen3Error(f"text is a {type(text).__name__}, a string is needed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Qwen3Error(f"character {error.start} of the text is a lone surrogate: pass valid Unicode") from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, and an id without a token becomes nothing."""
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = False) -> bytes:
        """What one id adds to the decoded text, as bytes: a character may need several tokens."""
        if skip_special_tokens and token_id in self._special:
            return b""
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # an added token that is written as it is
            return token.encode()

    def apply_chat_template(
        self, messages: list[dict], add_generation_prompt: bool = True, tools: list[dict] | None = None, **variables
    ) -> str:
        """One conversation as the text that the model was trained on.

        Args:
            messages: dicts with `role` and `content`; content may be absent beside `tool_calls`.
            add_generation_prompt: end with the opening of the assistant's turn.
            tools: JSON schemas of the functions that the model may call.
            variables: further variables of the template, such as `enable_thinking`.

        Returns:
            The prompt, to be encoded with `add_special_tokens=False`.

        Raises:
            Qwen3Error: the model has no chat template, the messages are malformed, or the template refuses them.
        """
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if not self._templates:
            raise Qwen3Error(f"{self._source}: this model has no chat template: use raw text (--raw)")
        if name not in self._templates:
            raise Qwen3Error(f"{self._source}: no chat template is named 'default', only {', '.join(self._templates)}")
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
            refusal = f"the chat template cannot render these messages: {_line(error)}"
            raise Qwen3Error(f"{self._source}: {refusal}: change them or use raw text (--raw)") from None


class IncrementalDecoder:
    """Decodes token by token: emits no half character, takes nothing back, and adds up to `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True):
        self._tokenizer, self._skip_special_tokens = tokenizer, skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; at most three bytes wait for their character's rest."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip_special_tokens))

    def finish(self) -> str:
        """What still waits: U+FFFD for a character that never got its rest, else nothing."""
        return self._utf8.decode(b"", final=True)


def _named_tokens(config: dict) -> dict[str, str]:
    """`eos_token` and its like from tokenizer_config.json, where each is a string or a dict that describes one."""
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in tokens.items() if isinstance(value, str)}


def _templates(folder: Path, config: dict) -> dict[str, str]:
    """The chat templates of a model folder by name."""
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
    """Checked messages as templates expect them: plain, nothing null, reasoning under the name that they read."""
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
    """A copy made of JSON types only: a downloaded template must not get at the methods of other objects."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise Qwen3Error(f"{what} can hold JSON values only: {_line(error)}") from None


def _environment(templates: dict[str, str]) -> ImmutableSandboxedEnvironment:
    """The sandbox in which chat templates run, with the helpers that they are written for."""
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
    """`{% generation %}` marks the assistant's words for training; here its body is rendered, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which the model never saw.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
