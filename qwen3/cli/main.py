"""The command line: download, generate, chat, bench, info. Text goes to stdout, everything else to stderr."""

import argparse
import os
import sys
from pathlib import Path

from .. import __version__
from ..config.model import DTYPES
from ..errors import Qwen3Error
from ..measure.expert_load import check_expert_stats, write_expert_stats
from ..llm import LLM
from ..load.hub import download
from ..measure.memory import gigabytes, peak_bytes
from ..measure.roofline import copy_bandwidth, roofline_lines
from ..engine.params import SamplingParams
from . import bench
from .chat import answer, converse
from .info import describe
from .jsonl import answer_lines, read_lines, whole_or_nothing

_SAMPLING = (
    ("--max-new-tokens", int, "tokens to generate at most"),
    ("--temperature", float, "0 is greedy; higher is more random"),
    ("--top-k", int, "draw among the K most likely tokens; 0 keeps all"),
    ("--top-p", float, "draw among the most likely tokens that hold this share of the probability"),
    ("--min-p", float, "leave out tokens less likely than this share of the most likely one"),
    ("--repetition-penalty", float, "above 1 makes tokens of prompt and answer less likely"),
    ("--presence-penalty", float, "taken off the score of every token of the answer"),
    ("--frequency-penalty", float, "taken off the score of a token for each time it is in the answer"),
    ("--seed", int, "the same seed draws the same text"),
)


class Parser(argparse.ArgumentParser):
    """Argparse whose errors are one line, like all others."""

    def error(self, message: str):
        self.exit(2, f"error: {message}: see `{self.prog} --help`\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 2 for what the user can mend, 130 for Ctrl-C."""
    args = _parser().parse_args(arguments)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except Qwen3Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Nobody reads any more; the interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="qwen3", description="Run Qwen3 models, mixture of experts and dense.")
    parser.add_argument("--version", action="version", version=f"qwen3-triton {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sub = commands.add_parser("download", help="fetch a model from the hub into models/, or resume fetching it")
    sub.add_argument("--repo_id", "--repo-id", required=True, metavar="ID", help="such as Qwen/Qwen3-30B-A3B")
    sub.add_argument("--revision", help="branch, tag or commit (default: main)")
    sub.add_argument("--token", help="access token of the hub (default: the environment's HF_TOKEN)")
    sub.set_defaults(run=_download)

    sub = commands.add_parser("generate", help="answer a prompt, or every prompt of a JSONL file")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="the prompt")
    what.add_argument(
        "--prompts-file",
        type=Path,
        metavar="IN.JSONL",
        help='one JSON object a line: {"prompt": TEXT} or {"messages": [...]}, with any of "id", "max_new_tokens", '
        '"temperature", "top_k", "top_p", "min_p", "seed", "stop", ...',
    )
    sub.add_argument("--output", type=Path, metavar="OUT.JSONL", help="answers to --prompts-file (default: stdout)")
    sub.add_argument("--raw", action="store_true", help="continue the prompt as it stands, without the chat template")
    _add_common(sub)
    sub.set_defaults(run=_generate)

    sub = commands.add_parser("chat", help="talk with a model: /reset, /system TEXT, /exit")
    _add_common(sub)
    sub.set_defaults(run=_chat)

    sub = commands.add_parser("bench", help="prefill and decode speed of a model on this device")
    bench.add_arguments(sub)
    sub.set_defaults(run=bench.run)

    sub = commands.add_parser("info", help="size and memory needs of a model, without loading it")
    sub.add_argument("model", nargs="?", metavar="MODEL", help="a folder, a downloaded hub id, or tiny")
    sub.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    sub.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="dtype to hold the weights in")
    sub.set_defaults(run=_info)
    return parser


