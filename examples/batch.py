"""Answers several prompts in one batch, each with its own parameters and seed: `python examples/batch.py [MODEL]`."""

import sys

from qwen3 import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "tiny")
requests = {
    "greedy": ("import os\n", SamplingParams(temperature=0, max_new_tokens=12)),
    "seed 1": ("class Stack:", SamplingParams(temperature=0.8, seed=1, max_new_tokens=12)),
    "seed 2": ("class Stack:", SamplingParams(temperature=0.8, seed=2, max_new_tokens=12)),
    "seed 1 again": ("class Stack:", SamplingParams(temperature=0.8, seed=1, max_new_tokens=12)),
    "until a colon": ("for key in", SamplingParams(temperature=0, stop=(":",), max_new_tokens=24)),
    "log-probabilities": ("return", SamplingParams(temperature=0, logprobs=3, max_new_tokens=4)),
}

# All of them run together; the answers come back in the order of the prompts.
prompts, params = zip(*requests.values())
answers = llm.generate(list(prompts), list(params))

for name, prompt, answer in zip(requests, prompts, answers):
    seconds = answer.metrics.time_to_first_token
    print(f"{name}: {prompt!r} -> {answer.text!r} ({answer.finish_reason}, first token after {seconds * 1e3:.0f} ms)")
    if answer.logprobs is not None:
        likely = ", ".join(f"{llm.tokenizer.decode([token])!r} {value:.2f}" for token, value in answer.logprobs[0].top)
        print(f"  the most likely first tokens: {likely}")
