"""What the engine says about its work: experts on routings made by hand, bytes by hand, --stats and --expert-stats."""

import json
import math
import re

import pytest
import torch

from benchmarks.common import config_folder
from qwen3 import LLM, Qwen3Error, SamplingParams, roofline
from qwen3.cli.main import main
from qwen3.config.hf import from_hf, model_config
from qwen3.experts import ExpertLoad
from qwen3.stats import Phase, Stats

from .conftest import SMALL, write_checkpoint
from .test_invariance import record_decodes

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)


def routing(*layers):
    """expert_ids of each layer; the scores do not count."""
    return [(None, torch.tensor(ids)) for ids in layers]


def small_config(**changes):
    return from_hf(SMALL | {"model_type": "qwen3_moe", "num_experts": 4, "num_hidden_layers": 2} | changes)


def test_load_entropy_and_distinct_experts_of_known_routings():
    load = ExpertLoad(small_config(), "cpu")
    load.count(routing([[0, 1], [0, 2]], [[3, 1], [1, 3]]), decode=False)
    load.count(routing([[0, 1]], [[1, 2]]), decode=True)
    load.count(routing([[2, 1], [3, 0]], [[1, 2], [2, 1]]), decode=True)
    assert load.load.tolist() == [[4, 3, 2, 1], [0, 5, 3, 2]]
    assert load.distinct(decode=False) == [3, 2] and load.distinct(decode=True) == [3, 2]
    report = load.report()
    assert (report["prefill_steps"], report["decode_steps"], report["experts_per_token"]) == (1, 2, 2)
    first, second = report["layers"]
    assert first["layer"] == 0 and first["load"] == [4, 3, 2, 1]
    assert second["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.5, 0.3, 0.2)))
    assert report["entropy_of_level_load"] == pytest.approx(math.log(4))


def test_only_layers_with_experts_count_and_nothing_is_zero():
    load = ExpertLoad(small_config(mlp_only_layers=[0]), "cpu")
    assert load.layers == [1] and load.distinct(decode=True) == [0]
    assert load.report()["layers"][0]["entropy"] == 0


@pytest.mark.parametrize("recorded", [False, True])
def test_every_token_of_a_run_is_counted_and_no_padding(small, recorded):
    """Three sequences: recorded decodes are padded to four rows."""
    llm = LLM(small, device="cpu", dtype="float32", expert_stats=True, max_num_seqs=4)
    if recorded:
        record_decodes(llm)
    llm.generate([[1, 2, 3, 4], [5], [6, 7]], GREEDY)
    tokens = 7 + 3 * 5
    assert llm.stats.experts.load.sum(1).tolist() == [tokens * SMALL["num_experts_per_tok"]] * 3
    assert (llm.stats.prefill.steps, llm.stats.prefill.tokens) == (1, 7)
    assert (llm.stats.decode.steps, llm.stats.decode.tokens) == (5, 15)
    assert llm.stats.prefill.context_tokens == 7 and llm.stats.decode.context_tokens == sum(
        7 + 3 * i for i in range(1, 6)
    )


def test_a_step_with_a_prompt_in_it_is_prefill_and_recomputed_tokens_are_not_drawn_ones(small):
    """Eight tokens a step: 1 + 7, 1 + 7, 1 + 6 of a prompt of 20, then both decode until one and the other end."""
    llm = LLM(small, device="cpu", dtype="float32", max_num_batched_tokens=8)
    llm.generate([[5], list(range(20))], GREEDY)
    assert (llm.stats.prefill.steps, llm.stats.prefill.tokens) == (3, 8 + 8 + 7)
    assert (llm.stats.decode.steps, llm.stats.decode.tokens) == (5, 3 * 2 + 2)
    without = LLM(small, device="cpu", dtype="float32", kv_cache=False)
    without.generate([[5, 6, 7]], GREEDY)
    assert (without.stats.decode.steps, without.stats.decode.tokens) == (5, 5)


def test_a_token_of_qwen3_30b_reads_what_its_shape_says():
    """48 layers of 37.7 MB attention, 75.5 MB for 8 experts and 0.5 MB router, and 622 MB output layer."""
    config = model_config(config_folder("Qwen3-30B-A3B"))
    stats = Stats(decode=Phase(steps=2, tokens=2, seconds=0.01, context_tokens=300), experts=ExpertLoad(config, "cpu"))
    for _ in range(2):
        stats.experts.count(routing(*([list(range(8))] for _ in range(48))), decode=True)
    cache = 300 * 98_304
    read = roofline.bytes_read(config, torch.bfloat16, stats, decode=True)
    assert read - cache == pytest.approx(2 * (48 * (37.7e6 + 75.5e6 + 0.5e6) + 622e6), rel=2e-3)
    assert roofline.bytes_read(config, torch.bfloat16, Stats(), decode=True) == 0
    prefill, decode = roofline.roofline_lines(config, torch.bfloat16, stats, 2e12)
    assert prefill == "prefill: no steps"
    assert "2 tokens in 2 steps, 200.0 tokens/s" in decode and f"{read / 0.01 / 2e12:.0%} of the copy" in decode


def test_copy_bandwidth_counts_read_and_write(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(ticks))
    assert roofline.copy_bandwidth(torch.device("cpu"), size=4096) == 2 * 4096


@pytest.fixture
def generate(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(
            ["generate", "--prompt", "def f(", "--max-new-tokens", "5", "--temperature", "0", *map(str, arguments)]
        )
        return code, *capsys.readouterr()

    return run


def test_stats_give_prefill_and_decode_apart(generate):
    code, out, err = generate("--stats")
    line = (
        r"{}: {} tokens in {} steps, [\d,.]+ tokens/s · [\d,.]+ [MG]B to read, [\d,.]+ GB/s, \d+% of the copy bandwidth"
    )
    assert code == 0 and re.search(line.format("decode", 4, 4), err)
    assert re.search(line.format("prefill", r"\d+", 1), err) and "time to first token" in err and "peak memory" in err


def test_expert_stats_write_json_and_a_picture(generate, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = generate("--expert-stats", "load.json")
    report = json.loads((tmp_path / "load.json").read_text())
    assert code == 0 and len(report["layers"]) == 5 and report["decode_steps"] == 4
    assert all(layer["distinct_experts_per_decode_step"] == 4 for layer in report["layers"])
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG") and "load.json" in err


def test_expert_stats_that_cannot_be_written_are_refused_before_any_text(generate, tmp_path):
    write_checkpoint(tmp_path / "dense", dense=True)
    for arguments in (("load.txt",), ("none/load.json",), ("load.json", "--repo_id", tmp_path / "dense")):
        code, out, err = generate("--expert-stats", *arguments)
        assert code == 2 and out == "" and err.count("error: --expert-stats") == 1
    assert not list(tmp_path.glob("load*"))


def test_random_weights(tmp_path):
    """The shape of a config.json and nothing else: no weights, no tokenizer, no text, so no stop strings either."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"model_type": "qwen3_moe"}))
    llm = LLM(tmp_path, device="cpu", dtype="float32", random_weights=True)
    done = llm.generate([[1, 2, 3]], GREEDY)[0]
    assert len(done.token_ids) == 6 and done.text == "" and bool(llm.logits([1, 2]).isfinite().all())
    with pytest.raises(Qwen3Error, match="stop strings need text"):
        llm.generate([[1]], SamplingParams(stop="x"))
