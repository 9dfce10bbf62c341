"""The whole model through the Triton kernels: the tokens of the reference, and the launches that a layer costs."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
import triton

from qwen3 import LLM, SamplingParams

from ..conftest import eager_recorder, write_checkpoint

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# One token; one that is not a multiple of anything; above the 8 and 16 tokens to which the small paths go.
LENGTHS = [1, 5, 19]
CONFIGS = {
    "one layer": {"num_hidden_layers": 1},
    "moe": {},
    "top-4 of 16, groups of 4, bias, YaRN": {
        "num_experts": 16, "num_experts_per_tok": 4, "num_attention_heads": 8, "head_dim": 64, "attention_bias": True,
        "num_hidden_layers": 2,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64
        },
    },
    "dense, tied": {"dense": True, "tie_word_embeddings": True, "num_hidden_layers": 2},
}  # fmt: skip


def prompts():
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(250, (n,), generator=generator).tolist() for n in LENGTHS]


def both(folder, **options):
    return [LLM(folder, device=DEVICE, backend=b, **options) for b in ("reference", "triton")]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_tokens_and_logits_are_those_of_the_reference(name, tmp_path):
    write_checkpoint(tmp_path, **CONFIGS[name])
    reference, llm = both(tmp_path, dtype="float32")
    params = SamplingParams(max_new_tokens=5, temperature=0)
    expected = [c.token_ids for c in reference.generate(prompts(), params)]
    assert [c.token_ids for c in llm.generate(prompts(), params)] == expected
    tokens = prompts()[-1]
    torch.testing.assert_close(llm.logits(tokens), reference.logits(tokens), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_embedded_model():
    reference, llm = both("tiny", dtype="float32")
    params = SamplingParams(max_new_tokens=4, temperature=0, ignore_eos=True)
    prompt = "class Stack:"
    assert llm.generate(prompt, params)[0].token_ids == reference.generate(prompt, params)[0].token_ids


@pytest.mark.slow
def test_a_seed_samples_the_tokens_of_the_reference(tmp_path):
    write_checkpoint(tmp_path, num_hidden_layers=1)
    reference, llm = both(tmp_path, dtype="float32")
    params = [SamplingParams(max_new_tokens=4, temperature=0.8, top_k=k, top_p=0.9, seed=k) for k in (5, 0, 50)]
    expected = [c.token_ids for c in reference.generate(prompts(), params)]
    assert [c.token_ids for c in llm.generate(prompts(), params)] == expected


def test_bfloat16_error_is_at_most_twice_that_of_the_reference(tmp_path):
    """RMS distance from the float32 logits of the same bfloat16 weights."""
    write_checkpoint(tmp_path, initializer_range=0.05).to(torch.bfloat16).save_pretrained(tmp_path)
    reference, llm = both(tmp_path)
    exact = LLM(tmp_path, device=DEVICE, dtype="float32", backend="reference")
    tokens = prompts()[-1]
    truth = exact.logits(tokens)
    ours, theirs = ((side.logits(tokens) - truth).square().mean().sqrt() for side in (llm, reference))
    assert 0 < ours <= 2 * theirs


# Operations that launch nothing.
FREE = {
    "view", "_unsafe_view", "slice", "select", "t", "transpose", "split", "split_with_sizes", "unsqueeze", "empty",
    "empty_like", "expand", "detach", "alias", "as_strided", "squeeze", "permute", "reshape", "new_empty",
    "new_empty_strided", "empty_strided", "_local_scalar_dense", "lift_fresh", "unbind",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Names everything that would be a launch on a GPU: Triton kernels, and aten ops that compute."""

    def __init__(self, monkeypatch, free=FREE):
        super().__init__()
        self.names, self.free = [], free
        kind = triton.runtime.interpreter.GridExecutor if triton.knobs.runtime.interpret else triton.JITFunction
        method = "__call__" if triton.knobs.runtime.interpret else "run"
        original = getattr(kind, method)

        def launch(kernel, *args, **kwargs):
            self.names.append(kernel.fn.__name__)
            # What the interpreter does in torch to run a kernel is not the model's doing.
            with torch.utils._python_dispatch._disable_current_modes():
                return original(kernel, *args, **kwargs)

        monkeypatch.setattr(kind, method, launch)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in self.free:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_batch_chunks_prefix_hits_and_recorded_decodes_give_the_tokens_of_the_reference(tmp_path):
    """Prompts with one prefix, in chunks of seven tokens beside decodes, then again from the cache; all recorded."""
    write_checkpoint(tmp_path, num_hidden_layers=1)
    texts = [[*range(9, 29), i] for i in range(3)] + [[5]]
    params = SamplingParams(max_new_tokens=4, temperature=0)
    reference = LLM(tmp_path, device=DEVICE, dtype="float32", backend="reference", prefix_caching=False)
    expected = [reference.generate([text], params)[0].token_ids for text in texts]
    options = {"max_num_batched_tokens": 7, "max_num_seqs": 6}
    if DEVICE == "cpu":
        options["graph_recorder"] = eager_recorder
    llm = LLM(tmp_path, device=DEVICE, dtype="float32", backend="triton", **options)
    for cached in ([0, 16, 16, 0], [16, 16, 16, 0]):
        done = llm.generate(texts, params)
        assert [c.token_ids for c in done] == expected
        assert [c.metrics.cached_prompt_tokens for c in done] == cached


