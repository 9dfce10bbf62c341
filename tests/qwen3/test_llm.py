"""LLM: a request gives in a batch what it gives alone, with a cache what it gives without."""

import json
import shutil

import pytest
import torch

from qwen3 import LLM, Qwen3Error, SamplingParams
from qwen3.engine.inputs import forward_batch
from qwen3.engine.params import Sampling
from qwen3.engine.scheduler import Scheduled, Work
from qwen3.engine.sequence import Sequence
from qwen3.model.kv_cache import KVCache
from qwen3.text.template import ChatTemplate

from .conftest import SMALL, write_checkpoint

LENGTHS = [1, 5, 16, 17, 31, 40, 2]  # one token; just around a block of 16; several blocks
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


@torch.inference_mode()
def test_the_last_layer_computes_the_logit_rows_alone(llm):
    """Two prefills beside a decode: rows that are not requested change nothing, in the caches of the layers either."""
    generator, work = torch.Generator().manual_seed(1), []
    for i, (length, computed, samples) in enumerate([(20, 19, True), (30, 0, False), (5, 2, True)]):
        ids = torch.randint(320, (length,), generator=generator).tolist()
        sequence = Sequence(ids, Sampling(), frozenset(), 64, blocks=[2 * i, 2 * i + 1])
        work.append(Work(sequence, computed, length - computed, samples))
    found = []
    for all_logits in (True, False):
        cache = KVCache(llm.config, 16, 16, torch.float32)
        for layer in cache.layers:
            layer.keys.fill_(0.5), layer.values.fill_(0.5)
        batch = forward_batch(Scheduled(tuple(work)), 16, "cpu", all_logits=all_logits)
        states = llm.model(batch, cache).states
        found.append([states[[0, 33]] if all_logits else states, *(t for layer in cache.layers for t in layer)])
    assert batch.logit_rows.rows.tolist() == [0, 33] and batch.num_decodes == 1 and not batch.is_decode
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_chunk_that_samples_nothing_computes_no_logits(small, backend):
    llm = LLM(small, device="cpu", dtype="float32", backend=backend)
    sequence = Sequence([1, 2, 3, 4, 5], Sampling(), frozenset(), 64, blocks=[0])
    batch = forward_batch(Scheduled((Work(sequence, 0, 4, False),)), 16, "cpu")
    states, routing = llm.model(batch, KVCache(llm.config, 2, 16, torch.float32), keep_routing=True)
    assert llm.model.logits(states).shape == (0, 320)
    assert [len(layer.expert_ids) for layer in routing] == [4, 4, 0]


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


def test_end_of_text_ids(alone, tmp_path):
    answer = alone[0].token_ids
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [answer[3], answer[7]]}))
    llm = LLM(tmp_path, device="cpu", dtype="float32")
    stopped = llm.generate(prompts()[:1], GREEDY)[0]
    ignored = llm.generate(prompts()[:1], SamplingParams(max_new_tokens=24, temperature=0, ignore_eos=True))[0]
    first = min(answer.index(answer[3]), answer.index(answer[7]))
    assert stopped.token_ids == answer[: first + 1] and stopped.finish_reason == "stop"
    assert ignored.token_ids == answer


def test_stream_is_generate_in_pieces(llm):
    params = SamplingParams(max_new_tokens=40, temperature=1.0, seed=3)
    pieces = list(llm.stream("héllo wörld", params))
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == llm.generate("héllo wörld", params)[0].text


def test_chat_goes_through_the_template(llm, monkeypatch):
    template = ChatTemplate({"default": "{{ messages[0].content }}|{{ mood }}"}, {}, "test")
    monkeypatch.setattr(llm.tokenizer, "_template", template)
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
        ({"num_kv_blocks": 0}, "num_kv_blocks"),
        ({"prefix_caching": True, "kv_cache": False}, "prefix_caching"),
        ({"cuda_graphs": True}, "cuda_graphs"),
    ],
)
def test_wrong_options(small, options, named):
    with pytest.raises(Qwen3Error, match=named):
        LLM(small, **options)


def test_the_callers_list_of_ids_stays_as_it_is(llm):
    ids = [1, 2, 3]
    llm.generate([ids], GREEDY)
    llm.logits(ids)
    assert ids == [1, 2, 3]


