"""Which folder a model's name means, and what counts as a complete download."""

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

import qwen3
from qwen3.load.hub import download
from qwen3.load.resolve import STAGING, TINY, HubName, cached_models, hub_name, models_folder, resolve

from .fake_hub import NEEDED, REPO, SHARDS, files, refused


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
    make_model(tmp_path / "tiny")
    assert resolve("tiny", tmp_path) == TINY == Path(qwen3.__file__).parent / "tiny"
    assert resolve(Path("tiny"), tmp_path) == Path("tiny")


@pytest.mark.parametrize("model", ["", "nothing", "/no/folder", "./nothing", "a/b/c", "Org/Na me", Path("Org/Name")])
def test_resolve_knows_no_such_model(tmp_path, model):
    refused(lambda: resolve(model, tmp_path), "no such model", str(model))


def test_resolve_says_how_to_download(tmp_path):
    refused(lambda: resolve("Org/Name", tmp_path), "Org/Name", str(tmp_path), "`qwen3 download Org/Name`")


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


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *SHARDS])
def test_folder_that_lacks_a_file_is_not_a_download(tmp_path, name):
    make_model(tmp_path / "Org" / "Name", NEEDED - {name})
    refused(lambda: resolve("Org/Name", tmp_path), "not complete")
    assert resolve(None, tmp_path) == TINY


def test_shards_without_their_index_are_a_download(tmp_path):
    folder = make_model(tmp_path / "Org" / "Name", NEEDED - {"model.safetensors.index.json"})
    assert resolve("Org/Name", tmp_path) == resolve(None, tmp_path) == folder


@pytest.mark.parametrize("model", [5, b"tiny", ["tiny"], {"tiny": 1}, True, 1.5, object()])
def test_a_model_is_text_or_a_path(model, tmp_path):
    refused(lambda: resolve(model, tmp_path), "model is ", "give a folder")
    refused(lambda: download(model, models_dir=tmp_path), "model is ", "give a folder")


@pytest.mark.parametrize(
    "model",
    ["x" * 5000, "a/" * 3000, "a\0b", "\ud800/x", "a\nb", "\x1b[31m/x", "~nobody/x", " ", "https://", "x://y"],
)
def test_names_that_no_file_system_takes(model, tmp_path):
    message = refused(lambda: resolve(model, tmp_path), "no such model")
    assert message.isprintable() and len(message) < 400
    assert refused(lambda: download(model, models_dir=tmp_path), "no such model").isprintable()


def test_a_file_is_not_a_folder(tmp_path):
    for name in ("x.gguf", "config.json"):
        (tmp_path / name).write_text("{}")
        message = refused(lambda path=tmp_path / name: resolve(path), name, "is not a folder", "give the folder")
        assert ("GGUF" in message) == (name == "x.gguf")
    (tmp_path / "gone").symlink_to("nowhere")
    refused(lambda: resolve(str(tmp_path / "gone")), "is not a folder")


def test_paths_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make_model(tmp_path / "m" / "x")
    assert resolve("~/m/x") == resolve(Path("~/m/x")) == resolve("~/m/x/") == folder
    refused(lambda: resolve("~/m/y"), "no such model", "~/m/y")
    assert download_place(monkeypatch, "~/m") == tmp_path / "m"


def download_place(monkeypatch, value: str) -> Path:
    monkeypatch.setenv("QWEN3_MODELS", value)
    return models_folder()


def test_the_environment_names_the_folder_of_downloads(fake, tmp_path, monkeypatch):
    assert models_folder() == Path("models")
    monkeypatch.setenv("QWEN3_MODELS", str(tmp_path / "all"))
    folder = download(REPO, endpoint=fake.endpoint)
    assert folder == tmp_path / "all" / REPO == resolve(REPO) == resolve(None)


