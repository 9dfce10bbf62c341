"""generate, end to end on a small checkpoint, both ways; its gate finds one changed weight."""

import argparse
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from benchmarks import common
from benchmarks.common import Timing
from benchmarks.questions import generate
from qwen3.measure.stats import Phase
from tests.qwen3.conftest import write_checkpoint

SIZES = ["--prefill", "9", "--batch", "1", "3", "--context", "6", "--new-tokens", "3", "--rounds", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    # Every token takes all eight experts, so that no choice depends on rounding.
    write_checkpoint(path, num_hidden_layers=2, num_experts_per_tok=8)
    return path


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(generate, "bytes_per_second", lambda device, folder: 1e9)
    monkeypatch.setattr(generate, "TRIAL_TOKENS", 2)


def run(folder, *arguments):
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return generate.run(parser.parse_args(["--model", str(folder), *SIZES, "--device", "cpu", *arguments]))


@pytest.mark.parametrize(
    ("together", "dtypes"),
    [pytest.param(True, ["float32", "bfloat16"], marks=pytest.mark.slow), (False, ["bfloat16"])],
    ids=["both sides loaded", "one after the other"],
)
def test_a_row_for_each_cell(monkeypatch, folder, together, dtypes):
    monkeypatch.setattr(generate, "fits_twice", lambda *model: together)
    turns = []

    def side_by_side(runs, rounds):
        turns.append((list(runs), rounds))
        return common.side_by_side(runs, rounds)

    monkeypatch.setattr(generate, "side_by_side", side_by_side)
    answer = run(folder, "--dtypes", *dtypes)
    assert turns == ([(["ours", "theirs"], 2)] * 6 if together else [(["ours"], 2)] * 3 + [(["theirs"], 2)] * 3)
    assert answer.name == f"generate_{folder.name}"
    assert answer.settings["both_sides_loaded"] == ("together" if together else "one after the other")
    cells = [("decode", 1, 6), ("decode", 3, 6), ("prefill", 1, 9)]
    assert [(r["dtype"], r["phase"], r["batch"], r["context"]) for r in answer.figures] == [
        (dtype, *cell) for dtype in dtypes for cell in cells
    ]
    for row in answer.figures:
        assert row["transformers"] in row["transformers_tried_ms"] and len(row["transformers_tried_ms"]) >= 4
        assert row["within"] and row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"])
        tokens = row["batch"] * (row["context"] if row["phase"] == "prefill" else 1)
        assert row["ours_tokens_per_second"] == pytest.approx(tokens / row["ours_ms"] * 1e3)
        if row["phase"] == "decode":
            limit = row["bytes_per_step"] / 1e9
            assert row["fraction_of_copy"] == pytest.approx(limit / row["ours_ms"] * 1e3, rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_changed_weight_is_found(folder, dtype, phase):
    settings = {"prefill": [6], "batch": [2], "context": [6], "new_tokens": 3}
    cpu, cell = torch.device("cpu"), generate.Cell(phase, 2, 6)
    ours, theirs = generate.Ours(folder, dtype, cpu, settings), generate.Theirs(folder, dtype, cpu)
    assert theirs.gate(cell, ours.answers(cell))["within"]
    ours.llm.model.layers[1].attention.o.weight.data[0] += 0.5
    with pytest.raises(RuntimeError, match=f"{phase}.*{dtype}"):
        theirs.gate(cell, ours.answers(cell))


@pytest.mark.parametrize("place", [0, -1])
def test_another_token_is_found_where_all_log_probabilities_agree(folder, place):
    """As after a near tie: the token before it in the list is as likely. The last token is read by nothing else."""
    settings = {"prefill": [6], "batch": [2], "context": [6], "new_tokens": 3}
    cpu, cell = torch.device("cpu"), generate.Cell("decode", 2, 6)
    ours, theirs = generate.Ours(folder, "float32", cpu, settings), generate.Theirs(folder, "float32", cpu)
    answers = ours.answers(cell)
    wrong = answers[place].token_ids
    answers[place] = replace(answers[place], token_ids=[*wrong[:-1], (wrong[-1] + 1) % 64])
    with pytest.raises(RuntimeError, match="other greedy tokens"):
        theirs.gate(cell, answers)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_timed_decode_finds_its_prompts_cached_and_a_timed_prefill_computes_them(folder, phase):
    settings = {"prefill": [40], "batch": [3], "context": [40], "new_tokens": 4}
    ours = generate.Ours(folder, "float32", torch.device("cpu"), settings)
    cell = generate.Cell(phase, 3, 40)
    turn = ours.turn(cell)
    for _ in range(3):
        ours.llm.stats.prefill, ours.llm.stats.decode = Phase(), Phase()
        assert turn() > 0
        prefill, decode = ours.llm.stats.prefill, ours.llm.stats.decode
        # Two full blocks of each prompt are cached, the eight tokens after them are not.
        assert prefill.tokens == (3 * 40 if phase == "prefill" else 3 * 8)
        assert (decode.steps, decode.tokens) == ((0, 0) if phase == "prefill" else (3, 9))


class Rival(generate.Theirs):
    """Transformers' side with known times: the first call of an implementation is slow, as one that warms up is."""

    def __init__(self, fastest, sparse):
        self.fastest, self.sparse, self.calls, self.tried_ms = fastest, sparse, [], {}
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=50))

    def use(self, attention, experts):
        self.chosen = f"{attention} + {experts}"

    def tensor(self, prompts):
        return prompts

    def prompt(self, tokens):
        return ()

    def time(self, steps):
        warm = self.chosen in self.calls
        self.calls.append(self.chosen)
        return (1.0 if self.chosen == self.fastest else 2.0) if warm else 99.0 - len(self.calls)

    def decode(self, steps):
        return self.time(steps)

    def prefill(self, tokens, steps):
        return self.time(steps)


