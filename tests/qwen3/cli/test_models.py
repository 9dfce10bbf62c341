"""`info`, `list` and `download`: which models are here, how large they are, and how they come here."""

import argparse
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from qwen3 import Qwen3Error
from qwen3.cli import description, download, info
from qwen3.cli import list as list_models
from qwen3.load import hub
from qwen3.load.resolve import TINY

from ..load import conftest
from ..load.fake_hub import CONFIG, NEEDED, REPO, SHARDS, files, refused
from ..load.test_resolve import make_model

GB = 10**9
fake = conftest.fake


def run(command, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def config_only(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return folder


def rows(capsys) -> dict[str, str]:
    return {line[:13].strip(): line[14:] for line in capsys.readouterr().out.splitlines()}


def test_info_needs_config_json_alone(tmp_path, capsys):
    assert run(info, config_only(tmp_path)) == 0
    told = rows(capsys)
    assert told["weights"] == "0.0 MB in bfloat16" and told["KV cache"] == "32 bytes per token in bfloat16"
    (tmp_path / "model.safetensors").write_bytes(b"x" * 2_000_000)
    run(info, tmp_path)
    assert rows(capsys)["weights"] == "0.0 MB in bfloat16 (2.0 MB in the checkpoint)"


@pytest.mark.parametrize(
    "free, line",
    [
        (10 * GB, "128 tokens (the model's limit; 10.0 GB free)"),
        # 90% of it is left for 7,296 bytes of weights and 32 bytes a token: 100 tokens.
        (11_663, "100 tokens (the memory's limit; 0.0 MB free)"),
        (8_100, "none: the weights need 0.0 MB, 90% of 0.0 MB may be used"),
    ],
)
def test_info_says_which_context_fits(tmp_path, capsys, monkeypatch, free, line):
    monkeypatch.setattr(description, "available_bytes", lambda device: free)
    monkeypatch.setattr(description, "planned_footprint", lambda *_: hub_footprint(7296))
    run(info, config_only(tmp_path), "--device", "cpu")
    assert rows(capsys)["fits cpu"] == line


def test_info_of_the_embedded_model(capsys):
    run(info, "tiny", "--device", "cpu", "--dtype", "float32")
    told = rows(capsys)
    assert told["parameters"] == "7,953,792 (3,530,112 active per token)"
    assert told["weights"] == "31.8 MB in float32 (15.9 MB in the checkpoint)"
    assert told["KV cache"] == "5,120 bytes per token in float32" and told["context"] == "2,048 tokens"


def hub_footprint(nbytes: int):
    from qwen3.model.footprint import Footprint

    return Footprint(parameters=1, active=1, nbytes=nbytes, shared_bytes=1, expert_bytes=0)


def test_info_of_a_model_that_is_on_the_hub_alone(fake, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    assert run(info, REPO) == 0
    told = rows(capsys)
    assert told["model"] == f"{REPO} (on the hub, not here)" and "in the checkpoint" in told["weights"]
    assert not [r for r in fake.requests if r.path.endswith(".safetensors")]
    run(info, f"https://huggingface.co/{REPO}/tree/main")
    assert rows(capsys)["model"] == f"{REPO} (on the hub, not here)"
    refused(lambda: run(info, "Org/Other"), "Org/Other", "qwen3 download Org/Other", "no model at")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(lambda: run(info, REPO), "qwen3 download", "HF_HUB_OFFLINE")


def test_info_takes_config_json_of_the_cache(fake, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = config_only(tmp_path / "models--Org--Name" / "snapshots" / "abc")
    run(info, "Org/Name")
    assert rows(capsys)["model"] == str(snapshot) and fake.requests == []


def test_info_asks_no_hub_for_what_is_no_id(fake, tmp_path):
    refused(lambda: run(info, "./nothing"), "no such model")
    refused(lambda: run(info, tmp_path), "config.json: no such file")
    assert fake.requests == []


def test_list_tells_what_is_here(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QWEN3_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert run(list_models) == 0
    head, tiny = capsys.readouterr().out.splitlines()
    assert head.split() == ["MODEL", "SIZE", "FOLDER"] and tiny.split()[:2] == ["*", "tiny"] and str(TINY) in tiny

    newer = make_model(tmp_path / "models" / "Org" / "Newer")
    make_model(tmp_path / "models" / "Org" / "Older", age=9)
    make_model(tmp_path / "models" / "Org" / "Part", NEEDED - {SHARDS[0]})
    (make_model(tmp_path / "models" / "Org" / "Running") / ".download").mkdir()
    config_only(tmp_path / "models" / "Org" / "Llama", model_type="llama")
    (tmp_path / "models" / "Org" / "empty").mkdir()
    cached = make_model(tmp_path / "cache" / "models--A--Cached" / "snapshots" / "abc")
    make_model(tmp_path / "cache" / "models--Org--Newer" / "snapshots" / "abc")
    make_model(tmp_path / "cache" / "models--A--Part" / "snapshots" / "abc", {"config.json"})
    config_only(tmp_path / "cache" / "models--A--Llama" / "snapshots" / "abc", model_type="llama")
    run(list_models)
    lines = capsys.readouterr().out.splitlines()[1:]
    size = f"{2 * len(files()[SHARDS[0]]) / 1e6:.1f} MB"
    found = [line.split(maxsplit=1) if line[0] == "*" else ["", line.strip()] for line in lines]
    assert [(mark, " ".join(rest.split())) for mark, rest in found if not rest.startswith("tiny")] == [
        ("", f"Org/Llama not supported {tmp_path}/models/Org/Llama"),
        ("*", f"Org/Newer {size} {newer}"),
        ("", f"Org/Older {size} {tmp_path}/models/Org/Older"),
        ("", f"Org/Part not complete {tmp_path}/models/Org/Part"),
        ("", f"Org/Running not complete {tmp_path}/models/Org/Running"),
        ("", f"A/Cached {size} {cached}"),
    ]
    assert len({line.index(str(tmp_path)) for line in lines if str(tmp_path) in line}) == 1


def test_list_shows_no_name_raw(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QWEN3_MODELS", str(tmp_path))
    make_model(tmp_path / "Org" / "a\x1b[31m\nb")
    run(list_models)
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("spelling", [[], ["--repo_id"], ["--repo-id"], ["--model"], ["-m"]])
def test_download_hands_every_option_on(monkeypatch, capsys, spelling):
    calls = []
    monkeypatch.setattr(hub, "download", lambda *given, **named: calls.append((given, named)) or Path("there"))
    assert run(download, *spelling, "Org/Name", "--revision", "v1", "--token", "hf_x") == 0
    assert calls == [(("Org/Name",), {"revision": "v1", "token": "hf_x"})]
    assert capsys.readouterr().err == "Org/Name is in there\n"
    run(download, *spelling, "Org/Name")
    assert calls[1] == (("Org/Name",), {"revision": None, "token": None})


def test_download_takes_one_model(monkeypatch):
    monkeypatch.setattr(hub, "download", None)
    for arguments in ([], ["Org/Name", "--repo_id", "Org/Other"]):
        with pytest.raises(Qwen3Error, match="the id of one model"):
            run(download, *arguments)


def test_what_download_brought_is_what_info_describes(fake, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", fake.endpoint)
    monkeypatch.setenv("QWEN3_MODELS", str(tmp_path))
    run(download, f"https://huggingface.co/{REPO}")
    run(info, REPO)
    assert rows(capsys)["model"] == str(tmp_path / REPO) and os.path.isdir(tmp_path / REPO)
