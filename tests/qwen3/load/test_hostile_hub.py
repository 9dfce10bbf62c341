"""Access tokens, addresses and answers that no hub should give: one line, and no secret in it."""

import json
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from qwen3.config import files as config_files
from qwen3.load import hub
from qwen3.load.explain import access_token, hub_address
from qwen3.load.hub import download, fetch_description
from qwen3.load.index import INDEX
from qwen3.load.resolve import STAGING, resolve

from .fake_hub import CONFIG, NEEDED, REPO, SHARDS, files, listing, refused, weights

SECRET = "hf_secretsecret"


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}\t", "\ufeff{}", "\n{}\n\n"])
def test_a_token_is_taken_without_its_line_end(around):
    assert access_token(around.format(SECRET)) == SECRET


def test_a_token_is_sent_without_its_line_end(fake, get):
    get(token=f"{SECRET}\n")
    assert {r.token for r in fake.requests if "/resolve/" in r.path} == {f"Bearer {SECRET}"}


@pytest.mark.parametrize("around", ["{}\nx", "{} x", "é{}", "{}\0", "{}\x1b[31m", "{}\ud800", "{}\u2028x"])
def test_a_token_that_cannot_be_sent_is_not_shown(fake, get, monkeypatch, around):
    token = around.format(SECRET)
    assert SECRET not in refused(lambda: get(token=token), "the access token has a character")
    if "\0" not in token and "\ud800" not in token:
        monkeypatch.setenv("HF_TOKEN", token)
        message = refused(get, "access token of HF_TOKEN", "has a character") if "\n" not in token else ""
        assert SECRET not in message
    assert fake.requests == [] or "\n" in token


@pytest.mark.parametrize("token", [5, True, b"hf_x", ["hf_x"]])
def test_a_token_is_text(get, token):
    message = refused(lambda: get(token=token), "the access token is a ", "it must be text")
    assert "hf_x" not in message


