"""What the engine says about its work: experts on routings made by hand, bytes by hand, --stats and --expert-stats."""

import json
import math
import re

import pytest
import torch

from benchmarks.common import config_folder
from qwen3 import LLM, EngineConfig, Qwen3Error, SamplingParams
from qwen3.cli.main import main
from qwen3.config.hf import from_hf, model_config
from qwen3.measure import roofline
from qwen3.measure.expert_load import ExpertLoad, draw_heat_map
from qwen3.measure.stats import Phase, Stats
from qwen3.model.blocks import Routing
from qwen3.model.footprint import planned_footprint
from qwen3.model.qwen3 import Qwen3
from qwen3_kernels import reference

from ..conftest import SMALL, eager_recorder, write_checkpoint

GREEDY = SamplingParams(max_new_tokens=6, temperature=0, ignore_eos=True)


def routing(*layers):
    """expert_ids of each layer; the scores do not count."""
    return [Routing(torch.empty(0), torch.tensor(ids)) for ids in layers]


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
    """Three sequences: recorded decodes are padded to four rows. The last layer computes the sampling rows alone."""
    options = EngineConfig(dtype="float32", max_num_seqs=4, graph_recorder=eager_recorder if recorded else None)
    llm = LLM(small, engine_config=options, expert_stats=True)
    llm.generate([[1, 2, 3, 4], [5], [6, 7]], GREEDY)
    tokens, top_k = 7 + 3 * 5, SMALL["num_experts_per_tok"]
    assert llm.stats.experts.load.sum(1).tolist() == [tokens * top_k, tokens * top_k, (3 + 3 * 5) * top_k]
    assert (llm.stats.prefill.steps, llm.stats.prefill.tokens) == (1, 7)
    assert (llm.stats.decode.steps, llm.stats.decode.tokens) == (5, 15)
    assert llm.stats.prefill.context_tokens == 7 and llm.stats.decode.context_tokens == sum(
        7 + 3 * i for i in range(1, 6)
    )


def test_a_step_with_a_prompt_in_it_is_prefill_and_recomputed_tokens_are_not_sampled_ones(small):
    """Eight tokens a step: 1 + 7, 1 + 7, 1 + 6 of a prompt of 20, then both decode until one and the other end."""
    llm = LLM(small, device="cpu", dtype="float32", max_num_batched_tokens=8)
    llm.generate([[5], list(range(20))], GREEDY)
    assert (llm.stats.prefill.steps, llm.stats.prefill.tokens) == (3, 8 + 8 + 7)
    assert (llm.stats.decode.steps, llm.stats.decode.tokens) == (5, 3 * 2 + 2)
    without = LLM(small, device="cpu", dtype="float32", kv_cache=False)
    without.generate([[5, 6, 7]], GREEDY)
    assert (without.stats.decode.steps, without.stats.prefill.steps) == (0, 6), "nothing is cached, so nothing decodes"
    assert without.stats.prefill.tokens == 3 + 4 + 5 + 6 + 7 + 8


def test_a_token_of_qwen3_30b_reads_what_its_shape_says():
    """48 layers of 37.7 MB attention, 75.5 MB for 8 experts and 0.5 MB router, and 622 MB output layer."""
    config = model_config(config_folder("Qwen3-30B-A3B"))
    stats = Stats(decode=Phase(steps=2, tokens=6, seconds=0.01, context_tokens=300), experts=ExpertLoad(config, "cpu"))
    for _ in range(2):
        stats.experts.count(routing(*([list(range(8))] for _ in range(48))), decode=True)
    cache = 300 * 98_304
    model = Qwen3(config, reference, 1, torch.bfloat16, "meta")
    read = roofline.bytes_read(model, stats, decode=True)
    assert read - cache == pytest.approx(2 * (48 * (37.7e6 + 75.5e6 + 0.5e6) + 622e6), rel=2e-3)
    assert roofline.bytes_read(model, Stats(), decode=True) == roofline.bytes_read(model, stats, decode=False) == 0
    prefill, decode = roofline.roofline_lines(model, stats, 2e12)
    assert prefill == "prefill: no steps"
    assert "6 tokens in 2 steps, 600.0 tokens/s" in decode and f"{read / 0.01 / 2e12:.0%} of the copy" in decode


