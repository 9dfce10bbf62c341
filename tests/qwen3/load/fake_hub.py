"""A local server that speaks the hub's protocol, and the repositories on it."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwen3.errors import Qwen3Error

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
    lists: bool | bytes = False  # tells which files a repository has, or what is given
    codes: bool = True  # says why with a 404
    longer: str | None = None  # a file of which more bytes arrive than were announced
    hashes: bool = True  # a mirror may have etags of its own kind
    ranges: bool = True  # answers the range that was asked for, not the whole file
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
                if self.path.startswith("/api/models/") and fake.lists and not fake.refusal:
                    return self.listing(self.path.partition("?")[0].rpartition("/")[2])
                if fake.refusal:
                    return self.answer(fake.refusal[0], {"X-Error-Code": fake.refusal[1]})
                storage, *rest = self.path[1:].split("/", 2)
                if storage == "storage":
                    commit, name = rest
                    asked.answered = True
                    more = b"x" * 9 * CHUNK if name == fake.longer and self.command == "GET" else b""
                    return self.send(name, fake.commits[commit][name] + more, {})
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

            def listing(self, revision: str):
                found = fake.commits[fake.branches.get(revision, revision)]
                entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in found.items()]
                content = json.dumps(entries).encode() if fake.lists is True else fake.lists
                self.answer(200, {"Content-Type": "application/json"}, len(content))
                self.wfile.write(content)

            def answer(self, status: int, headers: dict[str, str], length: int = 0):
                self.send_response(status)
                if not fake.codes:
                    headers.pop("X-Error-Code", None)
                for key, value in headers.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(length))
                self.end_headers()

            def send(self, name: str, content: bytes, headers: dict[str, str]):
                asked = self.headers.get("Range") if fake.ranges else None
                start = int((asked or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                if asked:
                    headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
                self.answer(206 if start else 200, headers, len(content) - start)
                if self.command == "GET":
                    self.close_connection = name in fake.breaks
                    self.wfile.write(content[start : BREAK if name in fake.breaks else None])

        return Handler


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
