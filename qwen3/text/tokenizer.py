"""Byte-level tokenizer: text to ids and back."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from ..config.files import read_json_if_there
from ..errors import Qwen3Error, one_line
from .template import ChatTemplate, read_templates


def _byte_alphabet() -> dict[str, int]:
    """Returns GPT-2's byte alphabet: printable Latin-1 maps to itself, the other bytes to U+0100 and on."""
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
            named_tokens: tokens by their name in templates: `eos_token`, `pad_token` and so on.
            templates: chat templates by name, of which "default" and "tool_use" are used.
            source: the name for error messages.
        """
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise Qwen3Error(f"{source}: the tokenizer's decoder is {kind}: only ByteLevel is supported")
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self._named_tokens = dict(named_tokens or {})
        self._template = ChatTemplate(dict(templates or {}), self._named_tokens, source)

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
            raise Qwen3Error(f"{path}: cannot be read ({one_line(error)}): download the file again") from None
        config = read_json_if_there(folder / "tokenizer_config.json")
        return cls(backend, _named_tokens(config), read_templates(folder, config), str(folder))

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included; the embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_id(self) -> int | None:
        """The id of tokenizer_config.json's eos_token, None if there is none."""
        name = self._named_tokens.get("eos_token")
        return None if name is None else self.token_to_id(name)

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens by name, each with its id."""
        return {token.content: i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._template.templates)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of a text; the name of a special token in it becomes that token's id.

        Args:
            text: any valid Unicode.
            add_special_tokens: False leaves out the tokens that tokenizer.json's post-processor adds; a rendered chat
                template already contains them.
        """
        if not isinstance(text, str):
            raise Qwen3Error(f"text is a {type(text).__name__}, a string is needed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Qwen3Error(f"character {error.start} of the text is a lone surrogate: pass valid Unicode") from None
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of ids; invalid UTF-8 becomes U+FFFD, an id without a token an empty string."""
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = False) -> bytes:
        """Returns the bytes of one id; a character may need several tokens."""
        if skip_special_tokens and token_id in self._special:
            return b""
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # an added token, stored as plain text
            return token.encode()

    def apply_chat_template(
        self, messages: list[dict], add_generation_prompt: bool = True, tools: list[dict] | None = None, **variables
    ) -> str:
        """Renders one conversation in the format that the model was trained on.

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
        return self._template.render(messages, add_generation_prompt, tools, variables)


def _named_tokens(config: dict) -> dict[str, str]:
    """Returns `eos_token`, `pad_token` and so on of tokenizer_config.json, each a string or a dict with `content`."""
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in tokens.items() if isinstance(value, str)}
