"""Downloads with the real huggingface_hub client from a local server that speaks the hub's protocol."""

import errno
import json
import os
import shutil
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import enable_progress_bars

from qwen3.load import hub
from qwen3.load.hub import download
from qwen3.load.resolve import STAGING, TINY, resolve

from .fake_hub import BREAK, CONFIG, NEEDED, REPO, SHARDS, SIZE, FakeHub, files, listing, refused, weights


def test_complete_download_has_the_needed_files_and_no_other(fake, get, tmp_path, capfd):
    folder = get()
    assert folder == tmp_path / REPO
    assert listing(tmp_path) == {f"{REPO}/{name}" for name in NEEDED}
    assert all((folder / name).read_bytes() == files()[name] for name in NEEDED)
    assert {r.path.split("1" * 40 + "/")[-1] for r in fake.requests if r.method == "GET"} <= NEEDED | set(hub.OPTIONAL)
    assert all(r.path.startswith(f"/{REPO}/resolve/") or r.path.startswith("/storage/") for r in fake.requests)
    assert {r.encoding for r in fake.requests} == {"identity"}  # a compressed answer has other byte positions
    assert resolve(REPO, tmp_path) == resolve(None, tmp_path) == folder
    assert capfd.readouterr().err == ""  # no progress bar where stderr is not a terminal