SITE = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("Org/Name", None),
        ("Org/Name/", None),
        (" Org/Name\n", None),
        ("models--Org--Name", None),
        (f"{SITE}/Org/Name", None),
        (f"{SITE}/Org/Name/", None),
        (f"{SITE}/Org/Name.git", None),
        (f"{SITE}/Org/Name?library=vllm#x", None),
        (f"{SITE}/Org/Name/tree/main", "main"),
        (f"{SITE}/Org/Name/blob/v1.0/config.json", "v1.0"),
        (f"{SITE}/Org/Name/resolve/feature%2Fx/a.json", "feature/x"),
        (f"{SITE}/Org/Name/discussions/3", None),
        ("http://hf.co/Org/Name", None),
        ("hf.co/Org/Name", None),
        ("huggingface.co/Org/Name/tree/main", "main"),
        ("www.huggingface.co/Org/Name", None),
        ("hf://Org/Name", None),
        ("hf://models/Org/Name", None),
        ("git@hf.co:Org/Name", None),
        ("https://hf-mirror.com/Org/Name", None),
        ("https://user:secret@huggingface.co/Org/Name", None),
    ],
)
def test_ids_as_people_paste_them(tmp_path, text, revision):
    assert hub_name(text) == HubName("Org/Name", revision)
    folder = make_model(tmp_path / "Org" / "Name")
    if revision in (None, "main"):
        assert resolve(text, tmp_path) == folder
    else:  # a download does not say of which revision it is
        refused(lambda: resolve(text, tmp_path), "no such model", f"--revision {revision}")


@pytest.mark.parametrize(
    "text",
    [
        f"{SITE}/datasets/Org/Name", f"{SITE}/spaces/Org/Name", f"{SITE}/Org", f"{SITE}", "https://example.com/Org/Name",
        "https://[::1/Org/Name", "ftp://x/Org/Name", "file:///Org/Name", "https://github.com/Org/Name",
    ],
)  # fmt: skip
def test_addresses_of_something_else(text, tmp_path):
    refused(lambda: resolve(text, tmp_path), "no such model", "not the address of a model")
    refused(lambda: download(text, models_dir=tmp_path), "no such model", "not the address of a model")