def _add_common(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--repo_id",
        "--repo-id",
        metavar="ID_OR_FOLDER",
        help="a downloaded hub id, a folder, or tiny (default: the latest download, else tiny)",
    )
    sub.add_argument("--system", metavar="TEXT", help="system message, put before the conversation")
    sub.add_argument("--no-thinking", action="store_true", help="ask the chat template for an answer without thinking")
    sampling = sub.add_argument_group("sampling (defaults: the model's generation_config.json, 256 new tokens)")
    for flag, kind, text in _SAMPLING:
        sampling.add_argument(flag, type=kind, metavar="N" if kind is int else "X", help=text)
    sampling.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    engine = sub.add_argument_group("engine")
    engine.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    engine.add_argument("--dtype", default="auto", choices=("auto", *DTYPES), help="auto is the checkpoint's own")
    engine.add_argument("--backend", default="auto", choices=("auto", "reference", "triton"))
    engine.add_argument("--max-model-len", type=int, metavar="N", help="longest context in tokens")
    engine.add_argument("--no-kv-cache", action="store_true", help="recompute everything for each token, to compare")
    engine.add_argument("--no-prefix-caching", action="store_true", help="share nothing between texts that begin alike")
    engine.add_argument("--no-cuda-graphs", action="store_true", help="launch every kernel of a decode step by itself")
    engine.add_argument("--stats", action="store_true", help="print speeds, bytes read and peak memory to stderr")
    engine.add_argument(
        "--expert-stats",
        type=Path,
        metavar="OUT.JSON",
        help="write each layer's expert load, entropy and distinct experts per step, and a heat map beside it (.png)",
    )


def _download(args: argparse.Namespace) -> int:
    folder = download(args.repo_id, revision=args.revision, token=args.token)
    print(f"{args.repo_id} is in {folder}", file=sys.stderr)
    return 0


def _generate(args: argparse.Namespace) -> int:
    if args.output and not args.prompts_file:
        raise Qwen3Error("--output goes with --prompts-file: a single answer is printed")
    if args.prompt is not None and not args.prompt:
        raise Qwen3Error("--prompt is empty: give some text")
    params = _sampling_params(args)
    options = {"raw": args.raw, "system": args.system, "thinking": not args.no_thinking}
    code = 0
    if args.prompts_file:
        lines = read_lines(args.prompts_file)
        # The output is opened before the model is loaded: minutes may lie between.
        with whole_or_nothing(args.output) as write:
            llm = _load(args)
            code = answer_lines(llm, lines, write, params, options, str(args.prompts_file))
    else:
        llm = _load(args)
        for piece in answer(llm, args.prompt, params, options):
            print(piece, end="", flush=True)
        print()
    _print_stats(args, llm)
    return code


def _chat(args: argparse.Namespace) -> int:
    params = _sampling_params(args)
    llm = _load(args)
    code = converse(llm, params, args.system, {"enable_thinking": False} if args.no_thinking else {})
    _print_stats(args, llm)
    return code


def _info(args: argparse.Namespace) -> int:
    print(describe(args.model, args.device, args.dtype))
    return 0


def _sampling_params(args: argparse.Namespace) -> SamplingParams:
    names = [flag[2:].replace("-", "_") for flag, _, _ in _SAMPLING]
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return SamplingParams(**given, stop=tuple(args.stop))


def _load(args: argparse.Namespace) -> LLM:
    if args.expert_stats:
        check_expert_stats(args.expert_stats)
    llm = LLM(
        args.repo_id,
        device=args.device,
        dtype=args.dtype,
        backend=args.backend,
        max_model_len=args.max_model_len,
        kv_cache=not args.no_kv_cache,
        prefix_caching=False if args.no_prefix_caching else None,
        cuda_graphs=False if args.no_cuda_graphs else None,
        progress=sys.stderr.isatty(),
        expert_stats=args.stats or args.expert_stats is not None,
    )
    if args.expert_stats and llm.stats.experts is None:
        raise Qwen3Error(f"--expert-stats: {llm.folder} is a dense model and has no experts: leave it out")
    total, active = llm.config.parameters()
    size = f"{total / 1e6:,.1f} M parameters ({active / 1e6:,.1f} M active)"
    print(f"{llm.folder} · {size} · {llm.device} · {str(llm.dtype)[6:]} · {llm.backend}", file=sys.stderr)
    return llm


def _print_stats(args: argparse.Namespace, llm: LLM) -> None:
    if args.expert_stats:
        write_expert_stats(llm.stats.experts, args.expert_stats)
        print(f"expert statistics are in {args.expert_stats}", file=sys.stderr)
    if not args.stats:
        return
    kind = "reserved on the GPU" if llm.device.type == "cuda" else "resident"
    peak = f"peak memory: {gigabytes(peak_bytes(llm.device))} {kind}"
    print(f"time to first token: {llm.stats.first_token_seconds:.3f} s · {peak}", file=sys.stderr)
    for line in roofline_lines(llm.config, llm.dtype, llm.stats, copy_bandwidth(llm.device)):
        print(line, file=sys.stderr)