def test_progress_is_shown_for_each_file(get, monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    enable_progress_bars()  # transformers, in another test of this process, may have switched them off
    get()
    shown = capfd.readouterr().err
    assert all(f"{name}: 100%" in shown for name in SHARDS)


def test_one_weight_file_and_no_optional_files(fake, get, tmp_path):
    optional = dict.fromkeys(hub.OPTIONAL)
    fake.commits["1" * 40] = files(**optional, **{"model.safetensors": weights(3)})
    folder = get()
    assert listing(folder) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == weights(3)
    assert resolve(REPO, tmp_path) == folder


def test_every_file_that_the_tokenizer_reads_is_fetched_and_goes_with_its_revision(fake, get):
    further = {
        "added_tokens.json": b"{}",
        "special_tokens_map.json": b"{}",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    }
    fake.commits["1" * 40] = files(**further)
    folder = get()
    assert listing(folder) == NEEDED | further.keys()
    assert all((folder / name).read_bytes() == content for name, content in further.items())
    fake.commits["1" * 40] = files()
    assert listing(get()) == NEEDED


def break_off(fake: FakeHub, get) -> None:
    """Leaves a download that has the first shard, and BREAK bytes of the second."""
    fake.breaks = {SHARDS[1]}
    refused(get, "no connection to", fake.endpoint, "run the same command again, it resumes")
    fake.breaks = set()


def test_broken_download_resumes_where_it_broke(fake, get, tmp_path):
    break_off(fake, get)
    folder = tmp_path / REPO
    assert {path.name for path in folder.iterdir()} == {STAGING, SHARDS[0]}
    assert [path.stat().st_size for path in (folder / STAGING).iterdir()] == [BREAK]
    fake.requests.clear()
    assert get() == folder
    assert fake.fetched(SHARDS[0]) == []
    assert fake.fetched(SHARDS[1]) == [f"bytes={BREAK}-"]
    assert listing(folder) == NEEDED
    assert all((folder / name).read_bytes() == files()[name] for name in NEEDED)


def test_unfinished_download_is_not_a_model(fake, get, tmp_path):
    break_off(fake, get)
    refused(lambda: resolve(REPO, tmp_path), REPO, "not complete", f"qwen3 download {REPO}")
    refused(lambda: resolve(tmp_path / REPO), str(tmp_path / REPO), "not complete", "qwen3 download")
    assert resolve(None, tmp_path) == TINY


def test_a_short_break_resumes_by_itself(fake, get, monkeypatch):
    fake.breaks = {SHARDS[0]}
    monkeypatch.setattr(time, "sleep", lambda seconds: fake.breaks.clear())
    folder = get()
    assert fake.fetched(SHARDS[0]) == [None, f"bytes={BREAK}-"]
    assert (folder / SHARDS[0]).read_bytes() == weights(1)


def test_a_connection_that_brings_nothing_more_is_given_up(fake, get):
    break_off(fake, get)
    assert fake.fetched(SHARDS[1]) == [None, *[f"bytes={BREAK}-"] * (hub.RETRIES + 1)]


def test_a_server_that_ignores_ranges_is_asked_for_the_whole_file_again(fake, get):
    fake.ranges, fake.breaks = False, {SHARDS[0]}
    refused(get, "no connection to")  # not without end, although every answer brings the same bytes
    fake.breaks.clear()
    assert (get() / SHARDS[0]).read_bytes() == weights(1)


def test_a_damaged_part_is_found_and_fetched_again(fake, get, tmp_path):
    break_off(fake, get)
    (part,) = (tmp_path / REPO / STAGING).iterdir()
    part.write_bytes(b"?" * BREAK)
    refused(get, SHARDS[1], "damaged")
    assert not (tmp_path / REPO / SHARDS[1]).exists()
    assert (get() / SHARDS[1]).read_bytes() == weights(2)


def test_a_complete_part_is_not_fetched(fake, get, tmp_path):
    break_off(fake, get)
    (part,) = (tmp_path / REPO / STAGING).iterdir()
    part.write_bytes(weights(2))
    fake.requests.clear()
    assert (get() / SHARDS[1]).read_bytes() == weights(2)
    assert fake.fetched(SHARDS[1]) == []


def test_a_part_longer_than_the_file_is_fetched_again(fake, get, tmp_path):
    break_off(fake, get)
    (part,) = (tmp_path / REPO / STAGING).iterdir()
    part.write_bytes(b"?" * (SIZE + 1))
    assert (get() / SHARDS[1]).read_bytes() == weights(2)


def test_second_download_fetches_no_weights(fake, get, tmp_path):
    folder = get()
    fake.requests.clear()
    assert get() == folder
    assert [fake.fetched(name) for name in SHARDS] == [[], []]
    assert resolve(REPO, tmp_path) == folder


def test_second_download_replaces_a_damaged_file(fake, get):
    folder = get()
    (folder / SHARDS[0]).write_bytes(weights(4))  # the same size
    assert (get() / SHARDS[0]).read_bytes() == weights(1)


def test_mirror_without_hashes(fake, get, tmp_path):
    fake.hashes = False
    break_off(fake, get)
    assert listing(tmp_path) == {f"{REPO}/{SHARDS[0]}", f"{REPO}/{STAGING}/{SHARDS[1]}...%2Fv%2F1"}
    fake.requests.clear()
    folder = get()
    assert (fake.fetched(SHARDS[0]), fake.fetched(SHARDS[1])) == ([], [f"bytes={BREAK}-"])
    (folder / SHARDS[0]).write_bytes(weights(1)[:-1])
    assert (get() / SHARDS[0]).read_bytes() == weights(1)


def test_a_revision_with_slashes(fake, get):
    """One part of the path: a pull request or a branch may have slashes in its name."""
    fake.branches["refs%2Fpr%2F1"] = "1" * 40
    assert (get(revision="refs/pr/1") / SHARDS[0]).read_bytes() == weights(1)


def test_small_files_may_begin_with_a_byte_order_mark(fake, get):
    bom = "\ufeff".encode()
    content = files()
    index = next(name for name in content if name.endswith("index.json"))
    fake.commits["1" * 40] = files(**{name: bom + content[name] for name in ("config.json", index)})
    assert listing(get()) == NEEDED


def test_a_hub_that_is_busy_is_asked_again(get, monkeypatch):
    stream, codes = hub.http_stream_backoff, []

    def noted(*arguments, **options):
        codes.append(options["retry_on_status_codes"])
        return stream(*arguments, **options)

    monkeypatch.setattr(hub, "http_stream_backoff", noted)
    get()
    assert codes and all(429 in wanted and 408 in wanted for wanted in codes)


def test_a_hub_that_fails_at_an_optional_file_is_not_one_without_it(fake, get, monkeypatch):
    """A model without its chat template would answer something else."""
    read = hub._Repo.read

    def failing(repo, name):
        fake.refusal = (503, "") if name == "chat_template.jinja" else None
        return read(repo, name)

    monkeypatch.setattr(hub._Repo, "read", failing)
    refused(get, "503")


def publish_update(fake: FakeHub) -> None:
    """Moves main to a commit with another second shard of the same size, another config, and no chat template."""
    config = json.dumps(CONFIG | {"rope_theta": 5e6}).encode()
    changes = {"config.json": config, SHARDS[1]: weights(5), "chat_template.jinja": None}
    fake.commits["2" * 40] = files(**changes)
    fake.branches["main"] = "2" * 40


def test_update_fetches_what_changed_and_drops_what_is_gone(fake, get):
    folder = get()
    publish_update(fake)
    fake.requests.clear()
    get()
    assert fake.fetched(SHARDS[0]) == []
    assert (folder / SHARDS[1]).read_bytes() == weights(5)
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 5e6
    assert listing(folder) == NEEDED - {"chat_template.jinja"}


def test_unfinished_update_is_not_a_model(fake, get, tmp_path):
    folder = get()
    publish_update(fake)
    break_off(fake, get)
    assert json.loads((folder / "config.json").read_text())["rope_theta"] == 1e6
    refused(lambda: resolve(REPO, tmp_path), "not complete")
    assert resolve(None, tmp_path) == TINY
    get()
    assert resolve(REPO, tmp_path) == folder


def test_refused_update_leaves_the_model_usable(fake, get, tmp_path):
    folder = get()
    fake.commits["1" * 40] = files(**{"config.json": b'{"model_type": "llama"}'})
    refused(get, "llama")
    assert resolve(REPO, tmp_path) == folder


def test_revision_is_pinned_to_its_commit(fake, get):
    fake.commits["2" * 40] = files(**{SHARDS[0]: weights(6)})
    fake.branches["feature/x"] = "2" * 40
    folder = get(revision="2" * 40)
    assert (folder / SHARDS[0]).read_bytes() == weights(6)
    fake.requests.clear()
    fake.branches = {"main": "1" * 40, "v1.0": "2" * 40}
    get(revision="v1.0")
    assert [r.path for r in fake.requests if "/v1.0/" in r.path] == [f"/{REPO}/resolve/v1.0/config.json"]
    assert (get() / SHARDS[0]).read_bytes() == weights(1)


def test_token_comes_from_the_environment_and_stays_on_the_hub(fake, get, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    get()
    assert {r.token for r in fake.requests if "/resolve/" in r.path} == {"Bearer hf_environment"}
    assert {r.token for r in fake.requests if r.path.startswith("/storage/")} == {None}
    fake.requests.clear()
    get(token="hf_argument")
    assert {r.token for r in fake.requests} == {"Bearer hf_argument"}


@pytest.mark.parametrize("token", [None, "hf_token"])  # the hub answers 401 without a token, 404 with one
def test_no_such_repository(fake, get, tmp_path, token):
    page = f"{fake.endpoint}/Qwen/Nothing"
    message = refused(lambda: get("Qwen/Nothing", token=token), f"no model at {page}", "HF_TOKEN")
    assert "gated" not in message
    assert listing(tmp_path) == set()


def test_no_such_revision(get, tmp_path):
    refused(lambda: get(revision="v9"), "no revision 'v9'", REPO)
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SHARDS[1]])
def test_needed_file_is_not_in_the_repository(fake, get, tmp_path, name):
    fake.commits["1" * 40] = files(**{name: None})
    refused(get, f"no {name} at", REPO)
    assert listing(tmp_path) == set()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "GatedRepo", ("gated", "licence", "HF_TOKEN")),
        (403, "GatedRepo", ("gated", "licence", "HF_TOKEN")),
        (401, "", ("no access", "valid token", "HF_TOKEN")),
        (403, "", ("no access", "valid token", "HF_TOKEN")),
        (500, "", ("500", "again")),
    ],
)
def test_refusals_are_told_apart(fake, get, tmp_path, status, code, words):
    fake.refusal = (status, code)
    message = refused(get, f"{fake.endpoint}/{REPO}", *words)
    assert ("gated" in message) == (code == "GatedRepo")
    assert "no model at" not in message
    assert listing(tmp_path) == set()


