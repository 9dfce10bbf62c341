"""LLM: a request gives in a batch what it gives alone, with a cache what it gives without."""

import pytest
import torch

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.kv_cache import KVCache
from qwen3.sequence import Sequence
from qwen3.step import Step

LENGTHS = [1, 5, 16, 17, 31, 40, 2]  # one token; just around a page of 16; several pages
GREEDY = SamplingParams(max_new_tokens=24, temperature=0)


def prompts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(320, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module")
def llm(small):
    return LLM(small, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def alone(llm):
    return [llm.generate([p], GREEDY)[0] for p in prompts()]


def tokens(completions):
    return [c.token_ids for c in completions]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 7},  # prompts in chunks, several to a step
        {"max_num_batched_tokens": 1},
        {"kv_block_size": 64},
        {"kv_block_size": 1},
        {"kv_cache": False},
        {"kv_cache": False, "max_num_batched_tokens": 16},
    ],
    ids=str,
)
def test_a_batch_gives_the_tokens_that_each_prompt_gives_alone(small, alone, options):
    other = LLM(small, device="cpu", dtype="float32", **options)
    assert tokens(other.generate(prompts(), GREEDY)) == tokens(alone)
    assert len({tuple(t) for t in tokens(alone)}) == len(alone)


def test_different_lengths_of_answers(llm, alone):
    params = [SamplingParams(max_new_tokens=1 + 3 * i, temperature=0) for i in range(len(LENGTHS))]
    got = tokens(llm.generate(prompts(), params))
    assert got == [t[: 1 + 3 * i] for i, t in enumerate(tokens(alone))]


def test_logits_of_the_whole_are_those_of_the_parts(llm, small):
    ids = prompts([45])[0]
    whole = llm.logits(ids)
    assert whole.shape == (45, 320) and whole.dtype == torch.float32
    chunked = LLM(small, device="cpu", dtype="float32", max_num_batched_tokens=11).logits(ids)
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)
    assert llm.generate([ids], SamplingParams(max_new_tokens=1, temperature=0))[0].token_ids == [
        whole[-1].argmax().item()
    ]


