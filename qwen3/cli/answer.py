"""Reports one answer on stderr, after its text."""

import logging

from ..engine.params import SamplingParams
from ..engine.request import Completion
from ..errors import brief, counted
from ..llm import LLM
from .streams import say

log = logging.getLogger("qwen3")


def report(llm: LLM, done: Completion | None, params: SamplingParams) -> None:
    """Prints whether an answer was cut, the requested log-probabilities, and with -v the speed.

    done: None is an answer that was broken off.
    """
    if done is None:
        return

    def token(token_id: int) -> str:
        return f"{token_id} {brief(llm.tokenizer.decode([token_id]))}"

    for entry in done.logprobs or ():
        others = "  ".join(f"{logprob:.4f} {token(i)}" for i, logprob in entry.top)
        say(f"{entry.logprob:9.4f} {token(entry.token_id)}{'  of  ' * bool(others)}{others}")
    count, metrics = len(done.token_ids), done.metrics
    if done.finish_reason == "length":
        say(f"stopped after {counted(count, 'token')}, before the end of the answer: {_limit(llm, done, params)}")
    seconds = metrics.total_seconds - metrics.time_to_first_token
    speed = f", then {(count - 1) / seconds:,.1f} tokens/s" if count > 1 and seconds > 0 else ""
    first = f"the first token after {metrics.time_to_first_token:.2f} s{speed}"
    log.info("%d tokens of prompt, %d of answer; %s", metrics.prompt_tokens, count, first)


def _limit(llm: LLM, done: Completion, params: SamplingParams) -> str:
    """Says what cut an answer, and what would make it longer."""
    count, total = len(done.token_ids), len(done.prompt_token_ids) + len(done.token_ids)
    if count == params.max_new_tokens:
        return "--max-new-tokens allows no more"
    if total >= llm.max_model_len:
        longest = llm.config.max_context
        more = f", --max-model-len can be up to {longest:,}" if total < longest else ""
        return f"the context of {total:,} tokens is full{more}"
    if count == llm.defaults.max_new_tokens or total == llm.defaults.max_length:
        return "the model's generation_config.json allows no more, --max-new-tokens does"
    return f"the KV cache of {llm.kv_cache_tokens:,} tokens is full"
