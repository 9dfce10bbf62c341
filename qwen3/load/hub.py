"""Checkpoints from the Hugging Face hub: `download` fetches one into models/, `fetch_description` its small files."""

import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from huggingface_hub import constants, errors, get_hf_file_metadata, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers, http_stream_backoff, tqdm

from ..config.files import MAX_BYTES, parse_json, refuse_stand_in
from ..config.generation import FILE as GENERATION
from ..config.generation import defaults_from
from ..config.hf import from_hf
from ..config.model import ModelConfig
from ..errors import Qwen3Error, brief
from .contents import CONFIG, TOKENIZER
from .explain import access_token, explain, hidden, http_library, hub_address, is_missing, open_client
from .index import INDEX, WEIGHTS, is_weight_name, shard_names, without_index
from .resolve import STAGING, HubName, cached, hub_name, is_complete, model_text, models_folder

OPTIONAL = (
    GENERATION, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja", INDEX,
)  # fmt: skip
CHUNK = 1 << 20  # bytes of an answer that are written at once, and that a broken connection can lose
RETRIES = 5  # breaks of a connection in a row, without a byte between them


def download(
    repo_id: str,
    revision: str | None = None,
    models_dir: str | os.PathLike[str] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Downloads a checkpoint, or what is missing or outdated of it, into models_dir/repo_id.

    Args:
        repo_id: "Organisation/Name" on the hub, or its address there.
        revision: branch, tag or commit; None is the main branch.
        models_dir: where models are kept; None is `models_folder()`.
        token: access token; None takes HF_TOKEN or the one that `hf auth login` saved.
        endpoint: the hub's address; None takes HF_ENDPOINT or huggingface.co.

    Returns:
        The model's folder, complete. With HF_HUB_OFFLINE: what is here already, in the cache of Hugging Face too.

    Raises:
        Qwen3Error: no such model or revision, no access, a model that is not supported, no connection, no space.
            Another call continues where this one stopped.
    """
    name = _hub_name(repo_id, revision)
    folder = models_folder(models_dir) / name.id
    with _errors_in_one_line(_Repo(name, token, endpoint), folder) as repo:
        try:
            _update(folder, repo)
        except errors.OfflineModeIsEnabled:
            here = [folder] if name.revision is None else []
            if (snapshot := cached(name.id, name.revision)) is not None:
                here.append(snapshot)
            if not (complete := [place for place in here if is_complete(place)]):
                raise
            return complete[0]
    return folder


def fetch_description(
    repo_id: str, folder: Path, revision: str | None = None, endpoint: str | None = None
) -> int | None:
    """Writes config.json and the index of a model on the hub into `folder`; returns the bytes of one weight file."""
    with _errors_in_one_line(_Repo(_hub_name(repo_id, revision), None, endpoint), folder) as repo:
        repo.find(CONFIG)
        (folder / CONFIG).write_bytes(_config(repo)[0])
        try:
            (folder / INDEX).write_bytes(repo.read(INDEX))
        except errors.HfHubHTTPError as error:
            if not is_missing(error):
                raise
        else:
            return None
        try:
            return repo.find(WEIGHTS).size
        except errors.HfHubHTTPError:
            return None


def _hub_name(repo_id: str, revision: str | None) -> HubName:
    """Returns the model and revision of an id or an address."""
    text = model_text(repo_id)
    name = hub_name(text)
    if name is None:
        raise Qwen3Error(
            f"no such model: {brief(text, 200)}: a model on the hub is named Organisation/Name, such as Qwen/Qwen3-0.6B"
        )
    if revision is None:
        return name
    if not isinstance(revision, str) or not revision.strip() or not revision.isprintable():
        raise Qwen3Error(f"revision is {brief(revision)}: it must be a branch, tag or commit")
    if name.revision not in (None, revision):
        raise Qwen3Error(f"revision is {revision}, but the address names {name.revision}: give one of them")
    return HubName(name.id, revision)


@contextmanager
def _errors_in_one_line(repo: "_Repo", folder: Path) -> Iterator["_Repo"]:
    """Turns what the client, the hub's answers or the disk raise into a Qwen3Error without the token."""
    try:
        yield repo
    except Exception as error:
        if isinstance(error, Qwen3Error):
            message = str(error)
        else:
            found = repo.names() if is_missing(error) else []
            message = explain(error, f"{repo.endpoint}/{repo.id}", repo.revision, repo.found, found, folder)
        raise Qwen3Error(hidden(message, repo.token)) from None


@dataclass(frozen=True)
class _File:
    """A file as the hub describes it; the etag of a large file is its SHA-256."""

    size: int
    etag: str


class _Repo:
    """A model on the hub; the first `find` pins its revision to a commit, so that all files belong together."""

    def __init__(self, name: HubName, token: str | None, endpoint: str | None):
        self.id, self.revision, self.found = name.id, name.revision or constants.DEFAULT_REVISION, False
        self.token, self.endpoint = access_token(token), hub_address(endpoint)
        open_client()

    def url(self, name: str) -> str:
        return f"{self.endpoint}/{self.id}/resolve/{quote(self.revision, safe='')}/{quote(name)}"

    def find(self, name: str) -> _File:
        file = get_hf_file_metadata(self.url(name), token=self.token or False)
        if file.commit_hash is None or file.etag is None or file.size is None or file.size < 0:
            raise Qwen3Error(f"{self.endpoint} does not answer like a model hub: check HF_ENDPOINT and the proxy")
        self.revision, self.found = file.commit_hash, True
        return _File(file.size, file.etag)

    def names(self) -> list[str]:
        """The names of the files in the repository's own folder, none where the hub does not tell."""
        content, url = io.BytesIO(), f"{self.endpoint}/api/models/{self.id}/tree/{quote(self.revision, safe='')}"
        try:
            self._get("list of files", content, 0, None, url)
            paths = [entry["path"] for entry in parse_json(content.getvalue().decode(), url)]
            return sorted(path for path in paths if re.fullmatch(r"[\w. +-]+", path))
        except Exception:  # asked to explain an error: that one is told
            return []

    def read(self, name: str) -> bytes:
        content = io.BytesIO()
        self._get(name, content, 0, None)
        data = content.getvalue()
        refuse_stand_in(Path(self.id) / name, data)
        return data

    def save(self, name: str, file: _File, path: Path) -> None:
        """Fills `path`, resuming after the bytes that it holds (hf_hub_download would start again)."""
        done = path.stat().st_size if path.exists() else 0
        if done != file.size:
            done = done if done < file.size else 0
            with path.open("ab" if done else "wb") as out:
                self._get(name, out, done, file.size)

    def _get(self, name: str, out: BinaryIO, done: int, size: int | None, url: str | None = None) -> None:
        """Appends a file to `out` from byte `done` on, with a progress bar; resumes when the connection breaks.

        Raises Qwen3Error for an answer of more than `size` bytes, of more than a small file has where it is None.
        """
        # Not compressed: ranges count the bytes of the file.
        headers = build_hf_headers(token=self.token or False) | {"Accept-Encoding": "identity"}
        retries, limit = RETRIES, MAX_BYTES if size is None else size
        with tqdm(total=size, initial=done, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while True:
                start = done
                try:
                    with http_stream_backoff(
                        "GET",
                        url or self.url(name),
                        headers=headers | ({"Range": f"bytes={done}-"} if done else {}),
                        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                        retry_on_exceptions=(),
                        retry_on_status_codes=(408, 429),
                    ) as response:
                        hf_raise_for_status(response)
                        if done and response.status_code == 200:  # the server ignored the range
                            out.seek(0)
                            out.truncate()
                            bar.update(-done)
                            done = 0
                        for chunk in response.iter_bytes(CHUNK):
                            if done + len(chunk) > limit:
                                raise Qwen3Error(
                                    f"{self.id}/{name}: the hub sends more than its {limit} bytes: try again"
                                )
                            out.write(chunk)
                            done += len(chunk)
                            bar.update(len(chunk))
                    return
                except http_library().TransportError:
                    retries = RETRIES if done > start else retries - 1
                    if retries < 0:
                        raise
                    time.sleep(1)


def _config(repo: _Repo) -> tuple[bytes, ModelConfig]:
    """Reads config.json of a repository; raises Qwen3Error for a model that is not supported."""
    data, source = repo.read(CONFIG), f"{repo.id}/{CONFIG}"
    return data, from_hf(_json_object(data, source), source)


def _small_files(repo: _Repo) -> dict[str, bytes]:
    """Reads all files of a model but its weights; raises Qwen3Error for one that cannot be used."""
    repo.find(CONFIG)
    data, config = _config(repo)
    small = {CONFIG: data, TOKENIZER: repo.read(TOKENIZER)}
    for name in OPTIONAL:
        try:
            small[name] = repo.read(name)
        except errors.HfHubHTTPError as error:
            if not is_missing(error):
                raise
    for name, content in small.items():
        if name.endswith(".json"):
            values = _json_object(content, f"{repo.id}/{name}")
            if name == GENERATION:
                defaults_from(values, f"{repo.id}/{name}", config.vocab_size)
    return small


def _weights(repo: _Repo, index: bytes | None) -> dict[str, _File]:
    """Finds the weight files of a repository: those of its index, else one file, else shards without an index."""
    source = f"{repo.id}/{INDEX}"
    if index is not None:
        return {name: repo.find(name) for name in shard_names(_json_object(index, source), source)}
    try:
        return {WEIGHTS: repo.find(WEIGHTS)}
    except errors.HfHubHTTPError as error:
        if not is_missing(error) or not (names := without_index(repo.names(), repo.id)):
            raise
    return {name: repo.find(name) for name in names}


def _update(folder: Path, repo: _Repo) -> None:
    """Brings a folder to the state of a repository; the folder holds STAGING from the first change to the last."""
    # Small files stay in memory until the weights are there: those in the folder belong to the weights in the folder.
    small = _small_files(repo)
    weights = _weights(repo, small.get(INDEX))
    missing = {name: file for name, file in weights.items() if not _holds(folder / name, file)}
    parts = {name: folder / STAGING / f"{name}.{quote(file.etag, safe='')}" for name, file in missing.items()}

    needed = sum(file.size for file in missing.values()) + sum(map(len, small.values()))
    needed -= sum(part.stat().st_size for part in parts.values() if part.exists())
    place = folder.resolve()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if needed > free:
        gigabytes = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise Qwen3Error(f"no space for {folder}: {gigabytes}: make room or choose another place")

    (folder / STAGING).mkdir(parents=True, exist_ok=True)
    with _alone(folder / STAGING):
        for name, file in missing.items():
            repo.save(name, file, parts[name])
            if not _holds(parts[name], file):
                parts[name].unlink()
                raise Qwen3Error(f"{repo.id}/{name} arrived damaged and was deleted: run the same command again")
            parts[name].replace(folder / name)
        # Files of an older revision would be read in place of these.
        old = {path.name for path in folder.iterdir() if is_weight_name(path.name)} - weights.keys()
        for name in old | (set(OPTIONAL) - small.keys()):
            (folder / name).unlink(missing_ok=True)
        for name, content in small.items():
            staged = folder / STAGING / Path(name).name
            staged.write_bytes(content)
            (folder / name).parent.mkdir(exist_ok=True)
            staged.replace(folder / name)
        shutil.rmtree(folder / STAGING)


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Keeps a second download out of a folder while this one runs, where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(staging, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Qwen3Error(f"{staging.parent}: another download into it is running: wait for its end") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _holds(path: Path, file: _File) -> bool:
    """Tells whether `path` has the bytes of the hub's file: the size, and the SHA-256 where the etag is one."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if not re.fullmatch("[0-9a-f]{64}", file.etag):
        return True
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == file.etag


def _json_object(content: bytes, source: str) -> dict[str, Any]:
    try:
        values = parse_json(content.decode("utf-8-sig"), source)
    except UnicodeDecodeError:
        raise Qwen3Error(f"{source}: is not UTF-8 text: choose another revision or model") from None
    if not isinstance(values, dict):
        raise Qwen3Error(f"{source}: the hub has no JSON object there: choose another revision or model")
    return values
