"""Options that several commands share. PyTorch is not imported here: `--help` and errors need not wait for it."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_origin

from ..config.engine import EngineConfig
from ..engine.params import SamplingParams
from ..errors import Qwen3Error, brief

if TYPE_CHECKING:
    from ..llm import LLM

# Further names of flags, beside those of the fields.
_ALSO = {"max_new_tokens": ("-n", "--max-tokens")}


class Options(Protocol):
    """What takes options: a parser or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> Any: ...


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `generate` and `chat` share."""
    add_model(parser)
    parser.add_argument("--system", type=text, metavar="TEXT", help="system message, put before the conversation")
    parser.add_argument("--no-thinking", action="store_true", help="ask the chat template to leave out thinking")
    parser.add_argument(
        "--sanitize-control-tokens",
        action="store_true",
        help="names such as <|im_end|> in prompts stay text: for prompts that others wrote",
    )
    sampling = parser.add_argument_group("sampling (what is not given comes from the model's generation_config.json)")
    for option in fields(SamplingParams):
        _add_field(sampling, option, default=None)
    engine = parser.add_argument_group("engine")
    add_engine(engine)
    engine.add_argument("--stats", action="store_true", help="print speeds, bytes read and peak memory to stderr")
    engine.add_argument(
        "--expert-stats",
        type=Path,
        metavar="OUT.JSON",
        help="write each layer's expert load, entropy and distinct experts per step, and a heat map beside it (.png)",
    )


def text(word: str) -> str:
    """Checks a text of the command line, for argparse: bytes that are no UTF-8 come as lone surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("is not UTF-8 text: convert it first") from None
    return word


def add_model(parser: Options) -> None:
    parser.add_argument(
        "-m",
        "--model",
        "--repo_id",
        dest="repo_id",
        metavar="ID_OR_FOLDER",
        help="a downloaded hub id, a folder, or tiny (default: the latest download, else tiny)",
    )


def add_engine(parser: Options, *names: str) -> None:
    """Adds a flag for each field of EngineConfig with a help text, or for the named ones."""
    for option in fields(EngineConfig):
        if "help" in option.metadata and (not names or option.name in names):
            _add_field(parser, option, default=option.default)


def _add_field(parser: Options, option: Field, default: Any) -> None:
    """Adds the flag of one field; a boolean is --NAME, or --no-NAME where the field is on or unset."""
    flag, kind = option.name.replace("_", "-"), _kind(option)
    settings = {"dest": option.name, "default": default, "help": option.metadata["help"]}
    names = (f"--{flag}", *_ALSO.get(option.name, ()))
    if kind is bool:
        off = option.default is not False
        parser.add_argument(f"--no-{flag}" if off else f"--{flag}", action="store_const", const=not off, **settings)
        return
    settings["metavar"] = option.metadata["metavar"]
    if default is not None:
        settings["help"] += f" (default: {default})"
    if kind is tuple:
        is_text = get_args(_unoptional(option))[0] is str
        parser.add_argument(
            *names, action="append" if is_text else "extend", type=text if is_text else _ids, **settings
        )
    elif issubclass(kind, Mapping):
        parser.add_argument(*names, action=_Merge, type=_biases, **settings)
    else:
        parser.add_argument(*names, type=kind, **settings)


def _unoptional(option: Field) -> Any:
    """The type of a field without its None."""
    if isinstance(option.type, UnionType):
        [kind] = [kind for kind in get_args(option.type) if kind is not type(None)]
        return kind
    return option.type


def _kind(option: Field) -> type:
    kind = _unoptional(option)
    return get_origin(kind) or kind


class _Merge(argparse.Action):
    """Puts the entries of several mappings together."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        before: Mapping = getattr(namespace, self.dest) or {}
        if twice := before.keys() & values.keys():
            raise argparse.ArgumentError(self, f"token id {min(twice)} is there twice")
        setattr(namespace, self.dest, {**before, **values})


def _ids(text: str) -> list[int]:
    """ "1,2" -> [1, 2], for argparse."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{brief(text)} is not a token id, or several with commas between them"
        ) from None


def _biases(text: str) -> dict[int, float]:
    """ "1=5,2=-100" -> {1: 5, 2: -100}, for argparse; a colon does as well."""
    try:
        pairs = [re.split("[=:]", part) for part in text.split(",")]
        found = {int(token_id): float(bias) for token_id, bias in pairs}
        if len(found) < len(pairs):
            raise ValueError("an id twice")
        return found
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{brief(text)} must be token ids with numbers, such as 1234=-100,7=5"
        ) from None


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of the flags that `add_engine` added, as arguments of LLM."""
    return {option.name: getattr(args, option.name) for option in fields(EngineConfig) if hasattr(args, option.name)}


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    given = {option.name: getattr(args, option.name) for option in fields(SamplingParams)}
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class PromptOptions:
    """How a prompt becomes token ids.

    raw: encode the text as it stands, without the chat template. system: a system message before the conversation.
    thinking: False asks the chat template for an answer without thinking.
    sanitize: the name of a control token in the prompt stays text.
    """

    raw: bool = False
    system: str | None = None
    thinking: bool = True
    sanitize: bool = False


def prompt_options(args: argparse.Namespace) -> PromptOptions:
    return PromptOptions(getattr(args, "raw", False), args.system, not args.no_thinking, args.sanitize_control_tokens)


def prompt_ids(
    llm: "LLM",
    options: PromptOptions,
    /,  # a template's variable may have these names
    *,
    prompt: str | None = None,
    messages: list[dict] | None = None,
    **rendering: Any,
) -> list[int]:
    """Returns the token ids of a prompt, or of the messages of a conversation.

    Messages need a chat template. A prompt is a conversation of one message, or text to be encoded as it stands with
    `raw` and for a model without a chat template. rendering: further arguments of LLM.render.
    """
    if prompt is not None and (options.raw or not llm.tokenizer.has_chat_template):
        if options.system is not None or not options.thinking or rendering:
            from ..load.resolve import model_name

            system = "a system text" if options.system is not None else None
            what = system or next(iter(rendering), "--no-thinking")
            why = "--raw was given" if options.raw else f"{model_name(llm.folder)} has none"
            raise Qwen3Error(f"{what} needs a chat template, and {why}")
        return llm.tokenizer.encode(prompt, sanitize_control_tokens=options.sanitize)
    conversation = (messages or []) if prompt is None else [{"role": "user", "content": prompt}]
    if options.system is not None:
        conversation = [{"role": "system", "content": options.system}, *conversation]
    if not options.thinking:
        rendering = {"enable_thinking": False} | rendering
    return llm.render(conversation, sanitize_control_tokens=options.sanitize, **rendering)
