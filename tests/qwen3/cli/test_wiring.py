"""Every option of every command reaches what it is for."""

import argparse
import io
import json
import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import tokenizers

from qwen3 import LLM, EngineConfig, Qwen3Error, SamplingParams
from qwen3.cli import main as cli
from qwen3.cli import model, speed
from qwen3.cli.main import COMMANDS
from qwen3.load import hub
from qwen3.measure import roofline

# Words of the command line, and the value that they stand for; none of them is the default.
ENGINE = {
    "device": (["--device", "cpu"], "cpu"),
    "dtype": (["--dtype", "float16"], "float16"),
    "backend": (["--backend", "reference"], "reference"),
    "max_model_len": (["--max-model-len", "33"], 33),
    "max_num_seqs": (["--max-num-seqs", "3"], 3),
    "max_num_batched_tokens": (["--max-num-batched-tokens", "64"], 64),
    "kv_block_size": (["--kv-block-size", "8"], 8),
    "memory_utilization": (["--memory-utilization", "0.5"], 0.5),
    "prefix_caching": (["--no-prefix-caching"], False),
    "cuda_graphs": (["--no-cuda-graphs"], False),
    "kv_cache": (["--no-kv-cache"], False),
}
SAMPLING = {
    "temperature": (["--temperature", "0.5"], 0.5),
    "top_k": (["--top-k", "3"], 3),
    "top_p": (["--top-p", "0.25"], 0.25),
    "min_p": (["--min-p", "0.125"], 0.125),
    "repetition_penalty": (["--repetition-penalty", "1.5"], 1.5),
    "presence_penalty": (["--presence-penalty", "-1"], -1.0),
    "frequency_penalty": (["--frequency-penalty", "-5e-1"], -0.5),
    "max_new_tokens": (["--max-new-tokens", "7"], 7),
    "stop": (["--stop", "a b", "--stop", "c"], ("a b", "c")),
    "stop_token_ids": (["--stop-token-ids", "1,2", "--stop-token-ids", "3"], (1, 2, 3)),
    "ignore_eos": (["--ignore-eos"], True),
    "seed": (["--seed", "-5"], -5),
    "logprobs": (["--logprobs", "2"], 2),
    "min_tokens": (["--min-tokens", "4"], 4),
    "logit_bias": (["--logit-bias", "5=2,6:-1.5", "--logit-bias", "7=0"], {5: 2.0, 6: -1.5, 7: 0.0}),
    "bad_words": (["--bad-words", "x", "--bad-words", "y z"], ("x", "y z")),
    "no_repeat_ngram_size": (["--no-repeat-ngram-size", "3"], 3),
    "include_stop_str_in_output": (["--include-stop-str-in-output"], True),
    "skip_special_tokens": (["--no-skip-special-tokens"], False),
}
# Options that the tests below name one by one, of commands that do not take them all from the fields.
ANSWERING = {
    "repo_id",
    "system",
    "no_thinking",
    "sanitize_control_tokens",
    "stats",
    "expert_stats",
    "verbose",
    *ENGINE,
    *SAMPLING,
}
TESTED = {
    "generate": ANSWERING | {"text", "prompt", "prompts_file", "output", "resume", "raw"},
    "chat": ANSWERING,
    "bench": {
        "repo_id",
        "random_weights",
        "batch",
        "context",
        "new_tokens",
        "rounds",
        "device",
        "dtype",
        "backend",
        "verbose",
    },
    "info": {"model", "repo_id", "device", "dtype", "verbose"},
    "download": {"model", "repo_id", "revision", "token", "verbose"},
    "list": {"verbose"},
}


class Pieces(list):
    """Stands in for a stream of text."""

    completion = None


@pytest.fixture(scope="module")
def llm(talker):
    return LLM(talker)


@pytest.fixture
def streamed(monkeypatch, llm):
    """Keeps (text of the prompt, parameters) of each stream in place of answering: the answers are ok 1, ok 2, ...

    The model is loaded once: only what is said to it differs.
    """
    monkeypatch.setattr(model, "LLM", lambda *arguments, **options: llm)
    calls = []

    def stream(self, token_ids, params):
        calls.append((self.tokenizer.decode(token_ids), params))
        return Pieces([f"ok {len(calls)}"])

    monkeypatch.setattr(LLM, "stream", stream)
    return calls