def test_an_empty_token_is_none(fake, get, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    get(token=" \n")
    assert {r.token for r in fake.requests} == {None}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    assert access_token(None) is None


def test_a_token_file_that_cannot_be_read(get, tmp_path, monkeypatch):
    (tmp_path / "token").mkdir()
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("qwen3.load.explain.get_token", lambda: (tmp_path / "token").read_text())
    refused(lambda: access_token(None), "hf auth login", "cannot be read", str(tmp_path / "token"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 418, 500, 503])
def test_no_answer_brings_the_token_into_a_message(fake, get, status):
    fake.refusal = (status, f"x{SECRET}")
    assert SECRET not in refused(lambda: get(token=f"{SECRET}\n"), f"{fake.endpoint}/{REPO}")


def test_a_secret_in_an_address_is_not_shown(fake, tmp_path):
    fake.refusal = (500, "")
    address = fake.endpoint.replace("http://", f"http://me:{SECRET}@")
    assert SECRET not in refused(lambda: download(REPO, models_dir=tmp_path, endpoint=address), fake.endpoint, "500")


@pytest.mark.parametrize(
    "address", ["", "huggingface.co", "ftp://x", "http://", "http://[::1", "http://x:99999", "x\ny", 5, "http://a b"]
)
def test_an_address_that_is_none(monkeypatch, tmp_path, address):
    words = ("HF_ENDPOINT",) if isinstance(address, str) else ("must be text",)
    assert refused(lambda: download(REPO, models_dir=tmp_path, endpoint=address), "the hub's address is", *words)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    refused(lambda: hub_address(None), "the hub's address is")


@pytest.mark.parametrize("revision", ["", " ", 5, b"main", "a\nb", "\x1b"])
def test_a_revision_is_text(get, revision):
    refused(lambda: get(revision=revision), "revision is", "branch, tag or commit")


def test_an_address_names_its_revision(fake, get):
    fake.commits["2" * 40] = files(**{SHARDS[0]: weights(6)})
    fake.branches["v1"] = "2" * 40
    page = f"https://huggingface.co/{REPO}/tree/v1"
    assert (get(page) / SHARDS[0]).read_bytes() == weights(6)
    assert (get(page, revision="v1") / SHARDS[0]).read_bytes() == weights(6)
    refused(lambda: get(page, revision="main"), "revision is main", "names v1")


@contextmanager
def server(answer):
    """A server that gives every request to `answer`, a function of the handler."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5

        def log_message(self, *_):
            pass

        def do_GET(self):
            answer(self)
            self.close_connection = True

        do_HEAD = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def headers(status: int, **values: str):
    """Answers with a status and headers alone."""

    def answer(handler):
        handler.send_response(status)
        for name, value in ({"Content-Length": "0"} | {k.replace("_", "-"): v for k, v in values.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


FOUND = {"X_Repo_Commit": "1" * 40, "ETag": '"x"'}


@pytest.mark.parametrize(
    "answer, words",
    [
        (headers(302, Location="http://[::1"), ("does not answer like a model hub",)),
        (headers(302, Location="\x01"), ()),
        (headers(302, Location="http://"), ()),
        (headers(302, Location="file:///etc/passwd"), ()),
        (headers(307, Location="/again"), ()),
        (headers(404), ("no model at",)),
        (headers(410), ("410",)),
        (headers(200), ("does not answer like a model hub",)),
        (headers(200, X_Repo_Commit="1" * 40), ("does not answer like a model hub",)),
        (headers(200, **FOUND, Content_Length="-5"), ()),
        (headers(200, **FOUND, Content_Length="x"), ()),
        (headers(200, **FOUND, X_Linked_Size="-5"), ()),
        (headers(200, **FOUND, X_Linked_Size="1e400"), ()),
        (headers(200, **FOUND, X_Linked_Size="9" * 5000), ()),
        (headers(200, **FOUND), (f"{REPO}/config.json",)),
        (lambda handler: handler.wfile.write(b"no HTTP\r\n\r\n"), ("check the network",)),
        (lambda handler: None, ("check the network",)),
    ],
)  # fmt: skip
def test_answers_of_what_is_no_hub(fake, tmp_path, answer, words):
    with server(answer) as endpoint:
        message = refused(lambda: download(REPO, models_dir=tmp_path, endpoint=endpoint, token=SECRET), *words)
    assert SECRET not in message and message.isprintable() and listing(tmp_path) == set()


@pytest.mark.parametrize("kind", [ValueError, OSError, KeyError, RuntimeError])
def test_a_token_in_an_answer_is_not_shown(get, monkeypatch, kind):
    def fail(*_, **__):
        raise kind(f"Illegal header value b'Bearer {SECRET}'")

    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    assert SECRET in refused(lambda: get(token="hf_other")), "the error brings it into the message"
    assert SECRET not in refused(lambda: get(token=f"{SECRET}\n"), "[the access token]")


def test_a_mirror_that_says_404_without_a_reason_has_no_optional_files(fake, get):
    fake.codes = False
    fake.commits["1" * 40] = files(**dict.fromkeys(hub.OPTIONAL), **{"model.safetensors": weights(3)})
    assert listing(get()) == {"config.json", "tokenizer.json", "model.safetensors"}
    fake.commits["1" * 40].pop("tokenizer.json")
    refused(get, "no tokenizer.json at")
    refused(lambda: get("Org/Other", token=SECRET), "no model at")


def test_small_files_and_weights_have_an_end(fake, get, monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "MAX_BYTES", 2000)
    fake.commits["1" * 40] = files(**{"tokenizer.json": b" " * 2001})
    refused(get, f"{REPO}/tokenizer.json", "more than its 2000 bytes")
    assert config_files.MAX_BYTES > 11e6
    fake.commits["1" * 40], fake.longer = files(), SHARDS[0]
    refused(get, f"{REPO}/{SHARDS[0]}", "more than its")
    assert (tmp_path / REPO / STAGING).is_dir()
    fake.longer = None
    assert listing(get()) == NEEDED


def test_shards_without_an_index_are_found_by_the_list_of_files(fake, get, tmp_path):
    fake.commits["1" * 40] = files(**{INDEX: None, "model.safetensors": None})
    refused(get, "no model.safetensors at")
    fake.lists = True
    folder = get()
    assert listing(folder) == NEEDED - {INDEX} and resolve(REPO, tmp_path) == folder
    fake.commits["1" * 40].pop(SHARDS[0])
    refused(get, f"{SHARDS[0]} is missing, 1 of 2 shards")


@pytest.mark.parametrize(
    "name", ["../x-00001-of-00001.safetensors", "/x.safetensors", "a/b.safetensors", "\x1b.safetensors"]
)
def test_a_list_of_files_names_none_outside(fake, get, tmp_path, name):
    fake.commits["1" * 40] = files(**dict.fromkeys((INDEX, *SHARDS, "model.safetensors", "pytorch_model.bin"))) | {
        name: b"x"
    }
    fake.lists = True
    refused(get, "no model.safetensors at")
    assert listing(tmp_path) == set()


@pytest.mark.parametrize("answer", [b"{}", b"[1]", b'[{"path": 1}]', b"[", b"\xff", b"[" * 5000, b" " * 3000])
def test_a_list_of_files_that_is_none(fake, get, monkeypatch, answer):
    monkeypatch.setattr(hub, "MAX_BYTES", 2000)
    fake.commits["1" * 40], fake.lists = files(**{"config.json": None}), answer
    refused(get, "no config.json at")


def test_an_update_leaves_no_weights_of_another_revision(fake, get):
    fake.commits["1" * 40] = files(**{INDEX: None, "model.safetensors": weights(3)})
    folder = get()
    (folder / "my own.safetensors").write_bytes(b"x")
    fake.commits["2" * 40], fake.branches["main"] = files(), "2" * 40
    assert listing(get()) == NEEDED | {"my own.safetensors"}
    fake.branches["main"] = "1" * 40
    assert listing(get()) == (NEEDED - {INDEX, *SHARDS}) | {"model.safetensors", "my own.safetensors"}


def test_two_downloads_into_one_folder(fake, get, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    assert fcntl
    real = hub._Repo.save

    def save(repo, name, file, path):
        monkeypatch.setattr(hub._Repo, "save", real)
        refused(get, REPO, "another download into it is running")
        return real(repo, name, file, path)

    monkeypatch.setattr(hub._Repo, "save", save)
    assert listing(get()) == NEEDED


def test_offline_what_is_here_is_returned(fake, get, monkeypatch, tmp_path):
    folder = get()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fake.requests.clear()
    assert get() == folder and fake.requests == []
    refused(lambda: get(revision="v1"), "HF_HUB_OFFLINE is set")
    (folder / "tokenizer.json").unlink()
    refused(get, "HF_HUB_OFFLINE is set")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in NEEDED:
        (snapshot / name).write_bytes(files()[name])
    assert get() == get(revision="abc") == snapshot


def test_a_description_is_config_and_index_alone(fake, tmp_path):
    assert fetch_description(REPO, tmp_path, endpoint=fake.endpoint) is None
    assert listing(tmp_path) == {"config.json", INDEX}
    assert not [r for r in fake.requests if r.path.endswith((".safetensors", "tokenizer.json"))]
    fake.commits["1" * 40] = files(**{INDEX: None, "model.safetensors": weights(3)})
    (tmp_path / "one").mkdir()
    assert fetch_description(REPO, tmp_path / "one", endpoint=fake.endpoint) == len(weights(3))
    assert listing(tmp_path / "one") == {"config.json"}
    fake.commits["1" * 40].pop("model.safetensors")
    assert fetch_description(REPO, tmp_path / "one", endpoint=fake.endpoint) is None
    fake.commits["1" * 40]["config.json"] = json.dumps(CONFIG | {"model_type": "llama"}).encode()
    refused(lambda: fetch_description(REPO, tmp_path / "one", endpoint=fake.endpoint), "llama")
    refused(lambda: fetch_description("Org/Other", tmp_path / "one", endpoint=fake.endpoint), "no model at")


@pytest.mark.parametrize(
    "name, value",
    [
        ("HTTPS_PROXY", f"http://me:{SECRET}@[::1"),
        ("ALL_PROXY", f"ftp://me:{SECRET}@x"),
        ("ALL_PROXY", "socks9://x:1"),
        ("SSL_CERT_FILE", "/nowhere.pem"),
    ],
)
def test_an_environment_that_allows_no_client(fake, get, monkeypatch, name, value):
    close_session()
    monkeypatch.setenv(name, value)
    assert SECRET not in refused(get, "no client for the hub", name)
    close_session()


def test_an_environment_that_huggingface_hub_does_not_take():
    code = "from qwen3.cli.main import main; raise SystemExit(main(['list']))"
    environment = os.environ | {"HF_HUB_ETAG_TIMEOUT": "x"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: huggingface_hub cannot be imported (ValueError")
    assert done.stderr.count("\n") == 1


def test_nothing_is_logged_of_the_token(fake, get, caplog):
    caplog.set_level(logging.DEBUG, "qwen3")
    get(token=SECRET)
    assert SECRET not in caplog.text


def test_a_place_that_is_a_link_to_nowhere(fake, tmp_path):
    (tmp_path / "models").symlink_to("nowhere/at/all")
    refused(lambda: download(REPO, models_dir=tmp_path / "models", endpoint=fake.endpoint), "cannot write to")
    assert Path(tmp_path / "models").is_symlink()
