"""Checkpoints from the Hugging Face hub: `download` fetches one into models/, `resolve` finds the folder of a model."""

import hashlib
import importlib
import io
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO
from urllib.parse import quote

from huggingface_hub import constants, errors, get_hf_file_metadata, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.utils import build_hf_headers, http_stream_backoff, tqdm, validate_repo_id

from ..config.hf import from_hf
from ..errors import Qwen3Error
from .index import INDEX, WEIGHTS, shard_names, weight_names

TINY = Path(__file__).parent.parent / "tiny"
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
OPTIONAL = ("generation_config.json", "tokenizer_config.json", "chat_template.jinja", INDEX)
# Holds the unfinished files of a download; a folder that contains it is not a model yet.
STAGING = ".download"
CHUNK = 1 << 20  # bytes of an answer that are written at once, and that a broken connection can lose
RETRIES = 5  # breaks of a connection in a row, without a byte between them


def download(
    repo_id: str,
    revision: str | None = None,
    models_dir: Path = Path("models"),
    token: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Downloads a checkpoint, or what is missing or outdated of it, into models_dir/repo_id.

    Args:
        repo_id: "Organisation/Name" on the hub.
        revision: branch, tag or commit; None is the main branch.
        models_dir: where models are kept.
        token: access token; None takes HF_TOKEN or the one that `hf auth login` saved.
        endpoint: the hub's address; None takes HF_ENDPOINT or huggingface.co.

    Returns:
        The model's folder, complete.

    Raises:
        Qwen3Error: no such model or revision, no access, a model that is not supported, no connection, no space.
            Another call continues where this one stopped.
    """
    if not _is_hub_id(repo_id):
        raise Qwen3Error(f"no such model: {repo_id}: a model on the hub is named Organisation/Name")
    repo = _Repo(repo_id, revision or constants.DEFAULT_REVISION, token, (endpoint or constants.ENDPOINT).rstrip("/"))
    folder = Path(models_dir) / repo_id
    try:
        _update(folder, repo)
    except (OSError, _http_library().HTTPError) as error:
        raise Qwen3Error(_explain(error, repo, folder)) from None
    return folder


def resolve(model: str | Path | None, models_dir: Path = Path("models")) -> Path:
    """Finds the folder of a model on this machine.

    Args:
        model: a folder, "tiny" (the embedded model), a downloaded hub id, or None: the latest download, else "tiny".
        models_dir: where `download` put them.

    Returns:
        The model's folder.

    Raises:
        Qwen3Error: there is no such model here, or its download is not complete.
    """
    if model is None:
        folders = filter(_is_complete, (config.parent for config in Path(models_dir).glob(f"*/*/{CONFIG}")))
        return max(folders, key=lambda folder: (folder / CONFIG).stat().st_mtime, default=TINY)
    if model == "tiny":
        return TINY
    if str(model) and Path(model).is_dir():
        if (Path(model) / STAGING).exists():
            raise Qwen3Error(f"{model}: its download is not complete: run the same `qwen3 download` again, it resumes")
        return Path(model)
    if not _is_hub_id(model):
        raise Qwen3Error(f'no such model: {model}: give a folder, a hub id like Qwen/Qwen3-30B-A3B, or "tiny"')
    folder = Path(models_dir) / model
    if not _is_complete(folder):
        state = "its download is not complete" if folder.exists() else f"it is not in {models_dir}"
        raise Qwen3Error(f"no such model: {model}: {state}: run `qwen3 download --repo_id {model}`")
    return folder


@dataclass(frozen=True)
class _File:
    """A file as the hub describes it; the etag of a large file is its SHA-256."""

    size: int
    etag: str


class _Repo:
    """A model on the hub; the first `find` pins its revision to a commit, so that all files belong together."""

    def __init__(self, repo_id: str, revision: str, token: str | None, endpoint: str):
        self.id, self.revision, self.token, self.endpoint = repo_id, revision, token, endpoint

    def url(self, name: str) -> str:
        return hf_hub_url(self.id, name, revision=self.revision, endpoint=self.endpoint)

    def find(self, name: str) -> _File:
        file = get_hf_file_metadata(self.url(name), token=self.token)
        if file.commit_hash is None or file.etag is None or file.size is None:
            raise Qwen3Error(f"{self.endpoint} does not answer like a model hub: check HF_ENDPOINT and the proxy")
        self.revision = file.commit_hash
        return _File(file.size, file.etag)

    def read(self, name: str) -> bytes:
        content = io.BytesIO()
        self._get(name, content, 0, None)
        return content.getvalue()

    def save(self, name: str, file: _File, path: Path) -> None:
        """Fills `path`, resuming after the bytes that it holds (hf_hub_download would start again)."""
        done = path.stat().st_size if path.exists() else 0
        if done != file.size:
            done = done if done < file.size else 0
            with path.open("ab" if done else "wb") as out:
                self._get(name, out, done, file.size)

    def _get(self, name: str, out: BinaryIO, done: int, size: int | None) -> None:
        """Appends a file to `out` from byte `done` on, with a progress bar; resumes when the connection breaks."""
        # Not compressed: ranges count the bytes of the file.
        headers = build_hf_headers(token=self.token) | {"Accept-Encoding": "identity"}
        retries = RETRIES
        with tqdm(total=size, initial=done, desc=name, unit="B", unit_scale=True, disable=None) as bar:
            while True:
                start = done
                try:
                    with http_stream_backoff(
                        "GET",
                        self.url(name),
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
                            out.write(chunk)
                            done += len(chunk)
                            bar.update(len(chunk))
                    return
                except _http_library().TransportError:
                    retries = RETRIES if done > start else retries - 1
                    if retries < 0:
                        raise
                    time.sleep(1)


def _http_library() -> ModuleType:
    """The HTTP library of huggingface_hub's client: httpx, or httpx2 since version 2; both name their errors alike."""
    return importlib.import_module(type(get_session()).__module__.partition(".")[0])


def _update(folder: Path, repo: _Repo) -> None:
    """Brings a folder to the state of a repository; the folder holds STAGING from the first change to the last."""
    repo.find(CONFIG)
    # Small files stay in memory until the weights are there: those in the folder belong to the weights in the folder.
    small = {CONFIG: repo.read(CONFIG)}
    from_hf(_json_object(small[CONFIG], f"{repo.id}/{CONFIG}"), f"{repo.id}/{CONFIG}")
    small[TOKENIZER] = repo.read(TOKENIZER)
    for name in OPTIONAL:
        try:
            small[name] = repo.read(name)
        except errors.EntryNotFoundError:
            continue
    source = f"{repo.id}/{INDEX}"
    names = shard_names(_json_object(small[INDEX], source), source) if INDEX in small else [WEIGHTS]
    weights = {name: repo.find(name) for name in names}
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
    for name, file in missing.items():
        repo.save(name, file, parts[name])
        if not _holds(parts[name], file):
            parts[name].unlink()
            raise Qwen3Error(f"{repo.id}/{name} arrived damaged and was deleted: run the same command again")
        parts[name].replace(folder / name)
    for name in set(OPTIONAL) - small.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in small.items():
        (folder / STAGING / name).write_bytes(content)
        (folder / STAGING / name).replace(folder / name)
    shutil.rmtree(folder / STAGING)


def _explain(error: Exception, repo: _Repo, folder: Path) -> str:
    """Says in one line what the hub's client or the disk raised, where, and what to do."""
    page, again = f"{repo.endpoint}/{repo.id}", "run the same command again, it resumes"
    cause = " ".join(str(error).split()) or type(error).__name__
    match error:
        case errors.OfflineModeIsEnabled():
            return f"cannot download {repo.id}: HF_HUB_OFFLINE is set: unset it to reach the hub"
        case errors.GatedRepoError():
            return f"no access to {page}: it is gated: accept its licence there and set HF_TOKEN to your access token"
        case errors.RepositoryNotFoundError():
            return f"no model at {page}, or a private one: check the id, or set HF_TOKEN to a token that may read it"
        case errors.RevisionNotFoundError():
            return f"no revision {repo.revision!r} of {page}: choose one of its branches, tags or commits"
        case errors.RemoteEntryNotFoundError():
            name = error.response.url.path.rsplit("/", 1)[-1]
            return f"no {name} at {page}: a model needs {CONFIG}, {TOKENIZER} and safetensors weights"
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"no access to {page}: set HF_TOKEN to a valid token that may read it"
        case errors.HfHubHTTPError():
            return f"{page}: the hub answered with HTTP status {error.response.status_code}: later, {again}"
        case OSError() if error.errno is not None:
            return f"cannot write to {folder} ({error.strerror}): free or change that place, then {again}"
    return f"no connection to {repo.endpoint}, or it broke ({cause}): check the network, then {again}"


def _is_hub_id(name: str | Path) -> bool:
    try:
        validate_repo_id(str(name))
    except errors.HFValidationError:
        return False
    return isinstance(name, str) and "/" in name


def _is_complete(folder: Path) -> bool:
    """Tells whether a folder has every file of a model and no unfinished download or update."""
    if (folder / STAGING).exists():
        return False
    try:
        names = (CONFIG, TOKENIZER, *weight_names(folder))
    except Qwen3Error:
        return False
    return all((folder / name).is_file() for name in names)


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


def _json_object(content: bytes, source: str) -> dict:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise Qwen3Error(f"{source}: the hub has no JSON object there: choose another revision or model") from None