@pytest.fixture
def loaded(monkeypatch):
    """Keeps the arguments of LLM in place of loading it."""
    calls = []

    def load(folder, **options):
        calls.append((folder, options))
        raise Qwen3Error("loaded")

    monkeypatch.setattr(model, "LLM", load)
    monkeypatch.setattr("qwen3.llm.LLM", load)
    return calls


def test_every_option_of_every_command_is_tested_here():
    assert TESTED.keys() == COMMANDS.keys()
    for name in COMMANDS:
        [commands] = [a for a in cli._parser([name])._actions if isinstance(a, argparse._SubParsersAction)]
        assert {action.dest for action in commands.choices[name]._actions} - {"help"} == TESTED[name], name


def test_every_field_is_a_flag_of_its_name():
    assert {field.name for field in fields(SamplingParams)} == SAMPLING.keys()
    assert {field.name for field in fields(EngineConfig) if "help" in field.metadata} == ENGINE.keys()
    for name, (words, value) in (ENGINE | SAMPLING).items():
        flag = name.replace("_", "-")
        assert words[0] == (f"--no-{flag}" if value is False else f"--{flag}")


@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)], ids=" ".join)
def test_engine_options_reach_the_constructor(run, loaded, talker, command):
    def options(*words):
        loaded.clear()
        assert run(*command, "-m", talker, *words)[2].endswith("error: loaded\n")
        [(path, options)] = loaded
        assert path == talker
        return options

    base = options()
    assert base.pop("progress") is False and base.pop("expert_stats") is False
    assert base == {name: EngineConfig.__dataclass_fields__[name].default for name in ENGINE}
    for name, (words, value) in ENGINE.items():
        assert base[name] != value and base | {name: value} == {k: v for k, v in options(*words).items() if k in base}
    assert options("--stats")["expert_stats"] is True and options("--expert-stats", "o.json")["expert_stats"] is True


@pytest.mark.parametrize("command", [("generate", "x"), ("chat",)], ids=" ".join)
def test_sampling_options_reach_the_engine(run, streamed, talker, monkeypatch, command):
    def params(*words):
        streamed.clear()
        monkeypatch.setattr(sys, "stdin", io.StringIO("x\n"))
        assert run(*command, "-m", talker, *words)[0] == 0
        [(_, params)] = streamed
        return params

    assert params() == SamplingParams()
    for name, (words, value) in SAMPLING.items():
        assert getattr(SamplingParams(), name) != value and params(*words) == SamplingParams(**{name: value}), name
    every = params(*(word for words, _ in SAMPLING.values() for word in words))
    assert every == SamplingParams(**{name: value for name, (_, value) in SAMPLING.items()})


