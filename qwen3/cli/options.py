"""Options that several commands share, and the model, sampling parameters and prompts that they ask for."""

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from ..config.engine import EngineConfig
from ..config.model import dtype_name
from ..engine.params import SamplingParams
from ..errors import Qwen3Error
from ..llm import LLM
from ..measure.expert_load import check_expert_stats, write_expert_stats
from ..measure.memory import gigabytes, peak_bytes
from ..measure.roofline import copy_bandwidth, roofline_lines
from ..model.footprint import footprint

_SAMPLING = (
    ("--max-new-tokens", int, "tokens to generate at most"),
    ("--temperature", float, "0 is greedy; higher is more random"),
    ("--top-k", int, "sample among the K most likely tokens; 0 keeps all"),
    ("--top-p", float, "sample among the most likely tokens that hold this share of the probability"),
    ("--min-p", float, "leave out tokens less likely than this share of the most likely one"),
    ("--repetition-penalty", float, "above 1 makes tokens of prompt and answer less likely"),
    ("--presence-penalty", float, "taken off the score of every token of the answer"),
    ("--frequency-penalty", float, "taken off the score of a token for each time it is in the answer"),
    ("--seed", int, "the same seed gives the same text"),
)


class Options(Protocol):
    """What takes options: a parser or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> Any: ...


class Parser(argparse.ArgumentParser):
    """Argparse with errors of one line, like all others."""

    def error(self, message: str):
        self.exit(2, f"error: {message}: see `{self.prog} --help`\n")


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `generate` and `chat` share."""
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message, put before the conversation")
    parser.add_argument("--no-thinking", action="store_true", help="ask the chat template to leave out thinking")
    sampling = parser.add_argument_group("sampling (defaults: the model's generation_config.json, 256 new tokens)")
    for flag, kind, text in _SAMPLING:
        sampling.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=text)
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    engine = parser.add_argument_group("engine")
    add_engine(engine)
    engine.add_argument("--stats", action="store_true", help="print speeds, bytes read and peak memory to stderr")
    engine.add_argument(
        "--expert-stats",
        type=Path,
        metavar="OUT.JSON",
        help="write each layer's expert load, entropy and distinct experts per step, and a heat map beside it (.png)",
    )


def add_model(parser: Options) -> None:
    parser.add_argument(
        "--repo_id",
        "--repo-id",
        metavar="ID_OR_FOLDER",
        help="a downloaded hub id, a folder, or tiny (default: the latest download, else tiny)",
    )


def add_engine(parser: Options, *names: str) -> None:
    """Adds a flag for each field of EngineConfig with a help text, or for the named ones; a boolean is --no-NAME."""
    for option in fields(EngineConfig):
        if "help" not in option.metadata or (names and option.name not in names):
            continue
        flag, settings = option.name.replace("_", "-"), {"default": option.default, "help": option.metadata["help"]}
        if option.type in (bool, bool | None):
            parser.add_argument(f"--no-{flag}", dest=option.name, action="store_const", const=False, **settings)
        else:
            kind = next(kind for kind in (int, float, str) if option.type in (kind, kind | None))
            parser.add_argument(f"--{flag}", type=kind, metavar=option.metadata["metavar"], **settings)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the values of the flags that `add_engine` added, as arguments of LLM."""
    return {option.name: getattr(args, option.name) for option in fields(EngineConfig) if hasattr(args, option.name)}


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    names = [flag[2:].replace("-", "_") for flag, _, _ in _SAMPLING]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return SamplingParams(**given, stop=tuple(args.stop))


@dataclass(frozen=True)
class PromptOptions:
    """How a prompt becomes token ids.

    raw: encode the text as it stands, without the chat template. system: a system message before the conversation.
    thinking: False asks the chat template for an answer without thinking.
    """

    raw: bool = False
    system: str | None = None
    thinking: bool = True


def prompt_options(args: argparse.Namespace) -> PromptOptions:
    return PromptOptions(getattr(args, "raw", False), args.system, not args.no_thinking)


def prompt_ids(
    llm: LLM,
    options: PromptOptions,
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
            system = "a system text" if options.system is not None else None
            what = system or next(iter(rendering), "--no-thinking")
            why = "--raw was given" if options.raw else f"{llm.folder} has none"
            raise Qwen3Error(f"{what} needs a chat template, and {why}")
        return llm.tokenizer.encode(prompt)
    conversation = (messages or []) if prompt is None else [{"role": "user", "content": prompt}]
    if options.system is not None:
        conversation = [{"role": "system", "content": options.system}, *conversation]
    return llm.render(conversation, **({} if options.thinking else {"enable_thinking": False}) | rendering)


def size_text(llm: LLM) -> str:
    counted = footprint(llm.model)
    return f"{counted.parameters / 1e6:,.1f} M parameters ({counted.active / 1e6:,.1f} M active)"


def load_model(args: argparse.Namespace) -> LLM:
    """Loads the model that the options ask for, and says on stderr which it is and what it runs on."""
    if args.expert_stats:
        check_expert_stats(args.expert_stats)
    llm = LLM(
        args.repo_id,
        **engine_options(args),
        progress=sys.stderr.isatty(),
        expert_stats=args.stats or args.expert_stats is not None,
    )
    if args.expert_stats and llm.stats.experts is None:
        raise Qwen3Error(f"--expert-stats: {llm.folder} is a dense model and has no experts: leave it out")
    place = f"{llm.device} · {dtype_name(llm.dtype)} · {llm.backend}"
    print(f"{llm.folder} · {size_text(llm)} · {place}", file=sys.stderr)
    return llm


def print_statistics(args: argparse.Namespace, llm: LLM) -> None:
    """Writes what --expert-stats and --stats ask for, after the last answer."""
    if args.expert_stats and llm.stats.experts is not None:
        write_expert_stats(llm.stats.experts, args.expert_stats)
        print(f"expert statistics are in {args.expert_stats}", file=sys.stderr)
    if not args.stats:
        return
    kind = "reserved on the GPU" if llm.device.type == "cuda" else "resident"
    peak = f"peak memory: {gigabytes(peak_bytes(llm.device))} {kind}"
    print(f"time to first token: {llm.stats.first_token_seconds:.3f} s · {peak}", file=sys.stderr)
    for line in roofline_lines(llm.model, llm.stats, copy_bandwidth(llm.device)):
        print(line, file=sys.stderr)
