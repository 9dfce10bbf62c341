"""Tables and plots follow from the records: byte for byte the same, different for a different record."""

import argparse
import copy
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

pytest.importorskip("matplotlib")

from benchmarks import provenance
from benchmarks.common import REPOSITORY, Timing, load_records, milliseconds
from benchmarks.report import main as report
from benchmarks.report import plots, tables
from qwen3 import Qwen3Error

MACHINE = {
    "cpu": "A Processor",
    "gpu": None,
    "threads": 2,
    "python": "3.12.1",
    "torch": "2.10.0",
    "triton": None,
    "transformers": "5.1.0",
    "commit": "0123456789" * 4 + "+",
}


def side(name, median):
    return milliseconds(name, Timing(median / 1e3, median / 1.1e3, median / 0.9e3))


def ratio(dtype, phase, batch, context, ours, theirs):
    row = {"dtype": dtype, "phase": phase, "batch": batch, "context": context, "ratio": theirs / ours}
    row |= side("ours", ours) | side("theirs", theirs) | {"ours_tokens_per_second": 1e3 * batch / ours}
    return row | {"transformers": "sdpa + eager"} | ({"fraction_of_copy": 0.5} if phase == "decode" else {})


def percentiles(name, *values):
    return {f"{name}_p{p}_ms": value for p, value in zip((50, 90, 99), values)}


FIGURES = {
    "generate_small": [
        ratio(dtype, *cell)
        for dtype in ("float32", "bfloat16")
        for cell in (("decode", 1, 128, 20, 30), ("prefill", 1, 512, 900, 810))
    ],
    "kv_cache": [
        {"context": n, "ratio": n / 64} | side("with", 3.0) | side("without", 3.0 * n / 64) for n in (64, 256)
    ],
    "load": [
        {"cache": cache} | side("ours", 800) | side("theirs", 1600)
        | {f"{s}_{key}": value for s in ("ours", "theirs") for key, value in (("load_ms", 700), ("peak_bytes", 9e8))}
        for cache in ("cold", "warm")
    ],
    "serve": [
        {"requests_per_second": rate, "tokens_per_second": 30 * rate}
        | percentiles("first_piece", 10, 20 * rate) | percentiles("inter_piece", 3, 4, 8)
        for rate in (2.0, 8.0)
    ],
    "eventloop": [
        {"situation": name} | side("delay", delay)
        for name, delay in (("nothing runs", 1), ("streams arrive", 9))
    ],
    "batching": [
        {"figure": "batching", "side": name, "tokens_per_second": speed, "speed_of_static": speed / 100,
         "first_token_p50_ms": 5, "first_token_p90_ms": 9}
        for name, speed in (("continuous", 150), ("static", 100))
    ] + [
        {"figure": "prefix", "arrival": arrival, "requests": 32, "system_tokens": 512, "ratio": 1.0}
        | side("with", 4.0) | side("without", 4.0)
        for arrival in ("one after the other", "all at once")
    ],
    "scheduler": [{"sequences": n, "median_us": 0.8 * n, "us_per_sequence": 0.8} for n in (16, 256)],
    "fits": [
        {"model": "M", "weight_bytes": 5e9, "kv_bytes_per_token": 1000, "card": card, "memory_gb": size,
         "tokens": tokens}
        for card, size, tokens in (("small", 4, 0), ("large", 8, 2_200_000))
    ],
    "experts": [
        {"figure": "distinct", "layer": layer, "tokens": n, "batch": batch, "mean": 4 + n - (batch == "neighbours"),
         "uniform": 4.5 + n}
        for layer in (0, 1) for n in (1, 8) for batch in ("unrelated", "neighbours")
    ] + [{"figure": "load", "layer": layer, "tokens_per_expert": [10, 20, 30]} for layer in (0, 1)] + [
        {"figure": "step", "model": "Large", "tokens": n, "weight_bytes": 2e9 * n} for n in (1, 8)
    ],
    "bandwidth": [{"bytes_per_second": 2.5e10, "min_bytes_per_second": 2e10, "max_bytes_per_second": 3e10}],
    "verify": [
        {"dtype": dtype, "backend": "reference", "place": place, "rms_error": 1e-6, "transformers_rms_error": 2e-6,
         "within": True, "same_argmax": 1.0}
        for dtype in ("float32", "bfloat16") for place in ("layer 0", "logits")
    ],
    "ops.cuda": [
        {"figure": "time", "model": "M", "op": op, "setting": "1 tokens", "side": name, "median_us": time, "bytes": 1e6,
         "flops": flops, "tflops": flops / time / 1e6, "fraction_of_limit": 0.8}
        for op, flops in (("linear", 1e6), ("moe_experts", 5e7)) for name, time in (("triton", 4.0), ("compiled", 6.0))
    ] + [
        {"figure": "time", "model": "M", "op": "sample", "setting": "1 tokens", "side": "triton", "failed": "no kernel"}
    ],
}  # fmt: skip
SETTINGS = {
    "model": "tiny",
    "device": "cpu",
    "dtype": "bfloat16",
    "checkpoint_bytes": 9.2e8,
    "bytes_per_second": 1e12,
    "flops_per_second": 1e15,
}
RECORDS = {
    name: {"name": name, "question": "?", "machine": MACHINE, "settings": SETTINGS, "figures": figures}
    for name, figures in FIGURES.items()
}
PLOTTED = {"generate_small", "kv_cache", "serve", "experts", "ops.cuda"}