def test_sampling_options_are_the_defaults_of_lines(run, talker, tmp_path, monkeypatch):
    prepared, prepare = [], LLM.prepare
    monkeypatch.setattr(LLM, "prepare", lambda llm, ids, params: prepared.append(params) or prepare(llm, ids, params))
    (tmp_path / "in.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "top_k": 9}\n')
    every = {name: value for name, (_, value) in SAMPLING.items()}
    assert (
        run(
            "generate",
            "-m",
            talker,
            "--prompts-file",
            "in.jsonl",
            *(word for words, _ in SAMPLING.values() for word in words),
        )[0]
        == 0
    )
    assert prepared == [SamplingParams(**every), SamplingParams(**every | {"top_k": 9})]


def test_what_makes_the_prompt_reaches_the_engine(run, streamed, talker, monkeypatch):
    def prompt(*words, stdin=None):
        streamed.clear()
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
        assert run("generate", "-m", talker, *words)[0] == 0
        return streamed[0][0]

    plain = "[user]hi[assistant]"
    assert [prompt("hi"), prompt("--prompt", "hi"), prompt("-p", "hi"), prompt("--", "hi")] == [plain] * 4
    assert prompt("hi", "--raw") == "hi" and prompt("--", "--raw") == "[user]--raw[assistant]"
    assert prompt("hi", "--no-thinking") == plain + "!"
    assert prompt("hi", "--system", "be brief") == "[system]be brief" + plain
    for piped in (b"hi", b"hi\n", b"hi\r\n", b"\xef\xbb\xbfhi\n"):
        assert [prompt(stdin=piped), prompt("-", stdin=piped), prompt("--prompt", "-", stdin=piped)] == [plain] * 3
    assert prompt(stdin="a\n\nß\n\n".encode()) == "[user]a\n\nß\n[assistant]", "one line end is left out"
    assert prompt("hi", stdin=b"other") == plain, "a prompt that is given is the prompt"
    assert prompt("hi", "-", stdin=b"other\n") == "[user]hi\n\nother[assistant]"
    assert prompt("-", "hi", stdin=b"other") == "[user]other\n\nhi[assistant]"


def test_a_pipe_that_is_not_read_is_said(run, streamed, talker, tmp_path):
    """A file or an empty pipe in place of stdin is not: programs that run this one leave them there."""

    def said(descriptor, *words):
        kept = os.dup(0)
        os.dup2(descriptor, 0)
        try:
            return "pipe is not read" in run("generate", "-m", talker, *words)[2]
        finally:
            os.dup2(kept, 0)
            os.close(kept)

    reader, writer = os.pipe()
    (tmp_path / "file").write_text("text")
    with open(reader), open(writer, "wb", 0) as pipe, open(tmp_path / "file") as file:
        assert not said(reader, "hi") and not said(file.fileno(), "hi")
        pipe.write(b"text")
        assert said(reader, "hi") and said(reader, "-p", "hi") and not said(reader, "hi", "-")


@pytest.mark.parametrize("command", [("generate",), ("generate", "--raw"), ("chat",)], ids=" ".join)
def test_names_of_control_tokens_can_stay_text(run, talker, tmp_path, monkeypatch, command):
    place, prompts = tmp_path / "special", []
    place.mkdir()
    for name in ("config.json", "chat_template.jinja", "model.safetensors"):
        (place / name).symlink_to(talker / name)
    tokenizer = tokenizers.Tokenizer.from_file(str(talker / "tokenizer.json"))
    tokenizer.add_special_tokens(["self"])
    tokenizer.save(str(place / "tokenizer.json"))
    monkeypatch.setattr(LLM, "stream", lambda self, ids, params: prompts.append(ids) or Pieces(["ok"]))
    for words in ((), ("--sanitize-control-tokens",)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a self\n")))
        assert run(*command, "-m", place, *words)[0] == 0
    special = tokenizer.token_to_id("self")
    assert prompts[0].count(special) == 1 and special not in prompts[1]
    assert tokenizer.decode(prompts[1]) == tokenizer.decode(prompts[0], skip_special_tokens=False)


@pytest.mark.parametrize(
    "stdin, words, said",
    [
        (None, (), "there is no prompt"),
        (None, ("-",), "stdin is closed"),
        (b"", (), "the prompt is empty"),
        (b"\n", ("-",), "the prompt is empty"),
        (b"a\xffb", (), "stdin is not UTF-8 text"),
        (b"x" * 1025, (), "stdin has more than"),
    ],
)
def test_a_pipe_that_holds_no_prompt(run, loaded, monkeypatch, stdin, words, said):
    monkeypatch.setattr("qwen3.cli.generate._MAX_BYTES", 1024)
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin)))
    code, out, err = run("generate", *words)
    assert code == 2 and out == "" and err.startswith("error: ") and said in err and err.count("\n") == 1


def test_resume_alone_resumes_nothing(run, loaded):
    code, _, err = run("generate", "x", "--resume")
    assert code == 2 and err == "error: --resume goes with --prompts-file: a single answer is printed\n"


def test_a_terminal_that_types_nothing_is_asked_for_a_prompt(run, loaded, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"hi"))
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    code, _, err = run("generate")
    assert code == 2 and err.startswith("error: there is no prompt: give it as an argument, through a pipe")