def test_an_unknown_option_is_refused_by_name(small):
    with pytest.raises(Qwen3Error, match=r"no option 'gpu_memory_utilization' \(did you mean memory_utilization\?\)"):
        LLM(small, gpu_memory_utilization=0.5)
    with pytest.raises(Qwen3Error, match="no option 'quantization': see"):
        LLM(small, quantization="awq")


@pytest.mark.parametrize(
    "prompt, params",
    [([1] * 300, GREEDY), ([999], GREEDY), ("", GREEDY), ([1] * 40, SamplingParams(max_new_tokens=60))],
    ids=["too long", "unknown id", "empty", "no room in the KV cache"],
)
def test_check_raises_what_generate_raises(small, prompt, params):
    llm = LLM(small, device="cpu", dtype="float32", num_kv_blocks=5)
    with pytest.raises(Qwen3Error) as generated:
        llm.generate([prompt], params)
    with pytest.raises(Qwen3Error) as checked:
        llm.check(prompt, params)
    assert str(checked.value) == str(generated.value)
    llm.check([1, 2, 3], GREEDY)


def test_check_applies_the_generation_config_and_the_rule_of_random_weights(small, tmp_path):
    llm = LLM(small, device="cpu", random_weights=True)
    with pytest.raises(Qwen3Error, match="stop strings need text"):
        llm.check([1], SamplingParams(stop="x"))


def test_a_closed_llm_says_so(small):
    llm = LLM(small, device="cpu")
    stream = llm.stream("hello", GREEDY)
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(Qwen3Error, match="closed"):
        list(stream)
    with pytest.raises(Qwen3Error, match="closed"):
        llm.generate("hello", GREEDY)


def test_out_of_memory_says_how_much_and_what_to_lower(small, tmp_path):
    huge = SMALL | {"model_type": "qwen3_moe", "hidden_size": 2**19, "num_experts": 128, "num_hidden_layers": 64}
    (tmp_path / "config.json").write_text(json.dumps(huge))
    with pytest.raises(Qwen3Error, match=r"needs [\d,.]+ GB, cpu has [\d,.]+ [MG]B free: .*smaller model"):
        LLM(tmp_path, device="cpu", random_weights=True)
    with pytest.raises(Qwen3Error, match=r"the KV cache needs [\d,.]+ GB, cpu has .*smaller model"):
        LLM(small, device="cpu", dtype="float32", num_kv_blocks=10**11)
    with pytest.raises(Qwen3Error, match="41 tokens, the KV cache has room for 32: lower max_new_tokens"):
        LLM(small, device="cpu", dtype="float32", num_kv_blocks=2).generate(prompts([17]), GREEDY)


def test_prompts_that_do_not_fit_together_take_turns(small, alone):
    llm = LLM(small, device="cpu", dtype="float32", num_kv_blocks=5)
    done = llm.generate(prompts(), GREEDY)
    assert tokens(done) == tokens(alone)
    assert llm.engine.scheduler.pool.num_free == 5 and sum(c.metrics.preemptions for c in done) > 0


def test_everything_that_can_be_refused_at_once_is_refused_before_the_weights(small, tmp_path, monkeypatch):
    """The weights of a large model take minutes."""
    monkeypatch.setattr("qwen3.llm.load_model", lambda *arguments: pytest.fail("the weights were loaded first"))
    for name, content in (
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("generation_config.json", '{"num_beams": 4}'),
        ("generation_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("chat_template.jinja", b"\xff"),
        ("config.json", "{"),
    ):
        folder = tmp_path / f"{name} {content!r}".replace("/", "")
        shutil.copytree(small, folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(Qwen3Error, match=name):
            LLM(folder, device="cpu")
    for options in ({"max_model_len": 257}, {"dtype": "int4"}, {"backend": "x"}, {"cuda_graphs": True}):
        with pytest.raises(Qwen3Error):
            LLM(small, device="cpu", **options)


def test_an_llm_is_closed_at_the_end_of_its_with(small):
    with LLM(small, device="cpu") as llm:
        assert len(llm.generate("hello", GREEDY)[0].token_ids) == 24
    with pytest.raises(Qwen3Error, match="closed"):
        llm.generate("hello", GREEDY)
    with pytest.raises(ZeroDivisionError), LLM(small, device="cpu") as llm:
        raise ZeroDivisionError
    with pytest.raises(Qwen3Error, match="closed"):
        llm.logits([1])
