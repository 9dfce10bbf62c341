"""JSONL in, JSONL out: many prompts answered together, records in the same order."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

from ..engine.loop import Request
from ..engine.params import SamplingParams
from ..errors import Qwen3Error
from ..llm import LLM
from .options import PromptOptions, prompt_ids

_PARAMETERS = {f.name for f in fields(SamplingParams)} - {"logprobs"}


def read_lines(source: Path) -> list[tuple[int, str]]:
    """Returns the non-blank lines of a file, each with its number from 1 on."""
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Qwen3Error(f"{source}: cannot be read ({error})") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise Qwen3Error(f"{source}: no prompts in it")
    return lines


def answer_lines(
    llm: LLM,
    lines: list[tuple[int, str]],
    write: Callable[[str], object],
    params: SamplingParams,
    options: PromptOptions,
    source: str,
) -> int:
    """Answers all lines together and writes a record for each; returns 0, or 2 if a line was bad.

    A record holds "id", "prompt" and "messages" as they were given, "text", "finish_reason", "prompt_tokens" and
    "generated_tokens"; for a bad line, which is also reported on stderr, "line" and "error".
    """
    records: list[dict] = []
    answered, requests = [], []
    for number, line in lines:
        try:
            record, request = _prepare(llm, line, params, options)
            answered.append(record)
            requests.append(request)
        except Qwen3Error as error:
            record = {"line": number, "error": str(error)}
            print(f"error: {source} line {number}: {error}", file=sys.stderr)
        records.append(record)
    answers = llm.complete(requests)
    for i, done in tqdm(answers, total=len(requests), desc="prompts", disable=not sys.stderr.isatty()):
        answered[i] |= {
            "text": done.text,
            "finish_reason": done.finish_reason,
            "prompt_tokens": done.metrics.prompt_tokens,
            "generated_tokens": done.metrics.generated_tokens,
        }
    for record in records:
        write(json.dumps(record, ensure_ascii=False) + "\n")
    return 2 if len(requests) < len(records) else 0


def _prepare(llm: LLM, line: str, params: SamplingParams, options: PromptOptions) -> tuple[dict, Request]:
    """Returns the start of a line's record, and its request."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise Qwen3Error(f"not JSON ({error})") from None
    if not isinstance(values, dict):
        raise Qwen3Error("not a JSON object")
    kept = {key: values[key] for key in ("id", "prompt", "messages") if key in values}
    unknown = values.keys() - kept.keys() - _PARAMETERS
    if unknown:
        raise Qwen3Error(f"unknown field {min(unknown)!r}")
    own = replace(params, **{key: values[key] for key in values.keys() & _PARAMETERS})
    if ("prompt" in values) == ("messages" in values):
        raise Qwen3Error('either "prompt" or "messages" is needed')
    if "prompt" in values:
        if not isinstance(values["prompt"], str) or not values["prompt"]:
            raise Qwen3Error('"prompt" must be text that is not empty')
    elif options.raw or options.system is not None:
        raise Qwen3Error('"messages" go through the chat template as they are: --raw and --system do not apply')
    ids = prompt_ids(llm, options, prompt=values.get("prompt"), messages=values.get("messages"))
    return kept, llm.prepare(ids, own)


@contextmanager
def whole_or_nothing(path: Path | None) -> Iterator[Callable[[str], object]]:
    """Gives a function that writes text to `path` (None: stdout); the file appears only after a clean end."""
    if path is None:
        yield sys.stdout.write
        return
    if path.is_dir():
        raise Qwen3Error(f"{path}: is a folder: name a file in it")
    part = path.with_name(path.name + ".part")
    try:
        file = part.open("w", encoding="utf-8")
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be written ({error.strerror})") from None
    try:
        with file:
            yield file.write
        part.replace(path)
    except OSError as error:
        raise Qwen3Error(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)