@pytest.fixture
def fast_plots(monkeypatch):
    """Replaces plots by their records, for tests of other things."""
    monkeypatch.setattr(report, "plot", lambda name, record: json.dumps(record) if name in PLOTTED else None)


@pytest.fixture
def house(tmp_path):
    """A README with every table, and records; -> run(*arguments), the exit code."""
    marks = [f"Before {name}.\n<!-- table {name} -->\n<!-- end -->\n" for name in RECORDS]
    (tmp_path / "README.md").write_text("# Title\n\n" + "\n".join(marks) + "\nAfter.\n")
    (tmp_path / "results").mkdir()
    for name, record in RECORDS.items():
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(record))
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    folders = ("--readme", tmp_path / "README.md", "--results", tmp_path / "results", "--plots", tmp_path / "plots")
    return lambda *arguments: report.run(parser.parse_args([*map(str, folders), *arguments]))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_once_it_stays_the_same_to_the_byte(house, tmp_path, fast_plots):
    assert house("--check") == 1 and not (tmp_path / "plots").exists()
    assert house() == 0
    first = contents(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == PLOTTED
    assert house("--check") == 0 and house() == 0
    assert contents(tmp_path) == first


def test_text_outside_of_tables_is_left_alone(house, tmp_path, fast_plots):
    house()
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Title\n\nBefore generate_small.\n") and text.endswith("\n<!-- end -->\n\nAfter.\n")
    assert (
        "| decode, batch 1, 128 before | float32 | **1.50** | 20.00 (18.18 to 22.22) | 30.00 (27.27 to 33.33) |" in text
    )
    assert (
        "<sub>A Processor, 2 threads; PyTorch 2.10.0, transformers 5.1.0, Python 3.12.1, commit `012345678+`</sub>"
        in text
    )


def test_a_number_edited_by_hand_is_found(house, tmp_path, fast_plots):
    house()
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("**1.50**", "**2.50**"))
    assert house("--check") == 1 and "**2.50**" in readme.read_text()
    house()
    assert "**1.50**" in readme.read_text() and house("--check") == 0


@pytest.mark.parametrize("name", sorted(PLOTTED))
def test_another_record_is_another_table_and_plot(name):
    record = copy.deepcopy(RECORDS[name])
    before = plots.plot(name, record), tables.table(name, record)
    changed = record["figures"][0]
    for key in {"ratio", "with_ms", "tokens_per_second", "mean", "tflops", "median_us"} & set(changed):
        changed[key] *= 1.05
    after = plots.plot(name, record), tables.table(name, record)
    assert before[0] != after[0] and before[1] != after[1]


@pytest.mark.slow
def test_plots_do_not_depend_on_the_process(tmp_path):
    """Nor on the order of a set or on the time."""
    (tmp_path / "records.json").write_text(json.dumps(RECORDS))
    code = (
        "import json, sys, hashlib\nfrom benchmarks.report.plots import plot\nrecords = json.load(open(sys.argv[1]))\n"
    )
    code += "print(hashlib.sha256(''.join(plot(n, r) or '' for n, r in records.items()).encode()).hexdigest())"
    command = [sys.executable, "-c", code, str(tmp_path / "records.json")]
    environment = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    here = "".join(plots.plot(name, record) or "" for name, record in RECORDS.items())
    assert done.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_a_plot_whose_record_is_gone_goes_too(house, tmp_path, fast_plots):
    house()
    (tmp_path / "results/serve.json").unlink()
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("<!-- table serve -->", "<!-- table kv_cache -->"))
    assert house("--check") == 1 and (tmp_path / "plots/serve.svg").exists()
    house()
    assert not (tmp_path / "plots/serve.svg").exists() and house("--check") == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table ops -->\n<!-- end -->\n", "python -m benchmarks ops"),
        ("<!-- table kv_cache -->\n1\n", "needs a line"),
        ("<!-- end -->\n", "needs a line"),
        ("<!-- table kv_cache -->\n<!-- table kv_cache -->\n<!-- end -->\n<!-- end -->\n", "needs a line"),
    ],
    ids=["no record", "no end", "no begin", "nested"],
)
def test_markers_that_do_not_fit_are_refused(house, tmp_path, fast_plots, text, message):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(Qwen3Error, match=message):
        house()
    assert (tmp_path / "README.md").read_text() == text and not (tmp_path / "plots").exists()


