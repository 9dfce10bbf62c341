"""dryrun: the engine on cards that are not here. What is still wrong with it is found, one test for each hazard."""

import argparse
import json

import pytest

from benchmarks import __main__ as runner
from benchmarks.questions import dryrun
from qwen3.errors import Qwen3Error
from qwen3.load.resolve import TINY

pytest.importorskip("triton")


def drive(tmp_path, *options: str) -> tuple[int, list[dict], dict]:
    """The exit code, everything that was found, and the record."""
    out = tmp_path / "found.json"
    code = runner.main(["dryrun", *options, "--json", str(out), "--output", str(tmp_path)])
    return code, json.loads(out.read_text()), json.loads((tmp_path / "dryrun.json").read_text())


@pytest.mark.slow
def test_the_embedded_model_on_one_card(tmp_path, capfd):
    code, (found,), record = drive(tmp_path, "--model", "tiny", "--short", "--max-num-seqs", "8", "--logits")
    assert not any("raises" in line or "did not happen" in line for line in found["breaches"]), found["breaches"]
    (run,) = found["runs"]
    assert run["card"] == "sm_90" and run["device"] == "cuda:0" and run["dtype"] == "bfloat16"
    sizes = run["bytes"]
    assert sizes["weights"] > (TINY / "model.safetensors").stat().st_size
    assert sizes["weights"] + sizes["kv_cache"] < sizes["after_load"] <= sizes["peak"] < sizes["card"]
    assert sizes["graph_results"] <= sizes["graphs"]
    phases = {step["phase"] for step in run["steps"]}
    assert {"prefill", "decode 4", "sampled: everything, 2", "log-probabilities", "mixed", "prefix hit"} <= phases
    replayed = [step for step in run["steps"] if step["phase"] == "decode 4" and step["graph_nodes"]]
    assert replayed and {step["tokens"] for step in replayed} == {4}
    for variant in run["variants"]:
        assert variant["registers"] > 0 and variant["stack_bytes"] == 0 and variant["arguments"] and variant["grids"]
    assert {"prefill_kernel", "decode_split_kernel", "sample_kernel"} <= {v["kernel"] for v in run["variants"]}

    (figure,) = record["figures"]
    assert figure["model"] == "tiny" and figure["breaches"] == found["breaches"]
    assert figure["variants"] == len(run["variants"]) and figure["layer_launches"]["graph, decode 1"] == 9
    assert record["settings"]["on"] == "cuda:0" and "benchmarks/dryrun/limits.py" in record["sources"]
    said = capfd.readouterr().out
    assert code == (1 if found["breaches"] else 0)
    assert all(f"WRONG {line}" in said for line in found["breaches"])
    assert f"{len(found['breaches'])} breaches on 1 cards and models" in said


@pytest.mark.slow
def test_a_device_that_is_not_the_first(tmp_path):
    _, (found,), _ = drive(tmp_path, "--model", "tiny", "--short", "--max-num-seqs", "8", "--logits", "--second-device")
    assert [run["device"] for run in found["runs"]] == ["cuda:0", "cuda:1"]
    wrong = "prefill_kernel is launched on cuda:0 with a tensor on cuda:1"
    assert any(line == f"[load] {wrong}" for line in found["breaches"]), (
        "on the current device, not on that of its tensors"
    )
    wrong = "in a capture: route_kernel is launched on cuda:0 with a tensor on cuda:1"
    assert any(wrong in line for line in found["breaches"]), "the second model records on the first one's stream"


@pytest.mark.slow
def test_memory_that_is_in_no_budget(tmp_path):
    _, (found,), _ = drive(tmp_path, "--model", "Qwen3-0.6B", "--cards", "89", "--layers", "2")
    assert found["runs"][0]["bytes"]["card"] == 25_200_000_000
    assert any("held at the peak, memory_utilization allows 22.68" in line for line in found["breaches"])


@pytest.mark.slow
def test_three_layers_of_a_large_model(tmp_path):
    _, (found,), record = drive(tmp_path, "--layers", "3")
    (run,) = found["runs"]
    raised = [line for line in found["breaches"] if "raises" in line]
    assert len(raised) == 1 and raised[0].startswith("[logits 40000] raises OutOfMemoryError"), raised
    assert run["layers"] == 3 and run["dtype"] == "bfloat16" and all(v["stack_bytes"] == 0 for v in run["variants"])
    launches = record["figures"][0]["layer_launches"]
    assert {name.split(",")[0] for name in launches} == {"graph", "eager"}
    assert set(launches.values()) >= {8, 9, 11, 12, 13}, "a graph of 1, 16 and 24 tokens, and a prefill of 3 and more"
    assert not any("32-bit" in line or "grid" in line for line in found["breaches"])


@pytest.mark.parametrize(
    "options, said",
    [
        (["--model", "no-such"], "no model shape 'no-such'"),
        (["--dtype", "int8"], "dtype 'int8' is not supported"),
        (["--python", "/no/such/python"], "--python /no/such/python: cannot be run"),
        (["--cards", "75"], "75"),
        (["--layers", "-1"], "--layers -1"),
    ],
)
def test_what_the_user_can_fix_is_one_line(options, said, tmp_path, capsys):
    try:
        code = runner.main(["dryrun", *options, "--output", str(tmp_path)])
    except SystemExit as exit_:
        code = exit_.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and err.count("\n") == 1


def test_models_by_name_and_by_folder(tmp_path):
    assert dryrun.model_folder("tiny") == TINY and dryrun.model_folder("small").parent.name == "configs"
    (tmp_path / "config.json").write_text("{}")
    assert dryrun.model_folder(str(tmp_path)) == tmp_path


def test_a_process_that_breaks_off_is_an_error(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    dryrun.add_arguments(parser)
    args = parser.parse_args(["--python", "/bin/false"])
    with pytest.raises(Qwen3Error, match="the dry run of .* on sm_90 broke off with exit code 1"):
        dryrun.dry_run(args, tmp_path, 90)
