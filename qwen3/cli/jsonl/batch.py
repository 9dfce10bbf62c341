"""Answers a prompts file: all its lines together, each record the moment it is ready."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tqdm import tqdm

from ...engine.loop import Request
from ...engine.params import SamplingParams
from ...errors import brief, counted
from ...llm import LLM
from ...load.contents import refuse_file_of_model
from ...load.resolve import model_name, resolve
from ..model import load_model, print_statistics
from ..options import PromptOptions
from ..streams import say
from .interrupts import Interrupts
from .lines import Line, joined, read_lines
from .output import File, Stream, open_output
from .request import answer, model_names, prepare


def answer_file(args: argparse.Namespace, params: SamplingParams, options: PromptOptions) -> int:
    """Answers --prompts-file into --output; returns the exit code: 2 if a line was bad, 141 if the reader has gone.

    A record holds what its line said of itself and of its prompt, "text", "finish_reason", "prompt_tokens" and
    "generated_tokens"; for a bad line, which is also reported on stderr, "line" and "error".
    """
    lines = read_lines(args.prompts_file)
    folder = resolve(args.repo_id)
    if args.output not in (None, "", "-"):
        refuse_file_of_model(os.path.expanduser(args.output), folder, "--output")
    settings = {"model": str(folder.absolute()), **asdict(params), **asdict(options)}
    try:
        with Interrupts() as interrupts:
            # Opened before the model is loaded: minutes may lie between.
            output = open_output(args.output, args.prompts_file, lines, settings, args.resume)
            with _breaking_off(output, interrupts):
                return _Batch(args, params, options, lines, output, interrupts).run()
    except BrokenPipeError:
        return 141


@dataclass
class _Batch:
    args: argparse.Namespace
    params: SamplingParams
    options: PromptOptions
    lines: list[Line]
    output: File | Stream
    interrupts: Interrupts
    failed: int = 0

    @property
    def source(self) -> str:
        return "stdin" if self.args.prompts_file == "-" else self.args.prompts_file

    def run(self) -> int:
        if self.output.taken:
            say(f"{len(self.output.taken)} of {len(self.lines)} answers are there already")
        if self.output.left_out:
            say(f"{counted(self.output.left_out, 'answer')} to lines that are no longer in {self.source}: left out")
        if len(self.output.taken) == len(self.lines):
            self.output.finish(self.interrupts)
            return 0
        llm = load_model(self.args, chats=False)
        self._answer(llm, self._prepare(llm))
        self.output.finish(self.interrupts)
        print_statistics(self.args, llm)
        return 2 if self.failed else 0

    def _prepare(self, llm: LLM) -> list[tuple[int, str, Request]]:
        """Returns the index, the beginning of the record and the request of every line that is to be answered."""
        prepared, others = [], set()
        for i, line in enumerate(self.lines):
            if i in self.output.taken:
                continue
            kept, model, request = prepare(llm, line.data, self.params, self.options)
            if isinstance(request, str):
                self._put(i, kept, {"line": line.number, "error": request})
                continue
            prepared.append((i, kept, request))
            if model is not None and model not in model_names(llm, self.args.repo_id):
                others.add(model)
        for model in sorted(others)[:3]:
            say(f"lines ask for the model {brief(model)}: {model_name(llm.folder)} answers them")
        return prepared

    def _answer(self, llm: LLM, prepared: list[tuple[int, str, Request]]) -> None:
        answers = llm.complete([request for _, _, request in prepared])
        shows_progress = sys.stderr is not None and sys.stderr.isatty()
        for place, done in tqdm(answers, total=len(prepared), desc="prompts", disable=not shows_progress):
            i, kept, _ = prepared[place]
            self._put(i, kept, answer(llm, done))

    def _put(self, i: int, kept: str, values: dict[str, Any]) -> None:
        error = values.get("error")
        if error is not None:
            self.failed += 1
            say(f"error: {self.source} line {self.lines[i].number}: {error}")
        record = joined(kept, values)
        with self.interrupts.held():
            self.output.put(i, record, answered=error is None)


@contextmanager
def _breaking_off(output: File | Stream, interrupts: Interrupts) -> Iterator[None]:
    """Reports where the answers are if a batch breaks off."""
    try:
        yield
    except BaseException as error:
        said = output.break_off(interrupts)
        # Programs end silently where their reader has gone.
        if said and not isinstance(error, BrokenPipeError):
            say(said)
        raise