def test_a_record_without_a_table_is_refused(house, tmp_path, fast_plots):
    (tmp_path / "README.md").write_text("<!-- table other -->\n<!-- end -->\n")
    (tmp_path / "results/other.json").write_text(json.dumps(RECORDS["serve"]))
    with pytest.raises(Qwen3Error, match="other has no table"):
        house()


def test_ops_are_summed_up_over_their_sizes():
    times = {
        ("1 tokens", "reference"): 4.0,
        ("1 tokens", "eager"): 6.0,
        ("16 tokens", "reference"): 2.0,
        ("16 tokens", "eager"): 5.0,
        ("2 tokens", "reference"): 1.0,
    }
    figures = [
        {"figure": "time", "model": "M", "op": "linear", "setting": setting, "side": name, "median_us": time}
        | {"fraction_of_limit": time / 10}
        for (setting, name), time in times.items()
    ]
    failed = {"figure": "time", "model": "M", "op": "sample", "setting": "1 tokens", "side": "eager", "failed": "no"}
    text = tables.ops({"figures": [*figures, failed, {"figure": "compiled"}]})
    assert "| M | `linear` | 3 | 2.00 (1.50 to 2.50) | 20% (10% to 40%) |" in text and "sample" not in text


def test_a_record_of_a_gpu_names_the_gpu():
    record = copy.deepcopy(RECORDS["serve"])
    record["machine"]["gpu"] = "A Card"
    record["settings"]["device"] = "cuda:0"
    assert tables.measured_on(record).startswith("<sub>A Card; PyTorch")
    record["settings"]["device"] = "cpu"
    assert tables.measured_on(record).startswith("<sub>A Processor, 2 threads;")