def test_a_mirror_is_an_address_too(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example.com/prefix")
    assert hub_name("https://hub.example.com/Org/Name") == HubName("Org/Name")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of Hugging Face."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cache_model(cache: Path, commit: str, names: set[str] = NEEDED, ref: str | None = "main", age: float = 0) -> Path:
    """Puts a snapshot of Org/Name into the cache as huggingface_hub does: links to blobs."""
    repo = cache / "models--Org--Name"
    snapshot = make_model(repo / "snapshots" / commit, names)
    (repo / "blobs").mkdir(exist_ok=True)
    for name in names:
        blob = repo / "blobs" / f"{commit}-{name}"
        (snapshot / name).rename(blob)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    if ref:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(f"{commit}\n")
    os.utime(snapshot, (1e9 - age, 1e9 - age))
    return snapshot


def test_models_of_the_cache_are_found(cache, tmp_path):
    snapshot = cache_model(cache, "abc123")
    cache_model(cache, "def456", ref="v2")
    models = tmp_path / "models"
    repo = cache / "models--Org--Name"
    for model in ("Org/Name", "Org/Name/", repo, str(repo), f"{repo}/", repo / "snapshots", f"{SITE}/Org/Name"):
        assert resolve(model, models) == snapshot
    assert resolve(snapshot, models) == snapshot
    assert resolve(f"{SITE}/Org/Name/tree/v2", models) == repo / "snapshots" / "def456"
    assert resolve(f"{SITE}/Org/Name/tree/def456", models) == repo / "snapshots" / "def456"
    assert resolve(None, models) == TINY, "what is run without a name is a download"
    assert cached_models() == {"Org/Name": snapshot}


def test_a_folder_without_a_model_does_not_hide_the_model_of_its_name(cache, tmp_path, monkeypatch):
    snapshot = cache_model(cache, "abc")
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "Org" / "Name"
    empty.mkdir(parents=True)
    assert resolve("Org/Name") == resolve(Path("Org/Name")) == snapshot
    refused(lambda: resolve(empty), "config.json: no such file")
    refused(lambda: resolve("Org"), "config.json: no such file")
    (empty / "config.json").write_text("{}")
    assert resolve("Org/Name") == Path("Org/Name"), "a folder with a model is the one that was meant"


def test_an_id_may_come_as_a_path_or_in_other_letters(cache, tmp_path, monkeypatch):
    snapshot = cache_model(cache, "abc")
    monkeypatch.chdir(tmp_path)
    assert resolve(Path("Org/Name")) == snapshot
    for text in ("org/name", "ORG/NAME", "name"):
        refused(lambda text=text: resolve(text), "did you mean Org/Name?")
    refused(lambda: resolve("rg/Name"), "did you mean Org/Name?")
    folder = make_model(tmp_path / "a b")
    assert resolve(f"file://{tmp_path}/a%20b") == folder


def test_a_complete_download_is_taken_before_the_cache(cache, tmp_path):
    snapshot = cache_model(cache, "abc123")
    folder = make_model(tmp_path / "models" / "Org" / "Name")
    assert resolve("Org/Name", tmp_path / "models") == folder
    (folder / "tokenizer.json").unlink()
    assert resolve("Org/Name", tmp_path / "models") == snapshot


def test_a_snapshot_that_is_not_complete_is_said(cache, tmp_path):
    snapshot = cache_model(cache, "abc123", {"config.json"})
    refused(lambda: resolve("Org/Name", tmp_path / "models"), str(snapshot), "not complete", "qwen3 download Org")
    assert resolve(snapshot.parent.parent) == snapshot, "its config.json is enough for qwen3 info"
    (snapshot / "config.json").unlink()
    refused(lambda: resolve(snapshot.parent.parent), "without a complete snapshot")
    refused(lambda: resolve("Org/Other", tmp_path / "models"), str(tmp_path / "models"), str(cache))


def test_without_a_main_branch_the_newest_complete_snapshot_counts(cache):
    old = cache_model(cache, "aaa", ref=None, age=5)
    new = cache_model(cache, "bbb", ref=None, age=3)
    cache_model(cache, "ccc", {"config.json"}, ref=None)
    assert resolve("Org/Name") == new
    os.utime(old, (2e9, 2e9))
    assert resolve("Org/Name") == old


@pytest.mark.parametrize("ref", ["../../../outside", "/etc", "", "\0", "x" * 500, "missing"])
def test_a_branch_that_points_elsewhere_is_not_followed(cache, ref):
    snapshot = cache_model(cache, "abc123")
    (cache / "outside").mkdir()
    (cache / "models--Org--Name" / "refs" / "main").write_text(ref)
    assert resolve("Org/Name") == snapshot


def test_a_likely_misspelling_is_named(cache, tmp_path):
    make_model(tmp_path / "Qwen" / "Qwen3-Coder-30B")
    for text in ("Qwen/qwen3-coder-30b", "qwen3-coder-30b", "Qwen3-Coder-30B", "Qwen/Qwen3-Codr-30B"):
        refused(lambda text=text: resolve(text, tmp_path), "did you mean Qwen/Qwen3-Coder-30B?")
    for text in ("Org/Other", "other", "", "3-Coder-30B"):
        assert "did you mean" not in refused(lambda text=text: resolve(text, tmp_path))
    cache_model(cache, "abc123")
    refused(lambda: resolve("Org/Nam", tmp_path), "did you mean Org/Name?")


@pytest.mark.parametrize("models_dir", [5, b"models", True, ["models"]])
def test_the_folder_of_models_is_a_path(models_dir):
    refused(lambda: resolve("Org/Name", models_dir), "models_dir is", "a path")
    refused(lambda: download("Org/Name", models_dir=models_dir), "models_dir is", "a path")
