"""Loads the model of a command, and describes it on stderr."""

import argparse
import sys
from pathlib import Path

from ..config.model import dtype_name
from ..errors import Qwen3Error
from ..llm import LLM
from ..load.contents import refuse_file_of_model
from ..load.resolve import TINY, model_name, resolve
from ..measure.expert_load import check_expert_stats, write_expert_stats
from ..measure.memory import gigabytes, peak_bytes
from ..measure.roofline import copy_bandwidth, roofline_lines
from ..model.footprint import footprint
from ..text.tokenizer import Tokenizer
from .options import engine_options
from .streams import say


def size_text(llm: LLM) -> str:
    counted = footprint(llm.model)
    return f"{counted.parameters / 1e6:,.1f} M parameters ({counted.active / 1e6:,.1f} M active)"


def load_model(args: argparse.Namespace, chats: bool) -> LLM:
    """Loads the model that the options ask for, and says on stderr which it is and what it runs on.

    chats: require a chat template. It is checked before the weights are read.
    """
    if args.expert_stats:
        check_expert_stats(args.expert_stats)
    folder = resolve(args.repo_id)
    if args.expert_stats:
        refuse_file_of_model(args.expert_stats, folder, "--expert-stats")
    if chats or args.no_thinking:
        require_template(folder, chats, args.no_thinking)
    llm = LLM(
        folder,
        **engine_options(args),
        progress=sys.stderr.isatty(),
        expert_stats=args.stats or args.expert_stats is not None,
    )
    if args.expert_stats and llm.stats.experts is None:
        raise Qwen3Error(f"--expert-stats: {model_name(llm.folder)} is a dense model and has no experts: leave it out")
    place = f"{llm.device} · {dtype_name(llm.dtype)} · {llm.backend} backend"
    say(f"{model_name(llm.folder)} · {size_text(llm)} · {place}")
    return llm


def require_template(folder: Path, chats: bool, no_thinking: bool) -> None:
    """Raises Qwen3Error unless the model's chat template is there, and can leave out thinking where it is asked to."""
    tokenizer = Tokenizer.from_folder(folder)
    if not tokenizer.has_chat_template:
        if not chats:
            raise Qwen3Error(f"--no-thinking needs a chat template, and {model_name(folder)} has none: leave it out")
        advice = "use `qwen3 generate`, or a model that can chat"
        if folder == TINY:
            advice = "`qwen3 download Qwen/Qwen3-0.6B` fetches one that can (1.5 GB)"
        raise Qwen3Error(f"{model_name(folder)} has no chat template, so it cannot chat: {advice}")
    if no_thinking:
        probe = [{"role": "user", "content": "?"}]
        if tokenizer.apply_chat_template(probe) == tokenizer.apply_chat_template(probe, enable_thinking=False):
            raise Qwen3Error(
                f"--no-thinking: the chat template of {model_name(folder)} has no switch for thinking: leave it out"
            )


def print_statistics(args: argparse.Namespace, llm: LLM) -> None:
    """Writes what --expert-stats and --stats ask for, after the last answer."""
    if args.expert_stats and llm.stats.experts is not None:
        write_expert_stats(llm.stats.experts, args.expert_stats)
        say(f"expert statistics are in {args.expert_stats}")
    if not args.stats:
        return
    kind = "reserved on the GPU" if llm.device.type == "cuda" else "resident"
    peak = f"peak memory: {gigabytes(peak_bytes(llm.device))} {kind}"
    say(f"time to first token: {llm.stats.first_token_seconds:.3f} s · {peak}")
    for line in roofline_lines(llm.model, llm.stats, copy_bandwidth(llm.device)):
        say(line)