def test_chat_renders_the_whole_conversation(run, streamed, talker, monkeypatch):
    def prompts(lines, *words):
        streamed.clear()
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert run("chat", "-m", talker, *words)[0] == 0
        return [prompt for prompt, _ in streamed]

    assert prompts("a\nb\n\nc\n") == [
        "[user]a[assistant]",
        "[user]a[assistant]ok 1[user]b[assistant]",
        "[user]a[assistant]ok 1[user]b[assistant]ok 2[user]c[assistant]",
    ]
    assert prompts("a\n/reset\nb\n") == ["[user]a[assistant]", "[user]b[assistant]"]
    assert prompts("a\n", "--system", "s", "--no-thinking") == ["[system]s[user]a[assistant]!"]
    assert prompts("/system t\na\n/system\n/reset\nb\n", "--system", "s") == [
        "[system]t[user]a[assistant]",
        "[user]b[assistant]",
    ]
    assert prompts("a\n/exit\nb\n") == ["[user]a[assistant]"]


def test_chat_names_a_command_that_is_not_there(run, streamed, talker, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/foo bar\n/help\n"))
    code, _, err = run("chat", "-m", talker)
    assert code == 0 and streamed == [] and err.count("/reset forgets") == 3
    assert "there is no command /foo: /reset forgets" in err and err.count("there is no") == 1


def test_bench_options_arrive(run, loaded, talker, monkeypatch):
    def options(*words):
        loaded.clear()
        assert run("bench", *words)[2] == "error: loaded\n"
        return loaded[0][0], loaded[0][1]

    place, base = options("-m", talker)
    assert place == str(talker) and base == {
        "device": "auto", "dtype": "auto", "backend": "auto", "max_num_seqs": 8, "max_num_batched_tokens": 8192,
        "kv_block_size": 16, "max_model_len": 1024 + 32 + 16, "random_weights": False,
    }  # fmt: skip
    for name in ("device", "dtype", "backend"):
        assert options("-m", talker, *ENGINE[name][0]) == (place, base | {name: ENGINE[name][1]})
    assert options("-m", talker, "--batch", "2,3")[1] == base | {"max_num_seqs": 3}
    assert options("-m", talker, "--context", "9,40")[1] == base | {"max_model_len": 40 + 32 + 16}
    assert options("-m", talker, "--new-tokens", "5")[1] == base | {"max_model_len": 1024 + 5 + 16}
    assert options("--random-weights", talker) == (talker, base | {"random_weights": True})


def test_bench_measures_what_was_asked(run, talker, monkeypatch):
    measured = []
    known = speed.Speed(1, 1, speed.Timing(1, 1, 1), speed.Timing(1, 1, 1), 1)
    monkeypatch.setattr(speed, "measure", lambda llm, *sizes: measured.append(sizes) or known)
    monkeypatch.setattr(roofline, "copy_bandwidth", lambda device: 1e9)
    assert run("bench", "-m", talker, "--batch", "2", "--context", "9,4", "--new-tokens", "5", "--rounds", "7")[0] == 0
    assert measured == [(2, 9, 5, 7), (2, 4, 5, 7)]


@pytest.mark.parametrize("name", ["Org/Model", "--repo_id=Org/Model", "--model=Org/Model"])
def test_download_options_arrive(run, monkeypatch, name):
    calls = []
    monkeypatch.setattr(hub, "download", lambda model, **options: calls.append((model, options)) or Path("there"))
    assert run("download", name) == (0, "", "Org/Model is in there\n")
    assert run("download", name, "--revision", "v1", "--token", "hf_x")[0] == 0
    assert calls == [
        ("Org/Model", {"revision": None, "token": None}),
        ("Org/Model", {"revision": "v1", "token": "hf_x"}),
    ]


def test_statistics_are_written(run, talker, tmp_path):
    assert run("generate", "x", "-m", talker, "-n", "2", "--expert-stats", "load.json")[0] == 0
    assert json.loads((tmp_path / "load.json").read_text())
