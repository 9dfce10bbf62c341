"""The report after an answer's text: what cut it, log-probabilities, speed."""

import io
import json
import logging
import re
import sys
from types import SimpleNamespace

import pytest

from qwen3 import Completion, Metrics, SamplingParams, TokenLogprob
from qwen3.cli.answer import report


def completion(prompt=5, answer=3, reason="length", logprobs=None):
    metrics = Metrics(prompt, 0, prompt, answer, 0, 0.0, 0.5, 0.0, 0.0, 2.5)
    return Completion([1] * prompt, [2] * answer, "text", reason, logprobs, metrics)


def model(max_model_len=100, max_context=200, kv_cache_tokens=1600, max_new_tokens=None, max_length=None):
    return SimpleNamespace(
        max_model_len=max_model_len,
        config=SimpleNamespace(max_context=max_context),
        kv_cache_tokens=kv_cache_tokens,
        defaults=SimpleNamespace(max_new_tokens=max_new_tokens, max_length=max_length),
        tokenizer=SimpleNamespace(decode=lambda ids: f"<{ids[0]}\n>"),
    )


@pytest.mark.parametrize(
    "llm, params, said",
    [
        (model(), {"max_new_tokens": 3}, "--max-new-tokens allows no more"),
        (model(max_model_len=8), {}, "the context of 8 tokens is full, --max-model-len can be up to 200"),
        (model(max_model_len=8, max_context=8), {"max_new_tokens": 9}, "the context of 8 tokens is full"),
        (model(max_new_tokens=3), {}, "the model's generation_config.json allows no more, --max-new-tokens does"),
        (model(max_length=8), {}, "the model's generation_config.json allows no more, --max-new-tokens does"),
        (model(kv_cache_tokens=8), {}, "the KV cache of 8 tokens is full"),
    ],
)
def test_what_cut_an_answer(llm, params, said, capsys):
    report(llm, completion(), SamplingParams(**params))
    assert capsys.readouterr() == ("", f"stopped after 3 tokens, before the end of the answer: {said}\n")


def test_an_answer_that_ended_or_was_stopped_needs_no_word(capsys):
    report(model(), completion(reason="stop"), SamplingParams(max_new_tokens=3))
    report(model(), None, SamplingParams())
    assert capsys.readouterr() == ("", "")
    report(model(), completion(answer=1), SamplingParams(max_new_tokens=1))
    assert capsys.readouterr().err.startswith("stopped after 1 token, ")


def test_log_probabilities_and_speed(capsys, caplog):
    entries = [TokenLogprob(7, -0.25, ()), TokenLogprob(8, -1.5, ((7, -0.5), (8, -1.5)))]
    with caplog.at_level(logging.INFO, "qwen3"):
        report(model(), completion(reason="stop", logprobs=entries), SamplingParams(logprobs=2))
    assert capsys.readouterr().err.splitlines() == [
        "  -0.2500 7 '<7\\n>'",
        "  -1.5000 8 '<8\\n>'  of  -0.5000 7 '<7\\n>'  -1.5000 8 '<8\\n>'",
    ]
    # Two tokens in the two seconds after the first.
    assert caplog.messages == ["5 tokens of prompt, 3 of answer; the first token after 0.50 s, then 1.0 tokens/s"]


def test_commands_say_it(run, talker, monkeypatch):
    cut = "stopped after 2 tokens, before the end of the answer: --max-new-tokens allows no more\n"
    assert run("generate", "x", "-m", talker, "-n", 2)[2].endswith(cut)
    monkeypatch.setattr(sys, "stdin", io.StringIO("x\ny\n"))
    _, out, err = run("chat", "-m", talker, "-n", 2, "--logprobs", 0, "-v")
    assert err.count(cut) == 2 and err.count(" tokens/s") == 2 and cut not in out
    assert len(re.findall(r"-\d+\.\d{4} \d+ '", err)) == 4


def test_an_answer_that_broke_off_is_an_error(run, talker, tmp_path):
    """Scores that are not finite: what was written stands, the reason is the last line of stderr."""
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja"):
        (broken / name).symlink_to(talker / name)
    (broken / "config.json").write_text(json.dumps(json.loads((talker / "config.json").read_text())))
    weights = load_file(talker / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, broken / "model.safetensors")
    code, out, err = run("generate", "x", "-m", broken)
    assert code == 2 and out == "" and err.splitlines()[-1].startswith("error: ") and "not finite" in err
