"""A request's tokens are the same alone, in any batch, chunking, with a prefix hit, preempted, recorded or not."""

import asyncio
import itertools
import threading

import pytest
import torch

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.engine.graphs import DecodeGraphs

from ..conftest import eager_recorder, write_checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIGS = {
    "top-4 of 16, groups of 4, YaRN": {
        "num_experts": 16, "num_experts_per_tok": 4, "num_attention_heads": 8, "num_hidden_layers": 2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64
        },
    },
    "dense and sparse layers, tied": {"mlp_only_layers": [1], "tie_word_embeddings": True, "norm_topk_prob": False},
}  # fmt: skip
GREEDY = SamplingParams(max_new_tokens=20, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_new_tokens=20, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)


def requests(vocab=300):
    """Nine prompts: 1 to 50 tokens, five of which begin with the same 33."""
    generator = torch.Generator().manual_seed(8)
    shared = torch.randint(vocab, (33,), generator=generator).tolist()
    lengths = [1, 5, 16, 17] + [2, 3, 8, 12, 17]
    own = [torch.randint(vocab, (n,), generator=generator).tolist() for n in lengths]
    return own[:4] + [shared + tokens for tokens in own[4:]]


@pytest.fixture(scope="module", params=[pytest.param("tiny", marks=pytest.mark.slow), *CONFIGS])
def folder(request, tmp_path_factory):
    if request.param == "tiny":
        return "tiny"
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, **CONFIGS[request.param])
    return path


def load(folder, **options):
    return LLM(folder, device=DEVICE, dtype="float32", backend="cpu", max_model_len=128, **options)


@pytest.fixture(scope="module")
def alone(folder):
    llm = load(folder, prefix_caching=False)
    each = [llm.generate([prompt], params)[0].token_ids for prompt in requests() for params in (GREEDY, SEEDED)]
    assert len({tuple(tokens) for tokens in each}) > 10, "the prompts must not all give the same"
    return each


def together(llm):
    prompts = [prompt for prompt in requests() for _ in range(2)]
    return llm.generate(prompts, [GREEDY, SEEDED] * len(requests()))


def tokens(completions):
    return [completion.token_ids for completion in completions]


VARIANTS = {
    "one batch": {},
    "chunks of 13": {"max_num_batched_tokens": 13},
    "three at once": {"max_num_seqs": 3},
    "without prefix reuse": {"prefix_caching": False},
    "small blocks": {"kv_block_size": 2},
    "chunks, small blocks, five at once": {"max_num_batched_tokens": 9, "kv_block_size": 4, "max_num_seqs": 5},
}