def test_the_last_layer_of_the_last_tokens_alone(llm, small):
    """Two prefills beside a decode: rows that nobody asks for change nothing, in none of the layers' caches either."""
    full, last = ([], [])
    for only, found in ((False, full), (True, last)):
        cache = KVCache(llm.config, 16, 16, torch.float32)
        generator, sequences = torch.Generator().manual_seed(1), []
        for i, (length, computed) in enumerate([(20, 19), (30, 0), (5, 2)]):
            ids = torch.randint(320, (length,), generator=generator).tolist()
            sequences.append(Sequence(ids, GREEDY, frozenset(), 64, blocks=[2 * i, 2 * i + 1], computed=computed))
        for layer in cache.layers:
            layer.keys.fill_(0.5), layer.values.fill_(0.5)
        step = Step.of([(s, len(s.token_ids) - s.computed) for s in sequences], 16, "cpu")
        hidden = llm.model(step, cache, last_only=only)
        found += [hidden if only else hidden[step.last_rows], *(t for layer in cache.layers for t in layer)]
    for a, b in zip(full, last, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_seeds(llm):
    sampled = [SamplingParams(max_new_tokens=16, temperature=1.0, top_p=0.95, seed=s) for s in range(len(LENGTHS))]
    together = tokens(llm.generate(prompts(), sampled))
    assert tokens(llm.generate(prompts(), sampled)) == together
    assert [tokens(llm.generate([p], s))[0] for p, s in zip(prompts(), sampled)] == together
    assert tokens(llm.generate(prompts()[:1], sampled[1]))[0] != together[0]
    unseeded = SamplingParams(max_new_tokens=16, temperature=1.0)
    assert tokens(llm.generate(prompts([5]) * 2, unseeded))[0] != tokens(llm.generate(prompts([5]), unseeded))[0]


def test_stops(llm, alone):
    answer = alone[2].token_ids
    params = SamplingParams(max_new_tokens=24, temperature=0, stop_token_ids=(answer[5],))
    stopped = llm.generate(prompts()[2:3], params)[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == answer[: answer.index(answer[5]) + 1]
    assert alone[2].finish_reason == "length" and len(answer) == 24
    text = alone[2].text
    assert len(text) > 6
    cut = llm.generate(prompts()[2:3], SamplingParams(max_new_tokens=24, temperature=0, stop=text[4:6]))[0]
    assert cut.finish_reason == "stop" and cut.text == text[: text.index(text[4:6])]


def test_end_of_text_ids(llm, alone):
    answer = alone[0].token_ids
    object.__setattr__(llm.config, "eos_token_ids", (answer[3], answer[7]))
    try:
        stopped = llm.generate(prompts()[:1], GREEDY)[0]
        ignored = llm.generate(prompts()[:1], SamplingParams(max_new_tokens=24, temperature=0, ignore_eos=True))[0]
    finally:
        object.__setattr__(llm.config, "eos_token_ids", ())
    first = min(answer.index(answer[3]), answer.index(answer[7]))
    assert stopped.token_ids == answer[: first + 1] and stopped.finish_reason == "stop"
    assert ignored.token_ids == answer


def test_stream_is_generate_in_pieces(llm):
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=3)
    pieces = list(llm.stream("héllo wörld", params))
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == llm.generate("héllo wörld", params)[0].text


def test_chat_goes_through_the_template(llm, monkeypatch):
    monkeypatch.setattr(
        llm.tokenizer, "apply_chat_template", lambda messages, **v: f"{messages[0]['content']}|{v['mood']}"
    )
    got = llm.chat([{"role": "user", "content": "hi"}], GREEDY, mood="good")
    assert got.token_ids == llm.generate("hi|good", GREEDY)[0].token_ids
    assert got.prompt_token_ids == llm.tokenizer.encode("hi|good")


def test_logprobs_agree_with_logits(llm):
    prompt = prompts([9])[0]
    got = llm.generate([prompt], SamplingParams(max_new_tokens=5, temperature=0, logprobs=2))[0]
    scores = llm.logits(prompt + got.token_ids)[len(prompt) - 1 : -1].log_softmax(-1)
    assert [entry.token_id for entry in got.logprobs] == got.token_ids
    for row, entry in zip(scores, got.logprobs):
        assert entry.logprob == pytest.approx(row.max().item(), abs=1e-4)
        assert entry.top[0] == (entry.token_id, entry.logprob) and len(entry.top) == 2
    assert llm.generate([prompt], GREEDY)[0].logprobs is None


def test_the_context_ends_an_answer(small):
    llm = LLM(small, device="cpu", dtype="float32", max_model_len=20)
    done = llm.generate(prompts([17]), GREEDY)[0]
    assert done.finish_reason == "length" and len(done.token_ids) == 3
    with pytest.raises(Qwen3Error, match="20 tokens.*max_model_len"):
        llm.generate(prompts([20]), GREEDY)
    assert llm.logits(prompts([20])[0]).shape == (20, 320)


@pytest.mark.parametrize(
    "prompt, named",
    [("", "empty"), ([[]], "empty"), ([[1, 320]], "320"), ([[-1]], "-1"), ([[1], []], "prompt 1 is empty")],
)
def test_wrong_prompts(llm, prompt, named):
    with pytest.raises(Qwen3Error, match=named):
        llm.generate(prompt, GREEDY)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"device": "tpu"}, "tpu"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"dtype": "int4"}, "int4"),
        ({"backend": "numpy"}, "numpy"),
        ({"max_model_len": 0}, "max_model_len"),
        ({"max_model_len": 257}, "257"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"kv_block_size": 1.5}, "kv_block_size"),
        ({"memory_utilization": 0}, "memory_utilization"),
        ({"prefix_caching": True, "kv_cache": False}, "prefix_caching"),
        ({"cuda_graphs": True}, "cuda_graphs"),
    ],
)
def test_wrong_options(small, options, named):
    with pytest.raises(Qwen3Error, match=named):
        LLM(small, **options)


def test_out_of_memory_says_how_much_and_what_to_lower(small, monkeypatch):
    monkeypatch.setattr("qwen3.memory.available_bytes", lambda device: 1000)
    with pytest.raises(Qwen3Error, match=r"needs [\d.]+ MB, cpu has 0.0 MB free: .*smaller model"):
        LLM(small, device="cpu")
    monkeypatch.undo()
    # One page of 16 tokens: 16 * 2 * 3 layers * 2 heads * 32 * 4 bytes = 24,576.
    monkeypatch.setattr("qwen3.llm.kv_cache_bytes", lambda *arguments: 24_575)
    with pytest.raises(Qwen3Error, match="the KV cache needs 0.0 MB for 16 tokens.*raise memory_utilization"):
        LLM(small, device="cpu", dtype="float32")
    monkeypatch.setattr("qwen3.llm.kv_cache_bytes", lambda *arguments: 2 * 24_576)
    with pytest.raises(Qwen3Error, match="41 tokens, the KV cache has room for 32: lower max_new_tokens"):
        LLM(small, device="cpu", dtype="float32").generate(prompts([17]), GREEDY)


def test_prompts_that_do_not_fit_together_take_turns(small, alone, monkeypatch):
    monkeypatch.setattr("qwen3.llm.kv_cache_bytes", lambda *arguments: 5 * 24_576)
    llm = LLM(small, device="cpu", dtype="float32")
    done = llm.generate(prompts(), GREEDY)
    assert tokens(done) == tokens(alone)
    assert len(llm.engine.scheduler.pool) == 5 and sum(c.metrics.preemptions for c in done) > 0
