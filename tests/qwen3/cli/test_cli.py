"""The command line as a user meets it: its text, its errors, its exit codes."""

import argparse
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields

import pytest

from qwen3.cli import options
from qwen3.config.engine import EngineConfig


def one_line_error(result):
    code, out, err = result
    assert code == 2 and out == "" and "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and err.splitlines()[-1] == errors[0]
    return errors[0]


def test_generate_prints_text_and_nothing_else(generate, folder):
    code, out, err = generate("--prompt", "hello", "--temperature", 0)
    assert code == 0 and out.endswith("\n") and str(folder) in err
    assert re.search(r" · cpu · float32 · cpu backend$", err, re.MULTILINE)
    assert generate("--prompt", "hello", "--temperature", 0)[1] == out
    assert generate("--prompt", "hello", "--temperature", 0, "--no-kv-cache")[1] == out
    assert generate("--prompt", "hello", "--temperature", 0, "--raw")[1] != out
    assert generate("--prompt", "hello", "--temperature", 0, "--no-thinking")[1] != out
    assert generate("--prompt", "hello", "--temperature", 0, "--system", "be brief")[1] != out


def test_every_sampling_option_changes_the_text_or_bounds_it(generate):
    base = ("--prompt", "hello", "--seed", 1)
    text = generate(*base)[1]
    assert generate(*base)[1] == text
    changed = [("--seed", 2), ("--temperature", 3), ("--top-k", 1), ("--top-p", 0.01), ("--min-p", 1)]
    changed += [("--repetition-penalty", 50), ("--presence-penalty", 90), ("--frequency-penalty", 90)]
    for option in changed:
        assert generate(*base, *option)[1] != text, option
    assert len(generate(*base, "--max-new-tokens", 1)[1]) < len(text)
    letter = text[3]
    assert generate(*base, "--stop", letter)[1] == text[: text.index(letter)] + "\n"


def test_the_embedded_model_answers_without_any_option(run):
    code, out, err = run("generate", "--prompt", "def fibonacci(n):", "--max-new-tokens", 8, "--stats")
    assert code == 0 and out.strip() and "tiny" in err
    assert "tokens/s" in err and "time to first token" in err and "peak memory" in err


def test_dtype_device_backend_and_length(generate):
    options = ("--dtype", "bfloat16", "--device", "cpu", "--backend", "reference", "--max-model-len", 30)
    code, out, err = generate("--prompt", "hello", *options)
    assert code == 0 and "bfloat16" in err


def test_every_engine_option_is_a_flag():
    parser = argparse.ArgumentParser()
    options.add_engine(parser)
    assert options.engine_options(parser.parse_args([])) == {
        option.name: option.default for option in fields(EngineConfig) if "help" in option.metadata
    }
    given = ["--kv-block-size", "4", "--memory-utilization", "0.5", "--no-kv-cache", "--no-cuda-graphs"]
    changed = options.engine_options(parser.parse_args([*given, "--max-model-len", "7", "--backend", "cpu"]))
    assert changed["kv_block_size"] == 4 and changed["memory_utilization"] == 0.5 and changed["max_model_len"] == 7
    assert changed["kv_cache"] is False and changed["cuda_graphs"] is False and changed["prefix_caching"] is None


@pytest.mark.parametrize("place", [(), (0,), (1,), (0, 1)], ids=["without", "before", "after", "both"])
def test_verbose_shows_the_messages(run, folder, place):
    arguments = ["generate", "--repo_id", folder, "--prompt", "hello", "--max-new-tokens", 1]
    for at in place:
        arguments.insert(at, "-v") if at == 0 else arguments.append("--verbose")
    code, out, err = run(*arguments)
    assert code == 0 and ("KV cache of" in err) == bool(place)
    assert len(logging.getLogger("qwen3").handlers) == 1  # the NullHandler: nothing is left of a command