@pytest.mark.parametrize(
    "recorded", [pytest.param(False, marks=pytest.mark.slow), True], ids=["step by step", "recorded"]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_chunks_blocks_prefixes(folder, alone, variant, recorded):
    llm = load(folder, graph_recorder=eager_recorder if recorded else None, **VARIANTS[variant])
    done = together(llm)
    assert tokens(done) == alone
    hits = sum(completion.metrics.cached_prompt_tokens for completion in done)
    assert (hits > 0) == (variant != "without prefix reuse")
    assert not recorded or llm.engine.runner.graphs._recorded
    # Once more, now that every prefix is in the cache.
    assert tokens(together(llm)) == alone


@pytest.mark.parametrize("recorded", [False, True], ids=["step by step", "recorded"])
def test_preemption(folder, alone, recorded):
    """A pool of nine blocks of 16: no more than three of the long requests fit together."""
    llm = load(folder, graph_recorder=eager_recorder if recorded else None, num_kv_blocks=9)
    done = together(llm)
    assert sum(completion.metrics.preemptions for completion in done) > 0
    assert tokens(done) == alone
    assert idle(llm)


def test_streams_that_are_read_in_turn(folder, alone):
    llm = load(folder)
    expected = [completion.text for completion in llm.generate(requests(), GREEDY)]
    streams = [llm.stream(prompt, GREEDY) for prompt in requests()]
    assert ["".join(column) for column in zip(*itertools.zip_longest(*streams, fillvalue=""))] == expected
    assert idle(llm)


def test_open_streams_run_in_one_batch(folder, alone, monkeypatch):
    """All nine wait while the first one's first step is held up; then 19 steps are enough for all."""
    llm, texts, entered, all_wait = load(folder), {}, threading.Event(), threading.Event()
    expected = [completion.text for completion in llm.generate(requests(), GREEDY)]
    before, layer = llm.stats.decode.steps, llm.model.layers[0]
    forward = layer.forward

    def held(*arguments):
        entered.set()
        assert all_wait.wait(60)
        return forward(*arguments)

    monkeypatch.setattr(layer, "forward", held)
    threads = [
        threading.Thread(target=lambda i=i, prompt=prompt: texts.update({i: "".join(llm.stream(prompt, GREEDY))}))
        for i, prompt in enumerate(requests())
    ]
    for thread in threads:
        thread.start()
    assert entered.wait(60)
    while len(llm.loop._handles) + llm.loop._inbox.qsize() < len(threads):
        pass
    all_wait.set()
    for thread in threads:
        thread.join(60)
    assert [texts[i] for i in range(len(threads))] == expected
    assert llm.stats.decode.steps - before <= 20, "each stream alone would take 19 steps"


def test_async_streams(folder, alone):
    llm = load(folder)
    expected = [completion.text for completion in llm.generate(requests(), GREEDY)]

    async def collect(prompt):
        return "".join([piece async for piece in llm.stream_async(prompt, GREEDY)])

    async def all_of_them():
        return await asyncio.gather(*(collect(prompt) for prompt in requests()))

    for _ in range(2):  # two event loops, one after the other
        assert asyncio.run(all_of_them()) == expected
    assert idle(llm)


@pytest.fixture(scope="module")
def llm(small):
    return LLM(small, device="cpu", dtype="float32")


def idle(llm):
    """Whether nothing runs and all blocks are free, once the engine has read its inbox."""
    scheduler = llm.engine.scheduler
    return llm.loop.call(lambda: scheduler.idle and scheduler.pool.num_free == scheduler.pool.num_blocks)


def test_a_stream_that_is_closed_gives_back_its_blocks(llm):
    endless = SamplingParams(max_new_tokens=200, temperature=0, ignore_eos=True)
    stream = llm.stream("hello world", endless)
    next(stream)
    assert not idle(llm)
    stream.close()
    assert idle(llm) and len(llm.generate("another", GREEDY)[0].token_ids) == 20


def test_an_async_task_that_is_cancelled_gives_back_its_blocks(llm):
    async def read(prompt, pieces):
        async for piece in llm.stream_async(prompt, SamplingParams(max_new_tokens=200, temperature=0)):
            pieces.append(piece)

    async def main():
        seen = []
        task = asyncio.create_task(read("hello", seen))
        while len(seen) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert idle(llm)
        return len(seen)

    assert 3 <= asyncio.run(main()) < 200


def test_a_failed_step_ends_its_requests_and_no_others(llm, monkeypatch):
    """What such a step has written is unknown: the next ones find none of it."""
    prompts = ["a prompt that fills two blocks of sixteen tokens", "hello world, again"]
    expected = [completion.text for completion in llm.generate(prompts, GREEDY)]
    llm.reset_prefix_cache()
    layer = llm.model.layers[1]
    forward = layer.forward

    def fail(*arguments):
        monkeypatch.setattr(layer, "forward", forward)
        for cache in llm.engine.runner.cache.layers:
            cache.keys.fill_(float("nan"))
        raise RuntimeError("this step fails")

    monkeypatch.setattr(layer, "forward", fail)
    with pytest.raises(RuntimeError, match="this step fails"):
        llm.generate([prompts[0], "two"], GREEDY)
    assert idle(llm)
    assert [completion.text for completion in llm.generate(prompts, GREEDY)] == expected


def test_ctrl_c_ends_the_requests_of_the_caller_and_leaves_right_tokens(llm, monkeypatch):
    prompt = "a prompt that fills two blocks of sixteen tokens"
    expected = llm.generate(prompt, GREEDY)[0].text

    class Interrupted:
        def get(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("qwen3.llm.SimpleQueue", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([prompt, "two"], GREEDY)
    monkeypatch.undo()
    assert idle(llm)
    assert llm.generate(prompt, GREEDY)[0].text == expected


def test_threads_share_the_engine(llm):
    expected = {prompt: llm.generate(prompt, GREEDY)[0].text for prompt in ("one", "two", "three", "four")}
    got = {}
    threads = [threading.Thread(target=lambda p=p: got.update({p: llm.generate(p, GREEDY)[0].text})) for p in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected and idle(llm)


def test_metrics(llm):
    prompt = list(range(3, 53))
    first, again = (llm.generate([prompt], GREEDY)[0].metrics for _ in range(2))
    assert (first.prompt_tokens, first.generated_tokens, first.cached_prompt_tokens) == (50, 20, 0)
    assert (again.cached_prompt_tokens, again.computed_prompt_tokens) == (48, 2)
    assert 0 <= first.queue_seconds <= first.time_to_first_token < first.total_seconds
    assert 0 < first.inter_token_p50 <= first.inter_token_p99


@pytest.mark.slow
@pytest.mark.parametrize("count", [400, 2000])
def test_a_soak_of_requests_leaves_nothing_behind(tmp_path, monkeypatch, count):
    """Requests, 64 at once, a fifth cancelled somewhere on the way, a pool that forces preemption."""
    write_checkpoint(tmp_path, num_hidden_layers=1, hidden_size=32, num_attention_heads=2, head_dim=16)
    llm = LLM(tmp_path, device="cpu", dtype="float32", kv_block_size=4, num_kv_blocks=64)
    generator = torch.Generator().manual_seed(3)

    def number(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    plan = [([number(0, 320) for _ in range(number(1, 60))], number(1, 40), number(0, 5) == 0) for _ in range(count)]
    answered, cancelled, resident = [], [], []

    async def request(gate, prompt, new_tokens, impatient):
        async with gate:
            params = SamplingParams(max_new_tokens=new_tokens, temperature=0.8, seed=new_tokens, ignore_eos=True)
            stream = llm.stream_async(prompt, params)
            async for _ in stream:
                if impatient:
                    await stream.aclose()
                    break
            (cancelled if impatient else answered).append(new_tokens)
            if len(answered) + len(cancelled) in (count // 2, count):
                resident.append(resident_bytes())

    async def serve():
        gate = asyncio.Semaphore(64)
        await asyncio.gather(*(request(gate, *one) for one in plan))

    preempted = count_calls(monkeypatch, llm.engine.scheduler, "_preempt")
    asyncio.run(serve())
    print(f"{len(answered)} answered, {len(cancelled)} cancelled, {preempted[0]} preemptions, resident {resident}")
    assert len(answered) + len(cancelled) == count and len(cancelled) > 0.15 * count and preempted[0] > 0
    assert idle(llm)
    assert resident[1] - resident[0] < 20e6


def count_calls(monkeypatch, owner, name):
    calls, original = [0], getattr(owner, name)

    def counted(*arguments):
        calls[0] += 1
        return original(*arguments)

    monkeypatch.setattr(owner, name, counted)
    return calls


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_recorded_decodes_need_a_gpu(small):
    with pytest.raises(Qwen3Error, match="cuda_graphs = True needs a GPU"):
        LLM(small, device="cpu", cuda_graphs=True)


@pytest.mark.parametrize("most, sizes", [(1, [1]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (30, [1, 2, 4, 8, 16, 24, 30])])
def test_recorded_sizes(llm, most, sizes):
    assert DecodeGraphs(llm.model, llm.engine.runner.cache, most, 4, eager_recorder).sizes == sizes
