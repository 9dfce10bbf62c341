"""Byte-level tokenizer: text to ids and back."""

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from ..config.files import is_there, read_text
from ..config.values import flag, token_ids, whole
from ..config.values import text as checked_text
from ..errors import Qwen3Error, brief, one_line
from .template import ChatTemplate
from .tokenizer_config import TokenizerFiles, tokenizer_files

# Stands inside a control token that is to stay text: the text is cut there and its pieces are encoded apart. Unicode
# keeps this code point out of all text.
_CUT = "\ufdd0"

Result = TypeVar("Result")


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
        control_tokens: Iterable[str] = (),
    ):
        """
        Args:
            backend: a tokenizer with a ByteLevel decoder; its truncation and padding are switched off.
            named_tokens: tokens by their name in templates: `eos_token`, `pad_token` and so on.
            templates: chat templates by name, of which "default" and "tool_use" are used.
            source: the name for error messages.
            control_tokens: added tokens that `sanitize_control_tokens` keeps out of messages, beside the special ones
                and those that the templates write.
        """
        if not isinstance(backend.decoder, tokenizers.decoders.ByteLevel):
            kind = type(backend.decoder).__name__
            raise Qwen3Error(f"{source}: the tokenizer's decoder is {kind}: only ByteLevel is supported")
        backend.no_truncation()
        backend.no_padding()
        self._backend, self._source = backend, source
        added = backend.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._added = {i: token.content.encode() for i, token in added.items()}
        self._named_tokens = dict(named_tokens or {})
        self._template = ChatTemplate(dict(templates or {}), self._named_tokens, source)
        self._control_tokens = frozenset(control_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Reads tokenizer.json and, where they are, tokenizer_config.json and chat_template.jinja, which wins.

        Raises:
            Qwen3Error: a file is missing or cannot be read.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not is_there(path) and is_there(folder / "vocab.json"):
            raise Qwen3Error(
                f"{path}: no such file, only vocab.json: convert it with transformers, "
                f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
            )
        content = read_text(path, "a model folder holds its tokenizer as tokenizer.json")
        advice = f"{path}: cannot be read", "download the file again"
        backend = _guarded(lambda: tokenizers.Tokenizer.from_str(content), *advice)
        files = tokenizer_files(folder)
        _guarded(lambda: _add_tokens(backend, files, str(path)), *advice)
        return cls(backend, files.named_tokens, files.templates, str(folder), files.control)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included; the embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def eos_token_id(self) -> int | None:
        """The id of tokenizer_config.json's eos_token, None if there is none."""
        name = self._named_tokens.get("eos_token")
        return None if name is None else self.token_to_id(name)

    @cached_property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer in a chat: eos_token, and the added token that the template writes there."""
        afters = self._template.after_answers() if self.has_chat_template else ()
        firsts = (self.encode(after.lstrip(), add_special_tokens=False)[:1] for after in afters)
        closing = next((first for first in firsts if first and first[0] in self._added), [])
        eos = [] if self.eos_token_id is None else [self.eos_token_id]
        return tuple(dict.fromkeys(eos + closing))

    @property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens by name, each with its id."""
        return {token.content: i for i, token in self._backend.get_added_tokens_decoder().items() if token.special}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._template.templates)

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(checked_text(token, "token", empty=True))

    def encode(self, text: str, add_special_tokens: bool = True, sanitize_control_tokens: bool = False) -> list[int]:
        """Returns the ids of a text; the name of a special token in it becomes that token's id.

        Args:
            text: any valid Unicode.
            add_special_tokens: False leaves out the tokens that tokenizer.json's post-processor adds; a rendered chat
                template already contains them.
            sanitize_control_tokens: the name of a control token stays text; for text from others.
        """
        if not isinstance(text, str):
            raise Qwen3Error(f"text is a {type(text).__name__}, a string is needed")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Qwen3Error(f"character {error.start} of the text is a lone surrogate: pass valid Unicode") from None
        flag(add_special_tokens, "add_special_tokens")
        if flag(sanitize_control_tokens, "sanitize_control_tokens"):
            return self._encode_cut(self._protect(text, False), add_special_tokens)
        return _guarded(
            lambda: self._backend.encode(text, add_special_tokens=add_special_tokens).ids,
            f"{self._source}: tokenizer.json cannot encode this text",
            "its pattern does not end in time, or the file is damaged",
        )

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of ids; invalid UTF-8 becomes U+FFFD, an id without a token an empty string."""
        flag(skip_special_tokens, "skip_special_tokens")
        simple = type(ids) is list and all(type(i) is int and 0 <= i < 2**31 for i in ids)
        known = ids if simple else token_ids(ids, "ids")
        return b"".join(self.token_bytes(i, skip_special_tokens) for i in known).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, skip_special_tokens: bool = False) -> bytes:
        """Returns the bytes of one id; a character may need several tokens."""
        if type(token_id) is not int or not 0 <= token_id < 2**31:
            token_id = whole(token_id, "token_id", 0)
        if (added := self._added.get(token_id)) is not None:  # stored as plain text, whatever letters it has
            return b"" if skip_special_tokens and token_id in self._special else added
        token = self._backend.id_to_token(token_id) or ""
        try:
            return bytes([_BYTES[character] for character in token])
        except KeyError:  # not a token of the byte alphabet
            return token.encode()

    def apply_chat_template(
        self,
        /,  # a template's variable may have this name
        messages: list[dict],
        add_generation_prompt: bool | None = None,
        tools: list[dict] | None = None,
        *,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """Renders one conversation in the format that the model was trained on.

        Args:
            messages: dicts with `role` and `content`, a text or a list of text parts; content may be null beside
                `tool_calls`, whose arguments are an object or its JSON text. The role developer is system.
            add_generation_prompt: end with the opening of the assistant's turn; the default unless the last message is
                continued.
            tools: JSON schemas of the functions that the model may call.
            continue_final_message: end inside the last message, for the model to go on with it; the name of a key of
                the message, such as "reasoning_content", continues that.
            variables: further variables of the template, such as `enable_thinking`.

        Returns:
            The prompt, to be encoded with `add_special_tokens=False`.

        Raises:
            Qwen3Error: the model has no chat template, the messages are malformed, the template refuses them, or
                something of them does not reach the prompt.
        """
        return self._template.render(messages, tools, variables, add_generation_prompt, continue_final_message)

    def encode_chat(
        self,
        /,
        messages: list[dict],
        add_generation_prompt: bool | None = None,
        tools: list[dict] | None = None,
        *,
        continue_final_message: bool | str = False,
        sanitize_control_tokens: bool = False,
        **variables: Any,
    ) -> list[int]:
        """The ids of `apply_chat_template`.

        sanitize_control_tokens: the name of a control token in messages, tools and variables stays text; in the
            assistant's messages only that of a special token does, for they hold `<think>` and `<tool_call>`.
        """
        sanitize = flag(sanitize_control_tokens, "sanitize_control_tokens")
        options = add_generation_prompt, continue_final_message, True, self._protect if sanitize else None
        text = self._template.render(messages, tools, variables, *options)
        # The template itself writes what begins a text.
        return self._encode_cut(text, False) if sanitize else self.encode(text, add_special_tokens=False)

    @cached_property
    def _control_patterns(self) -> tuple[re.Pattern, re.Pattern]:
        """Finds control tokens in a text: all of them, and the special ones alone."""
        written, every = self._template.literals(), self._backend.get_added_tokens_decoder().values()
        special = [token.content for token in every if token.special]
        further = [token.content for token in every if token.content in written and not token.content.isspace()]
        tokens = {*special, *further, *(token.content for token in every if token.content in self._control_tokens)}
        return _any_of(tokens), _any_of(special)

    def _protect(self, text: str, assistant: bool) -> str:
        """Cuts each control token in a text. Also those that only the tokenizer's normalizer makes out of it."""
        if self._backend.normalizer is not None:
            text = self._backend.normalizer.normalize_str(text)
        if _CUT in text:
            raise Qwen3Error("sanitize_control_tokens: the text holds the code point U+FDD0, which no text has")
        pattern = self._control_patterns[assistant]
        while (cut := pattern.sub(lambda found: found[0][:1] + _CUT + found[0][1:], text)) != text:
            if f"{_CUT}{_CUT}" in cut or cut.endswith(_CUT):
                raise Qwen3Error("sanitize_control_tokens: this tokenizer has a control token of one character")
            text = cut
        return text

    def _encode_cut(self, text: str, add_special_tokens: bool) -> list[int]:
        """The ids of the pieces of a text, encoded apart, so that no token reaches over a cut."""
        pieces = [self.encode(piece, add_special_tokens=False) for piece in text.split(_CUT)]
        ids, whole = [i for piece in pieces for i in piece], text.replace(_CUT, "")
        plain = self.encode(whole, add_special_tokens=False)
        if self.decode(ids) != self.decode(plain) or "\\ufdd0" in text:
            raise Qwen3Error(
                f"{self._source}: sanitize_control_tokens: this model's tokenizer or template changes text"
            )
        if add_special_tokens and (wrapped := self.encode(whole)) != plain:
            at = next(
                (at for at in range(len(wrapped) - len(plain) + 1) if wrapped[at : at + len(plain)] == plain), None
            )
            if at is None:
                raise Qwen3Error(f"{self._source}: sanitize_control_tokens: its post-processor changes text")
            return [*wrapped[:at], *ids, *wrapped[at + len(plain) :]]
        return ids