def test_every_plot_is_labelled_and_bars_start_at_zero():
    for name in PLOTTED:
        with plots.matplotlib.rc_context(plots.STYLE):
            figure = plots.draw(name, RECORDS[name])
        for axes in figure.axes:
            assert axes.get_ylabel() and (
                axes.get_xlabel() or name == "generate_small" or axes.get_label() == "<colorbar>"
            )
        if name == "generate_small":
            assert figure.axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize("path", report.README_FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_readme_follows_from_the_committed_records(path):
    text = path.read_text(encoding="utf-8")
    records = load_records()
    assert report.with_pictures(report.with_tables(text, records, path), records, path) == text
    assert len(text.splitlines()) < 250
    images = re.findall(r"!\[[^]]*]\(([^)]+)\)", text)
    assert images and all((path.parent / image).is_file() for image in images)


def test_the_first_shell_commands_of_the_readme_are_those_that_ci_runs():
    blocks = re.findall(
        r"^```bash\n(.*?)^```$", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    new = "python3 -m venv .venv && .venv/bin/pip install "
    # The recording shows the command that the reader is told to run.
    shown = shlex.split(load_records()["terminal"]["settings"]["command"])
    assert shlex.split(blocks[0])[-len(shown) + 1 :] == shown[1:]
    assert (
        blocks[0]
        == new + '. && .venv/bin/qwen3 generate --prompt "def fibonacci(n):" --max-new-tokens 60 --seed 7 --stats\n'
    )
    assert blocks[1] == new + '-e ".[test]" && .venv/bin/python -m pytest -q\n'


def lines_of(figure):
    """x and y of each labelled line of each panel, by its label."""
    return [
        {line.get_label(): [list(map(float, values)) for values in line.get_data()] for line in axes.get_lines()}
        for axes in figure.axes
    ]


def test_lines_are_the_columns_of_the_record_under_their_own_label():
    with plots.matplotlib.rc_context(plots.STYLE):
        cache, serve, experts = (lines_of(plots.draw(name, RECORDS[name])) for name in ("kv_cache", "serve", "experts"))
    assert cache[0]["with the cache"] == [[64, 256], [3, 3]] and cache[0]["without the cache"] == [[64, 256], [3, 12]]
    speed, first, between = serve
    assert list(speed.values()) == [[[2, 8], [60, 240]]]
    assert first == {"p90": [[2, 8], [40, 160]], "p50": [[2, 8], [10, 10]]}
    assert {label: y for label, (_, y) in between.items()} == {"p99": [8, 8], "p90": [4, 4], "p50": [3, 3]}
    counts = {label.partition(" (")[0]: y for label, (_, y) in experts[0].items()}
    assert counts == {
        "chosen at random": [5.5, 12.5],
        "tokens of unrelated places": [5, 12],
        "neighbouring tokens": [4, 11],
    }


def test_bars_are_the_ratios_of_their_dtype_and_error_bars_their_range():
    with plots.matplotlib.rc_context(plots.STYLE):
        axes = plots.draw("generate_small", RECORDS["generate_small"]).axes[0]
    bars, errors = axes.containers[::2], axes.containers[1::2]
    assert [bar.get_label() for bar in bars] == ["float32", "bfloat16"]
    for bar, error in zip(bars, errors):
        assert [patch.get_height() for patch in bar] == pytest.approx([1.5, 0.9])
        (_, low), (_, high) = error.lines[2][0].get_segments()[0]
        assert (low, high) == pytest.approx((1.5 / 1.1 * 0.9, 1.5 / 0.9 * 1.1))


def test_points_of_ops_are_operations_per_byte_and_their_speed():
    with plots.matplotlib.rc_context(plots.STYLE):
        axes = plots.draw("ops.cuda", RECORDS["ops.cuda"]).axes[0]
    points = {group.get_label(): group.get_offsets().tolist() for group in axes.collections}
    assert points == {"experts": [[50, pytest.approx(12.5)]], "projections": [[1, pytest.approx(0.25)]]}


MESSAGES = {
    "generate_small": "decode in float32 1.50, decode in bfloat16 1.50, prefill in float32 0.90",
    "kv_cache": "After 256 tokens a token takes 3.0 ms with the KV cache and 12.0 ms without",
    "serve": "60 tokens/s and a first piece after 10 ms (median) at 2 requests/s",
    "experts": "Distinct experts of 3 that unrelated tokens hit: 5.0 for 1, 12.0 for 8",
    "ops.cuda": "The kernels reach 80% of the measured limit (median of 2 sizes)",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_picture_says_its_message_its_model_and_its_machine(name):
    with plots.matplotlib.rc_context(plots.STYLE):
        title = " ".join(plots.draw(name, RECORDS[name]).get_suptitle().split())
    assert MESSAGES[name] in title and "tiny in bfloat16 · A Processor, 2 threads" in title
    assert MESSAGES[name] in plots.plot(name, RECORDS[name])


def test_the_text_for_readers_of_a_picture_holds_its_numbers(house, tmp_path, fast_plots):
    readme = tmp_path / "README.md"
    readme.write_text("![old](plots/kv_cache.svg) and ![](../some/plots/serve.svg), ![other](logo.svg)\n")
    house()
    text = readme.read_text()
    assert f"![{MESSAGES['kv_cache']}" in text and f"![{MESSAGES['serve']}" in text and "![other](logo.svg)" in text
    assert house("--check") == 0
    readme.write_text("![x](plots/none.svg)\n")
    with pytest.raises(Qwen3Error, match="picture none has no record"):
        house()


def test_a_record_older_than_the_code_is_named_and_fails_nothing(house, tmp_path, fast_plots, capsys):
    house()
    for name, sources in {
        "serve": {"README.md": "0" * 12, "gone.py": "0" * 12},
        "load": sources_now("setup.py"),
    }.items():
        path = tmp_path / "results" / f"{name}.json"
        path.write_text(json.dumps(RECORDS[name] | {"sources": sources}))
    capsys.readouterr()
    house()
    assert house("--check") == 0
    lines = capsys.readouterr().out.splitlines()
    older = [line for line in lines if "older than the code" in line]
    assert older[-1:] == [
        "serve: table and plot are older than the code (README.md and 1 more changed): `python -m benchmarks serve`"
    ]
    assert "kv_cache: the record does not say which files made it: `python -m benchmarks kv_cache`" in lines
    assert not any(line.startswith("load:") for line in lines)


def sources_now(name):
    return {name: provenance.digest(REPOSITORY / name)}


def test_several_files_are_written(house, tmp_path, fast_plots):
    other = tmp_path / "other.md"
    other.write_text("<!-- table kv_cache -->\n<!-- end -->\n")
    files = ("--readme", str(tmp_path / "README.md"), str(other))
    assert house(*files, "--check") == 1 and house(*files) == 0 and house(*files, "--check") == 0
    assert "times as long" in other.read_text()


def test_a_file_that_is_not_there_is_named(house, tmp_path):
    with pytest.raises(Qwen3Error, match=r"missing\.md: cannot be read"):
        house("--readme", str(tmp_path / "missing.md"))