def test_a_message_of_the_log_is_one_line(run, monkeypatch):
    def say(args):
        logging.getLogger("qwen3").warning("%s is odd", "a\nb\x1b")
        return 0

    monkeypatch.setattr("qwen3.cli.list.run", say)
    assert run("list") == (0, "", "a\\nb\\x1b is odd\n")


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "x" * 300], "300|3\\d\\d tokens"),
        (["--prompt", "x", "--temperature", "-1"], "temperature"),
        (["--prompt", "x", "--temperature", "warm"], "temperature"),
        (["--prompt", "x", "--top-p", "7"], "top_p"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--prompt", "x", "--device", "cuda:77"], "cuda:77"),
        (["--prompt", "x", "--max-model-len", "100000"], "max_model_len"),
        (["--prompt", "x", "--output", "o.jsonl"], "--prompts-file"),
        (["--prompt", "x", "--colour", "red"], "--colour"),
        (["--prompt", "x", "--raw", "--system", "s"], "chat template"),
        ([], "--prompt"),
        (["--prompts-file", "none.jsonl"], "none.jsonl"),
    ],
)
def test_errors_are_one_line_and_exit_2(generate, arguments, named):
    assert re.search(named, one_line_error(generate(*arguments)))


def test_errors_about_models(run, folder, tmp_path):
    assert "no such model" in one_line_error(run("generate", "--prompt", "x", "--repo_id", "./nowhere"))
    error = one_line_error(run("generate", "--prompt", "x", "--repo-id", "Qwen/Qwen3-30B-A3B"))
    assert "qwen3 download Qwen/Qwen3-30B-A3B" in error
    (tmp_path / "empty").mkdir()
    assert "config.json" in one_line_error(run("info", tmp_path / "empty"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_bytes((folder / name).read_bytes())
    assert "tokenizer.json" in one_line_error(run("generate", "--prompt", "x", "--repo_id", broken))


def test_info(run, folder):
    code, out, err = run("info", folder, "--dtype", "bfloat16")
    assert code == 0 and err == ""
    for part in ("8 experts of 48, 2 per token", "3 layers", "parameters", "KV cache", "768 bytes", "256 tokens"):
        assert part in out
    assert run("info", "-m", folder, "--dtype", "bfloat16")[1] == out != run("info", "-m", "tiny", "--device", "cpu")[1]
    assert "one of them is enough" in one_line_error(run("info", folder, "-m", folder))


def test_chat(run, folder, monkeypatch):
    lines = "hello\n/system be brief\nhello\n/reset\n/what\n/exit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = run("chat", "--repo_id", folder, "--max-new-tokens", 5, "--temperature", 0)
    assert code == 0 and err.count("> ") == 6 and "system message set" in err
    first = run_chat(run, folder, monkeypatch, "hello\n")
    assert out.startswith(first)
    assert run_chat(run, folder, monkeypatch, "hello\n/reset\nhello\n") == first * 2
    history = run_chat(run, folder, monkeypatch, "hello\nhello\n")
    assert history.startswith(first) and history != first * 2


def run_chat(run, folder, monkeypatch, lines):
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, _ = run("chat", "--repo_id", folder, "--max-new-tokens", 5, "--temperature", 0)
    assert code == 0
    return out


def test_chat_goes_on_after_a_turn_that_is_too_long(run, folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 300 + "\nhello\n"))
    code, out, err = run("chat", "--repo_id", folder, "--max-new-tokens", 5)
    assert code == 0 and "error: " in err and "/reset" in err and out.strip()


def test_chat_needs_a_template(run):
    assert "chat template" in run("chat", "--repo_id", "tiny")[2].splitlines()[-1]


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(folder):
    command = f"{sys.executable} -m qwen3 generate --repo_id {folder} --prompt hello --max-new-tokens 200 | head -c 1"
    # Bytes, not text: the one that is read may be the first of a character.
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=120)
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr and len(done.stdout) == 1


@pytest.mark.slow
def test_ctrl_c_again_and_again_exits_130(tmp_path):
    """In a long prefill, while the engine's thread ends."""
    (tmp_path / "long.jsonl").write_text((json.dumps({"prompt": "word " * 900}) + "\n") * 16)
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen3", "generate", "--repo_id", "tiny", "--raw", "--prompts-file", "long.jsonl"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert "parameters" in process.stderr.readline(), "the model is loaded"
    for _ in range(8):
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "terminate" not in err, err


@pytest.mark.slow
def test_ctrl_c_exits_130(folder):
    arguments = [sys.executable, "-m", "qwen3", "generate", "--repo_id", "tiny", "--prompt", "hello", "--no-kv-cache"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*arguments, "--max-new-tokens", "1500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A process in the background ignores Ctrl-C, and so do the processes that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert len(process.stdout.read(20)) == 20, "the answer is on its way"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
