"""Downloads with the real huggingface_hub client from a local server that speaks the hub's protocol."""

import errno
import hashlib
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import enable_progress_bars

import qwen3
from qwen3.errors import Qwen3Error
from qwen3.load import hub
from qwen3.load.hub import STAGING, TINY, download, resolve

REPO = "Qwen/Qwen3-Small"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CONFIG = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 64, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "rope_theta": 1e6,
    "intermediate_size": 32, "max_position_embeddings": 128,
}  # fmt: skip
CHUNK = 64 << 10
SIZE = 10 * CHUNK + 123  # not a whole number of chunks
BREAK = 4 * CHUNK  # how many bytes of a file arrive before its connection breaks


def weights(seed: int, size: int = SIZE) -> bytes:
    return random.Random(seed).randbytes(size)


def files(**changes: bytes | None) -> dict[str, bytes]:
    """A repository as published: what a model needs, and what it does not."""
    index = {"metadata": {"total_size": 2 * SIZE}, "weight_map": {"b": SHARDS[1], "a": SHARDS[0], "c": SHARDS[0]}}
    needed = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b'{"eos_token_id": 3}',
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        SHARDS[0]: weights(1),
        SHARDS[1]: weights(2),
    }
    other = {"README.md": b"#", "pytorch_model.bin": b"x", "model.safetensors": b"x", "onnx/model.onnx": b"x"}
    return {name: content for name, content in (needed | other | changes).items() if content is not None}


NEEDED = set(files()) - {"README.md", "pytorch_model.bin", "model.safetensors", "onnx/model.onnx"}


@dataclass
class FakeHub:
    """Repositories by id and commit, what they refuse, and every request as it came."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"1" * 40: files()})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "1" * 40})
    refusal: tuple[int, str] | None = None  # status and X-Error-Code of every answer
    anonymous: bool = False  # answers without the hub's headers, like a proxy's login page
    hashes: bool = True  # a mirror may have etags of its own kind
    breaks: set[str] = field(default_factory=set)  # files whose connection breaks after BREAK bytes
    requests: list[SimpleNamespace] = field(default_factory=list)
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fetched(self, name: str) -> list[str | None]:
        """The Range headers of the requests that read a file's bytes."""
        return [r.range for r in self.requests if r.method == "GET" and r.path.endswith("/" + name) and r.answered]

    def handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_GET(self):
                get = self.headers.get
                asked = SimpleNamespace(
                    method=self.command,
                    path=self.path,
                    range=get("Range"),
                    token=get("Authorization"),
                    encoding=get("Accept-Encoding"),
                    answered=False,
                )
                fake.requests.append(asked)
                if fake.refusal:
                    return self.answer(fake.refusal[0], {"X-Error-Code": fake.refusal[1]})
                storage, *rest = self.path[1:].split("/", 2)
                if storage == "storage":
                    commit, name = rest
                    asked.answered = True
                    return self.send(name, fake.commits[commit][name], {})
                repo, _, rest = self.path[1:].partition("/resolve/")
                revision, _, name = rest.partition("/")
                commit = fake.branches.get(revision, revision)
                if repo != REPO:
                    return self.answer(404 if asked.token else 401, {"X-Error-Code": "RepoNotFound"})
                if commit not in fake.commits:
                    return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
                content = fake.commits[commit].get(name)
                if content is None:
                    return self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                headers = {} if fake.anonymous else {"X-Repo-Commit": commit}
                if name.endswith(".safetensors"):  # large files lie on another host
                    etag = f'"{hashlib.sha256(content).hexdigest()}"' if fake.hashes else '"../v/1"'
                    headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
                    headers["Location"] = f"http://localhost:{fake.port}/storage/{commit}/{name}"
                    return self.answer(302, headers)
                asked.answered = True
                git_blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self.send(name, content, headers | ({} if fake.anonymous else {"ETag": f'"{git_blob}"'}))

            do_HEAD = do_GET

            def answer(self, status: int, headers: dict[str, str], length: int = 0):
                self.send_response(status)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()

            def send(self, name: str, content: bytes, headers: dict[str, str]):
                start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                if "Range" in self.headers:
                    headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                self.answer(206 if start else 200, headers | {"Accept-Ranges": "bytes"}, len(content) - start)
                if self.command == "GET":
                    self.close_connection = name in fake.breaks
                    self.wfile.write(content[start : BREAK if name in fake.breaks else None])

        return Handler


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), fake.handler())
    fake.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The client hands over whole chunks of 10 MB and waits seconds between its retries: small files, no waiting.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield fake
    close_session()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def get(fake: FakeHub, tmp_path: Path):
    """`download` from the fake hub into tmp_path."""
    return lambda repo_id=REPO, **options: download(repo_id, models_dir=tmp_path, endpoint=fake.endpoint, **options)