@pytest.mark.parametrize(
    "dtype, batch, groups",
    [(torch.float32, 3, [3]), (torch.bfloat16, 1, [1] * 8), (torch.bfloat16, 3, [3] * 3), (torch.bfloat16, 16, [16])],
)
def test_the_gate_looks_at_enough_sequences_and_none_is_cached(dtype, batch, groups):
    calls = []

    def answered(prompts, params):
        calls.append(len(prompts))
        return prompts

    config = SimpleNamespace(vocab_size=50)
    llm = SimpleNamespace(
        dtype=dtype, config=config, generate=answered, reset_prefix_cache=lambda: calls.append("empty")
    )
    cell = generate.Cell("decode", batch, 4)
    answers = generate.Ours.answers(SimpleNamespace(llm=llm), cell)
    assert calls == ["empty", *groups] and answers[:batch] == cell.prompts(50)


def test_bytes_are_those_of_the_steps_that_are_timed(monkeypatch):
    """Experts that are hit differ from step to step; a step of a cached prompt computes one token."""
    calls = []
    monkeypatch.setattr(generate, "prefill_seconds", lambda llm, prompts: calls.append(("cached", prompts)))
    monkeypatch.setattr(generate, "bytes_per_step", lambda llm, prompts, steps: calls.append((steps, prompts)) or 5.0)
    ours = SimpleNamespace(llm=None, new_tokens=7, prompts=lambda cell: [[1, 2]])
    assert generate.Ours.read(ours, generate.Cell("prefill", 1, 2)) is None and not calls
    assert generate.Ours.read(ours, generate.Cell("decode", 1, 2)) == 5.0
    assert calls == [("cached", [[1, 2]]), (7, [[1, 2]])]


def test_what_was_tried_for_another_cell_is_not_in_the_record():
    rival = Rival("", sparse=True)
    for phase in ("decode", "prefill"):
        rival.turn(generate.Cell(phase, 1, 4), 8)
        tried = {f"{a} + {e}" for a in generate.ATTENTION for e in generate.EXPERTS[phase]}
        assert set(rival.settings()["transformers_tried_ms"]) == tried


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_transformers_gets_its_fastest_implementation_found_warm(phase):
    implementations = [f"{a} + {e}" for a in generate.ATTENTION for e in generate.EXPERTS[phase]]
    for fastest in implementations:
        rival = Rival(fastest, sparse=True)
        rival.turn(generate.Cell(phase, 1, 4), 8)
        assert rival.chosen == fastest and sorted(rival.calls) == sorted(2 * implementations)
        assert rival.settings() == {
            "transformers": fastest,
            "transformers_tried_ms": {name: 1e3 if name == fastest else 2e3 for name in implementations},
        }