def _any_of(tokens: Iterable[str]) -> re.Pattern:
    """Finds any of these texts, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _guarded(call: Callable[[], Result], what: str, advice: str) -> Result:
    """Calls into the tokenizers package, whose errors may be of any type: a panic of its Rust code is no Exception."""
    try:
        return call()
    except (Qwen3Error, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Qwen3Error(f"{what} ({one_line(error)}): {advice}") from None


def _add_tokens(backend: tokenizers.Tokenizer, files: TokenizerFiles, source: str) -> None:
    """Adds the tokens of tokenizer_config.json that tokenizer.json lacks or describes in another way.

    Of added_tokens.json only those that tokenizer.json lacks. A named token that is in no file has no id: templates get
    its text.
    """
    for number, token in sorted(files.added.items()):
        if backend.get_added_tokens_decoder().get(number) != token:
            known = backend.token_to_id(token.content)
            if known is None:
                backend.add_tokens([token])
            if (known if known is not None else backend.token_to_id(token.content)) != number:
                raise Qwen3Error(
                    f"{source}: {brief(token.content)} has not the id {number}, which tokenizer_config.json gives it"
                )
            if known is not None:
                backend.add_tokens([token])
    for name, number in sorted(files.older.items(), key=lambda entry: entry[1]):
        if backend.token_to_id(name) is None:
            backend.add_tokens([tokenizers.AddedToken(name, normalized=False)])
            if backend.token_to_id(name) != number:
                raise Qwen3Error(f"{source}: {brief(name)} cannot have the id {number} of added_tokens.json")
    names = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name in dict.fromkeys(files.special):
        if name not in names and backend.token_to_id(name) is not None:
            backend.add_special_tokens([name])
