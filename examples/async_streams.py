"""Many streams in one event loop, as a server has them: `python examples/async_streams.py [MODEL]`.

The engine runs in a thread of its own and answers all open streams in one batch. The event loop is never held up: a
heartbeat measures how late it wakes.
"""

import asyncio
import sys
import time

from qwen3 import LLM, SamplingParams

PROMPTS = ["def add(a, b):", "class Queue:", "import re\n", "for line in file:", "try:\n", "if not isinstance("]


async def answer(llm: LLM, number: int) -> str:
    params = SamplingParams(temperature=0.6, seed=number, max_new_tokens=40)
    return "".join([piece async for piece in llm.stream_async(PROMPTS[number], params)])


async def heartbeat(delays: list[float]) -> None:
    while True:
        asleep = time.perf_counter()
        await asyncio.sleep(0.01)
        delays.append(time.perf_counter() - asleep - 0.01)


async def main() -> None:
    llm, delays = LLM(sys.argv[1] if len(sys.argv) > 1 else "tiny"), list[float]()
    beat = asyncio.create_task(heartbeat(delays))
    texts = await asyncio.gather(*(answer(llm, number) for number in range(len(PROMPTS))))
    beat.cancel()
    for prompt, text in zip(PROMPTS, texts):
        print(f"{prompt!r} -> {text.splitlines()[:2]}")
    steps, tokens = llm.stats.decode.steps, llm.stats.decode.tokens
    print(f"{tokens} tokens in {steps} decode steps; the event loop woke at most {max(delays) * 1e3:.1f} ms late")


asyncio.run(main())
