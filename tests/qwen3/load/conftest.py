"""`download` from a fake hub."""

import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from qwen3.load import hub
from qwen3.load.hub import download

from .fake_hub import CHUNK, REPO, FakeHub


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
    # Files are written by chunks of 1 MB, with a second between retries: here they are small, and nothing waits.
    monkeypatch.setattr(hub, "CHUNK", CHUNK)
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