def test_statistics_measure_the_prefill_that_runs_without_them(small):
    """The same rows go through every layer, so the same bits come out."""
    seen = []
    for counted in (False, True):
        llm = LLM(small, device="cpu", dtype="float32", expert_stats=counted)
        mlp = llm.model.layers[-1].mlp
        mlp.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
        llm.generate([[1, 2, 3, 4], [5], [6, 7]], SamplingParams(max_new_tokens=1, temperature=0))
    assert seen == [3, 3]


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-30B-A3B", "Qwen3-235B-A22B", "small", "tiny-shape"])
def test_parameters_are_those_that_the_shape_gives(name):
    """Counted on the modules of a model without memory, against the sum written out here."""
    config = model_config(config_folder(name))
    h, total = config.hidden_size, config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    experts = active = 0
    for layer in range(config.num_layers):
        total += h * (config.q_size + 2 * config.kv_size) + config.q_size * h + 2 * config.head_dim + 2 * h
        if config.is_moe_layer(layer):
            total += config.num_experts * h
            experts += config.num_experts * 3 * h * config.moe_intermediate_size
            active += config.top_k * 3 * h * config.moe_intermediate_size
        else:
            total += 3 * h * config.intermediate_size
    total += h
    counted = planned_footprint(config, torch.bfloat16)
    assert counted[:3] == (total + experts, total + active, 2 * (total + experts))
    if name == "Qwen3-30B-A3B":
        # The model card says 30.5 B, 3.3 B of them active, and leaves out one of the two vocabulary matrices.
        assert (round(counted.parameters / 1e9, 1), round(counted.active / 1e9, 1)) == (30.5, 3.4)
    unread = 0 if config.tie_word_embeddings else config.vocab_size * h
    assert counted.shared_bytes == 2 * (total - unread)
    assert counted.expert_bytes == 2 * (3 * h * config.moe_intermediate_size if config.num_experts else 0)


def test_copy_bandwidth_is_that_of_the_median_copy_read_and_write(monkeypatch):
    """The first copy, ten times slower, is not counted; one outlier of the others changes nothing."""
    taken = [20.0, 3.0, 1.0, 1.0, 50.0, 2.0, 3.0, 1.0, 3.0, 1.0]
    ticks = iter([tick for i, seconds in enumerate(taken) for tick in (100.0 * i, 100.0 * i + seconds)])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(ticks))
    assert roofline.copy_bandwidth(torch.device("cpu"), size=4096) == 2 * 4096 / 2.0
    assert next(ticks, None) is None


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
    speed = r"[\d,.]+ tokens/s · [\d,.]+ [MG]B to read, [\d,.]+ GB/s, \d+% of the copy bandwidth"
    line = "{}: {} tokens? in {} steps?, " + speed
    assert code == 0 and re.search(line.format("decode", 4, 4), err)
    assert re.search(line.format("prefill", r"\d+", 1), err) and "time to first token" in err and "peak memory" in err


def test_expert_stats_write_json_and_a_picture(generate, tmp_path):
    pytest.importorskip("matplotlib")
    code, out, err = generate("--expert-stats", "load.json")
    report = json.loads((tmp_path / "load.json").read_text())
    assert code == 0 and len(report["layers"]) == 5 and report["decode_steps"] == 4
    assert all(layer["distinct_experts_per_decode_step"] == 4 for layer in report["layers"])
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG") and "load.json" in err


def test_the_heat_map_shows_multiples_of_a_fair_share(tmp_path, monkeypatch):
    axes = pytest.importorskip("matplotlib.axes").Axes
    imshow, shown = axes.imshow, []
    monkeypatch.setattr(axes, "imshow", lambda self, x, **more: shown.append(x.tolist()) or imshow(self, x, **more))
    draw_heat_map(torch.tensor([[4, 2, 2, 0], [0, 0, 0, 0]]), [1, 3], tmp_path / "a.png")
    assert shown == [[[2, 1, 1, 0], [0, 0, 0, 0]]]


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
    with pytest.raises(Qwen3Error, match="stop strings need text"):
        llm.generate([[1]], SamplingParams(bad_words="x"))
    assert llm.stats.experts is None  # nobody asked for them, and counting costs time