def test_hub_cannot_be_reached(fake, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        endpoint = f"http://127.0.0.1:{closed.server_port}"
    refused(lambda: download(REPO, models_dir=tmp_path, endpoint=endpoint), endpoint, "check the network", "again")


def test_answer_of_another_server(fake, get):
    fake.anonymous = True
    refused(get, fake.endpoint, "HF_ENDPOINT")


def test_offline_mode(fake, get, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(get, REPO, "HF_HUB_OFFLINE is set: unset it")
    assert fake.requests == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b'{"model_type": "llama"}', (f"{REPO}/config.json", "llama", "qwen3_moe")),
        ("config.json", b"<html>", (f"{REPO}/config.json", "web page")),
        ("config.json", b"[]", (f"{REPO}/config.json", "no JSON object")),
        ("config.json", b'[["model_type", "qwen3"]]', (f"{REPO}/config.json", "no JSON object")),
        ("config.json", b"[" * 5000, (f"{REPO}/config.json", "nested too deep")),
        ("config.json", b"\xff\xfe{", (f"{REPO}/config.json", "not UTF-8")),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", (f"{REPO}/tokenizer.json", "git lfs pull")),
        ("tokenizer.json", b"[]", (f"{REPO}/tokenizer.json", "no JSON object")),
        ("tokenizer_config.json", b"{", (f"{REPO}/tokenizer_config.json", "JSON")),
        ("generation_config.json", b"7", (f"{REPO}/generation_config.json", "JSON")),
        ("generation_config.json", b'{"num_beams": 4}', (f"{REPO}/generation_config.json", "num_beams")),
        ("generation_config.json", b'{"eos_token_id": 64}', (f"{REPO}/generation_config.json", "eos_token_id")),
        ("model.safetensors.index.json", b'[["weight_map", {"a": "model.safetensors"}]]', ("no JSON object",)),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}', ("weight_map", "not 3")),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../../stolen.safetensors"}}', ("../../stolen",)),
        ("model.safetensors.index.json", b'{"weight_map": {}}', ("weight_map",)),
    ],
)
def test_unusable_model_is_refused_before_its_weights(fake, get, tmp_path, name, content, words):
    fake.commits["1" * 40] = files(**{name: content})
    refused(get, *words)
    assert not [r for r in fake.requests if ".safetensors" in r.path and not r.path.endswith(".json")]
    assert listing(tmp_path) == set()


def test_space_is_checked_before_the_weights(fake, get, tmp_path, monkeypatch):
    small = sum(len(files()[name]) for name in NEEDED - set(SHARDS))
    free = 2 * SIZE + small - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    refused(get, str(tmp_path / REPO), "0.0 GB are needed, 0.0 GB are free")
    assert [fake.fetched(name) for name in SHARDS] == [[], []]
    assert listing(tmp_path) == set()
    free += 1
    break_off(fake, get)
    free -= SIZE + BREAK  # what is on the disk already needs no room
    get()


def test_no_place_to_write(fake, tmp_path):
    (tmp_path / "models").write_text("a file")
    target = tmp_path / "models"
    refused(lambda: download(REPO, models_dir=target, endpoint=fake.endpoint), "cannot write", str(target))


def test_disk_full_midway(get, monkeypatch):
    def stream(method, url, **options):
        if url.endswith(".safetensors"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(method, url, **options)

    real = hub.http_stream_backoff
    monkeypatch.setattr(hub, "http_stream_backoff", stream)
    refused(get, "cannot write", REPO, "No space left", "again")