def refused(action, *words: str) -> str:
    """The message of the Qwen3Error that an action raises: one line with these words."""
    with pytest.raises(Qwen3Error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    return message


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_complete_download_has_the_needed_files_and_no_other(fake, get, tmp_path, capfd):
    folder = get()
    assert folder == tmp_path / REPO
    assert listing(tmp_path) == {f"{REPO}/{name}" for name in NEEDED}
    assert all((folder / name).read_bytes() == files()[name] for name in NEEDED)
    assert {r.path.split("1" * 40 + "/")[-1] for r in fake.requests if r.method == "GET"} <= NEEDED
    assert all(r.path.startswith(f"/{REPO}/resolve/") or r.path.startswith("/storage/") for r in fake.requests)
    assert {r.encoding for r in fake.requests} == {"identity"}  # a compressed answer has other byte positions
    assert resolve(REPO, tmp_path) == resolve(None, tmp_path) == folder
    assert capfd.readouterr().err == ""  # no progress bar where stderr is not a terminal


def test_progress_is_shown_for_each_file(get, monkeypatch, capfd):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # huggingface_hub's way to show bars where no terminal is
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


def break_off(fake: FakeHub, get) -> None:
    """Leaves a download that has the first shard, and BREAK bytes of the second."""
    fake.breaks = {SHARDS[1]}
    refused(get, "no connection to", fake.endpoint, "run the same command again, it resumes")
    fake.breaks = set()


def test_broken_download_goes_on_where_it_broke(fake, get, tmp_path):
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
    refused(lambda: resolve(REPO, tmp_path), REPO, "not complete", f"qwen3 download --repo_id {REPO}")
    refused(lambda: resolve(tmp_path / REPO), str(tmp_path / REPO), "not complete", "qwen3 download")
    assert resolve(None, tmp_path) == TINY


def test_client_continues_by_itself_after_a_short_break(fake, get, monkeypatch):
    fake.breaks = {SHARDS[0]}
    monkeypatch.setattr(time, "sleep", lambda seconds: fake.breaks.clear())
    try:
        folder = get()
    except Qwen3Error:  # huggingface_hub 1.0 does not retry this: a second call must do the same
        fake.breaks.clear()
        folder = get()
    assert fake.fetched(SHARDS[0]) == [None, f"bytes={BREAK}-"]
    assert (folder / SHARDS[0]).read_bytes() == weights(1)


def test_damaged_remains_are_found_and_fetched_anew(fake, get, tmp_path):
    break_off(fake, get)
    (part,) = (tmp_path / REPO / STAGING).iterdir()
    part.write_bytes(b"?" * BREAK)
    refused(get, SHARDS[1], "damaged")
    assert not (tmp_path / REPO / SHARDS[1]).exists()
    assert (get() / SHARDS[1]).read_bytes() == weights(2)


def test_whole_remains_are_not_asked_for(fake, get, tmp_path):
    break_off(fake, get)
    (part,) = (tmp_path / REPO / STAGING).iterdir()
    part.write_bytes(weights(2))
    fake.requests.clear()
    assert (get() / SHARDS[1]).read_bytes() == weights(2)
    assert fake.fetched(SHARDS[1]) == []


def test_remains_longer_than_the_file_are_fetched_anew(fake, get, tmp_path):
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


def test_second_download_mends_a_damaged_file(fake, get):
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
        ("config.json", b"<html>", (f"{REPO}/config.json", "JSON")),
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
    def http_get(url, out, **options):
        if ".safetensors" in url and not url.endswith(".json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(url, out, **options)

    real = hub.http_get
    monkeypatch.setattr(hub, "http_get", http_get)
    refused(get, "cannot write", REPO, "No space left", "again")


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