def layer_launches(tmp_path, monkeypatch, layer, tokens):
    """The launches of one of three layers, at a step that prefills and at one that decodes (one token)."""
    write_checkpoint(tmp_path, num_hidden_layers=3)
    llm = LLM(tmp_path, device=DEVICE, dtype="bfloat16", backend="triton", cuda_graphs=False)
    watched_layer, seen = llm.model.layers[layer], []
    forward = watched_layer.forward

    def watched(*args):
        with monkeypatch.context() as patch, Launches(patch) as launches:
            out = forward(*args)
        seen.append(launches.names)
        return out

    monkeypatch.setattr(watched_layer, "forward", watched)
    llm.generate([list(range(1, tokens + 1))], SamplingParams(max_new_tokens=2, temperature=0, ignore_eos=True))
    return seen  # the prefill's, then the decode's


# The last layer computes only the logit rows after a prefill's attention.
@pytest.mark.parametrize("layer, of_prefill", [(1, 12), pytest.param(2, 12, marks=pytest.mark.slow)])
def test_a_decode_step_makes_nine_launches_per_layer(tmp_path, monkeypatch, layer, of_prefill):
    prefill, decode = layer_launches(tmp_path, monkeypatch, layer, 20)
    print("prefill:", len(prefill), prefill, "\ndecode:", len(decode), decode)
    assert len(decode) == 9
    # 20 tokens are too many for the paths that are made for few.
    assert len(prefill) == of_prefill


# What would make the host wait for a GPU: reading a value, or a shape that depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "bincount", "masked_select", "equal"}


def test_a_decode_step_waits_only_for_the_sampled_tokens(tmp_path, monkeypatch):
    """Model, logits, penalties, sampling and the next step's inputs: nothing in between reads a value."""
    write_checkpoint(tmp_path, num_hidden_layers=1)
    llm = LLM(tmp_path, device=DEVICE, dtype="bfloat16", backend="triton", max_num_seqs=4)
    seen, predicted = set(), []

    def watch(function):
        def watched(*args, **kwargs):
            with monkeypatch.context() as patch, Launches(patch, FREE - WAITING) as launches:
                out = function(*args, **kwargs)
            seen.update(launches.names)
            return out

        return watched

    predict = watch(llm.engine._predict)
    monkeypatch.setattr(llm.engine.runner, "run", watch(llm.engine.runner.run))
    monkeypatch.setattr(
        llm.engine, "_predict", lambda *args: predicted.append(following := predict(*args)) or following
    )
    params = SamplingParams(
        max_new_tokens=4,
        temperature=0.8,
        top_p=0.9,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        ignore_eos=True,
    )
    llm.generate([[1, 2, 3], [4, 5]], params)
    # The fourth step samples the last token.
    assert [following is not None for following in predicted] == [True, True, True, False]
    assert "decode_split_kernel" in seen and not seen & WAITING
