"""Shows that a batch does not change an answer: `python examples/batch_invariance.py [MODEL]`.

In float32 the greedy tokens of a prompt are the same alone and among other prompts, whatever the batch and however its
steps are cut. Needs a model that fits in memory in float32.
"""

import sys

from qwen3 import LLM, SamplingParams

MODEL = sys.argv[1] if len(sys.argv) > 1 else "tiny"
params = SamplingParams(temperature=0, max_new_tokens=48, ignore_eos=True)
prompts = ["def fibonacci(n):", "import os\nimport sys\n\n", "class Stack:\n    def push(self, item):", "x = ["]

# Every prompt alone, each in an engine step of its own.
llm = LLM(MODEL, dtype="float32", max_model_len=512)
alone = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]

# All at once, in steps of at most 7 tokens: prompts are cut into chunks that run beside other sequences' decodes.
llm = LLM(MODEL, dtype="float32", max_model_len=512, max_num_batched_tokens=7)
together = [answer.token_ids for answer in llm.generate(prompts, params)]

for prompt, one, other in zip(prompts, alone, together):
    same = sum(a == b for a, b in zip(one, other))
    print(f"{prompt!r}: {same} of {len(one)} tokens are the same alone and in the batch")
sys.exit(0 if alone == together else "the batch changed an answer")
