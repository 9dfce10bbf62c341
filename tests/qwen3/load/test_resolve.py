"""Which folder a model's name means, and what counts as a complete download."""

import os
from pathlib import Path

import pytest

import qwen3
from qwen3.load.hub import STAGING, TINY, download, resolve

from .fake_hub import NEEDED, SHARDS, files, refused


def make_model(folder: Path, names: set[str] = NEEDED, age: float = 0) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(files()[name])
    if "config.json" in names:
        os.utime(folder / "config.json", (1e9 - age, 1e9 - age))
    return folder


def test_resolve_takes_folders_and_names(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "Org" / "Name")
    assert resolve(folder, "elsewhere") == resolve(str(folder), "elsewhere") == folder
    assert resolve("Org/Name", tmp_path) == folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny", tmp_path) == TINY == Path(qwen3.__file__).parent / "tiny"
    assert resolve(Path("tiny"), tmp_path) == Path("tiny")


@pytest.mark.parametrize("model", ["", "nothing", "/no/folder", "./nothing", "a/b/c", "Org/Na me", Path("Org/Name")])
def test_resolve_knows_no_such_model(tmp_path, model):
    refused(lambda: resolve(model, tmp_path), "no such model", str(model))


def test_resolve_says_how_to_download(tmp_path):
    refused(lambda: resolve("Org/Name", tmp_path), "Org/Name", str(tmp_path), "`qwen3 download --repo_id Org/Name`")


@pytest.mark.parametrize("repo_id", ["", "Name", "a/b/c", "../../Name", "Org/Na me"])
def test_download_needs_an_id(repo_id, tmp_path):
    refused(lambda: download(repo_id, models_dir=tmp_path), "no such model", repo_id)


def test_most_recent_download_wins(fake, get, tmp_path):
    assert resolve(None, tmp_path) == resolve(None, tmp_path / "nothing") == TINY
    newer = make_model(tmp_path / "A" / "Newer", age=1)
    make_model(tmp_path / "B" / "Older", age=2)
    make_model(tmp_path / "C" / "Unfinished", NEEDED - {SHARDS[1]})
    make_model(tmp_path / "D" / "Updating")
    (tmp_path / "D" / "Updating" / STAGING).mkdir()
    assert resolve(None, tmp_path) == newer
    assert get() == resolve(None, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *SHARDS, "model.safetensors.index.json"])
def test_folder_that_lacks_a_file_is_not_a_download(tmp_path, name):
    make_model(tmp_path / "Org" / "Name", NEEDED - {name})
    refused(lambda: resolve("Org/Name", tmp_path), "not complete")
    assert resolve(None, tmp_path) == TINY
