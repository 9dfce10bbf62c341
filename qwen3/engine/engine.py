"""One step after the other: schedule, run, commit. One thread at a time may call it (see loop.py)."""

import time
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from qwen3_kernels.ops import NO_TOKEN

from ..errors import Qwen3Error, one_line
from ..measure.stats import Stats
from .request import TokenLogprob
from .runner import ModelRunner, StepInputs
from .scheduler import Scheduled, Scheduler, Work
from .sequence import Sequence


class Sampled(NamedTuple):
    """A token that a step sampled; whether it is the last one is in sequence.finish_reason.

    NO_TOKEN where none could be: sequence.error says why.
    """

    sequence: Sequence
    token_id: int
    logprob: TokenLogprob | None


class StepFailed(Exception):
    """A step broke off. Its sequences have ended with finish_reason "error"; all others will be computed again."""

    def __init__(self, sequences: list[Sequence], cause: Exception) -> None:
        super().__init__(str(cause))
        self.sequences, self.cause = sequences, cause


def as_exception(error: BaseException) -> Exception:
    """Wraps errors such as SystemExit, which would end more than a request if raised in the caller's thread."""
    return error if isinstance(error, Exception) else RuntimeError(f"the engine broke off: {one_line(error)}")


class Predicted(NamedTuple):
    """The next step, prepared while the device works; used only if the scheduler then chooses exactly this one."""

    scheduled: Scheduled
    inputs: StepInputs


class Engine:
    """A scheduler and a runner, step by step."""

    def __init__(self, scheduler: Scheduler, runner: ModelRunner, stats: Stats) -> None:
        self.scheduler, self.runner, self.stats = scheduler, runner, stats
        self._predicted: Predicted | None = None

    def step(self) -> list[Sampled]:
        """Runs one step of everything that runs and returns what it sampled; nothing when nothing is queued.

        Raises StepFailed for any error or interrupt, after which the engine goes on.
        """
        scheduled = None
        try:
            scheduled = self.scheduler.schedule()
            if not scheduled:
                return []
            with self._device():
                return self._run(scheduled)
        except BaseException as error:
            # If the scheduler itself failed, the sequences of the step are unknown.
            failed = list(self.scheduler.live) if scheduled is None else [item.sequence for item in scheduled.work]
            self.recover()
            for sequence in failed:
                self.scheduler.finish(sequence, "error")
            if scheduled is not None and isinstance(error, torch.OutOfMemoryError):
                advice = "lower max_num_batched_tokens, max_num_seqs or memory_utilization"
                message = f"out of memory: a step of {scheduled.num_tokens} tokens did not fit: {advice}"
                raise StepFailed(failed, Qwen3Error(message)) from error
            raise StepFailed(failed, as_exception(error)) from error

    def recover(self) -> None:
        """Computes everything that is queued again, after an error or interrupt anywhere."""
        self._predicted = None
        self.scheduler.recover()

    def abandon(self) -> None:
        """Ends everything that is queued, after an error or interrupt anywhere."""
        self.recover()
        for sequence in list(self.scheduler.live):
            self.scheduler.finish(sequence, "error")

    @torch.inference_mode()
    def logits(self, sequence: Sequence) -> Tensor:
        """float32 [len(token_ids), V]: the scores after every token, in chunks of max_num_batched_tokens."""
        scheduler, length = self.scheduler, len(sequence.token_ids)
        scheduler.check(length)
        chunk, rows = scheduler.max_num_batched_tokens, []
        try:
            if not scheduler.reserve(sequence):
                raise Qwen3Error(
                    f"the KV cache has no room for {length} tokens now: wait until other requests have ended"
                )
            with self._device():
                for start in range(0, length, chunk):
                    work = Work(sequence, start, min(chunk, length - start), samples=False)
                    rows.append(self.runner.logits(Scheduled((work,))))
        finally:
            scheduler.finish(sequence, "stop")
        return torch.cat(rows)

    @torch.inference_mode()
    def _run(self, scheduled: Scheduled) -> list[Sampled]:
        started = time.perf_counter()
        predicted, self._predicted = self._predicted, None
        if predicted is not None and predicted.scheduled == scheduled:
            inputs = predicted.inputs
        else:
            inputs = self.runner.prepare(scheduled)
        output = self.runner.run(scheduled, inputs, keep_routing=self.stats.experts is not None)
        if output.token_ids is None:
            token_ids: list[int] = []
        else:
            self._predicted = self._predict(scheduled, output.token_ids)
            token_ids = output.token_ids.tolist()  # waits for the device
        self.stats.count(
            scheduled.is_decode,
            tokens=scheduled.num_tokens,
            context_tokens=scheduled.context_tokens,
            seconds=time.perf_counter() - started,
            routing=output.routing,
        )
        sampler, sequences = self.runner.sampler, [item.sequence for item in scheduled.sampling]
        logprobs = sampler.logprobs(output.logits, sequences, token_ids)
        missing = [i for i, token in enumerate(token_ids) if token == NO_TOKEN]
        errors = {i: sampler.error(output.logits[i], sequences[i]) for i in missing}
        sampled = self.scheduler.commit(scheduled, token_ids, logprobs, errors)
        for sequence in sampled:
            if len(sequence.token_times) == 1 and sequence.error is None:
                self.stats.first_token_seconds = sequence.token_times[0] - sequence.submitted
        return [Sampled(*row) for row in zip(sampled, token_ids, logprobs)]

    def _predict(self, scheduled: Scheduled, token_ids: Tensor) -> Predicted | None:
        """Prepares the inputs of the predicted next step; token_ids [S] may still be computed by the device."""
        following = self.scheduler.predict(scheduled)
        return None if following is None else Predicted(following, self.runner.prepare(following, token_ids))

    def _device(self) -> torch.cuda.device | nullcontext:
        """Makes the model's GPU the current one, for kernels launched in this thread."""
        device = self.runner.model.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