def test_a_step_of_theirs_takes_as_long_as_a_forward(folder, monkeypatch):
    theirs = generate.Theirs(folder, "float32", torch.device("cpu"))
    cache, first = theirs.prompt(torch.tensor([[5, 6, 7]]))
    clock, asked, read = SimpleNamespace(now=0.0), [], []
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock.now)
    forward, tolist = theirs.model.forward, torch.Tensor.tolist

    def slow(tokens, **kwargs):
        clock.now += 0.25
        asked.append((tokens.shape[1], kwargs.get("logits_to_keep", 0)))
        return forward(tokens, **kwargs)

    monkeypatch.setattr(theirs.model, "forward", slow)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: read.append(x.shape) or tolist(x))
    assert theirs.decode(cache, first, 4) == 0.25
    # Every token is read before the next step, as a server does, and as this engine does.
    assert asked == [(1, 0)] * 4 and read.count((1, 1)) == 4
    asked.clear()
    assert theirs.prefill(torch.tensor([[5, 6, 7]]), 4) == 0.25
    assert asked == [(3, 1)]  # the logits of the last token alone, as ours


def test_a_row_of_known_times():
    times = {"ours": Timing(0.02, 0.01, 0.03), "theirs": Timing(0.05, 0.04, 0.06)}
    settings = {"copy_bytes_per_second": 1e9}
    decode = generate.row_of(generate.Cell("decode", 8, 128), "float32", times, 1e7, {}, settings)
    assert (decode["ratio"], decode["ours_tokens_per_second"], decode["fraction_of_copy"]) == pytest.approx(
        (2.5, 400, 0.5)
    )
    prefill = generate.row_of(generate.Cell("prefill", 2, 128), "float32", times, None, {}, settings)
    assert prefill["theirs_tokens_per_second"] == pytest.approx(2 * 128 / 0.05) and "fraction_of_copy" not in prefill


def test_float32_of_the_same_weights(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    wide = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).float().eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        before = model(tokens).logits
        with generate.in_float32(model):
            torch.testing.assert_close(model(tokens).logits, wide(tokens).logits)
        assert torch.equal(model(tokens).logits, before) and model.lm_head.weight.dtype == torch.bfloat16


def test_a_decode_turn_leaves_the_cache_as_it_was(folder):
    theirs = generate.Theirs(folder, "float32", torch.device("cpu"))
    tokens = torch.tensor([[5, 6, 7]])
    cache, first = theirs.prompt(tokens)
    for _ in range(2):
        assert theirs.decode(cache, first, 4) > 0
        assert cache.get_seq_length() == 3


def test_a_shape_of_configs_is_written_as_a_checkpoint():
    cpu = torch.device("cpu")
    with generate.checkpoint("tiny-shape", torch.bfloat16, cpu) as folder:
        settings = {"prefill": [4], "batch": [1], "context": [4], "new_tokens": 2}
        ours = generate.Ours(folder, "bfloat16", cpu, settings)
        assert ours.llm.config.num_experts == 16 and not ours.llm.random_weights
        answers = ours.answers(generate.Cell("decode", 1, 4))
        assert [len(answer.token_ids) for answer in answers] == [generate.GATE_TOKENS] * generate.GATE_SEQUENCES
        assert [answers[0].prompt_token_ids] == ours.prompts(generate.Cell("decode", 1, 4))
    assert not folder.exists()


def test_both_sides_are_held_where_they_fit(monkeypatch, folder):
    weights = generate.planned_footprint(generate.model_config(folder), torch.bfloat16).nbytes
    for free, fits in ((3 * weights, True), (2 * weights, False)):
        monkeypatch.setattr(generate, "available_bytes", lambda device, free=free: free)
        assert generate.fits_twice(folder, torch.bfloat16, torch.device("cpu")) is fits
