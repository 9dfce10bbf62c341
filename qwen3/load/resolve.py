"""Finds the folder of a model on this machine: in a folder, in models/, in the cache of Hugging Face."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config.files import read_text
from ..errors import Qwen3Error, brief, closest
from .contents import CONFIG, TOKENIZER, kind_of, refuse_what_is_no_model
from .index import weight_names

TINY = Path(__file__).parent.parent / "tiny"
# Holds the unfinished files of a download; a folder that contains it is not a model yet.
STAGING = ".download"
_SITES = {"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"}
_CACHED = re.compile(r"models--(.+?)--(.+)")


@dataclass(frozen=True)
class HubName:
    """A model on the hub, and the revision that its address names."""

    id: str
    revision: str | None = None


def models_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Where downloads are kept: `given`, else the environment's QWEN3_MODELS, else models/ below the current folder."""
    text = os.environ.get("QWEN3_MODELS") or "models" if given is None else given
    if not isinstance(text, (str, os.PathLike)):
        raise Qwen3Error(f"models_dir is {brief(given)}: it must be a path")
    return Path(os.path.expanduser(text))


def resolve(model: str | os.PathLike[str] | None, models_dir: str | os.PathLike[str] | None = None) -> Path:
    """Finds the folder of a model on this machine.

    Args:
        model: a folder, "tiny" (the embedded model), a hub id or its address; None: the latest download, else "tiny".
        models_dir: where `download` put them; None is `models_folder()`.

    Returns:
        The model's folder. For a hub id: the one in models_dir, else a complete one in the cache of Hugging Face.

    Raises:
        Qwen3Error: there is no such model here, its download is not complete, or the folder is something else.
    """
    models = models_folder(models_dir)
    if model is None:
        complete = filter(is_complete, (config.parent for config in models.glob(f"*/*/{CONFIG}")))
        return max(complete, key=lambda folder: (folder / CONFIG).stat().st_mtime, default=TINY)
    text = model_text(model)
    if text == "tiny" and isinstance(model, str):
        return TINY
    path = Path(os.path.expanduser(unquote(urlsplit(text).path) if text.startswith("file:///") else text))
    if text and os.path.isdir(path):
        # A folder without a model that happens to have the name of one, as an unfinished clone leaves it.
        found = None if os.path.lexists(path / CONFIG) or path.is_absolute() else _complete(hub_name(text), models)
        return found or _in_folder(path, text)
    if text and os.path.lexists(path):
        what = f" but {what}" if (what := kind_of(path.name)) else ""
        raise Qwen3Error(f"{brief_name(text)}: is not a folder{what}: give the folder that holds {CONFIG}")
    name = hub_name(text)
    if name is None:
        near = f"did you mean {close}? else " if (close := _similar(text, models)) else ""
        raise Qwen3Error(
            f'no such model: {brief_name(text)}: {near}give a folder, a hub id like Qwen/Qwen3-30B-A3B, or "tiny"'
        )
    return _by_id(name, models)


def model_name(folder: Path) -> str:
    """A model's folder as a message shows it; the embedded model by its name."""
    return "tiny" if folder == TINY else str(folder)


def model_text(model: object) -> str:
    """A model's name or path as text; raises Qwen3Error for any other type."""
    text = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(text, str):
        raise Qwen3Error(f'model is {brief(model)}: give a folder, a hub id like Qwen/Qwen3-30B-A3B, or "tiny"')
    return text


def brief_name(text: str, limit: int = 200) -> str:
    """A name as a message shows it, cut."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def hub_name(text: str) -> HubName | None:
    """Reads an id, Organisation/Name, as people paste it: with a slash behind it, or as an address of the hub.

    Raises Qwen3Error for an address that is not of a model.
    """
    text = text.strip()
    address = re.sub(r"^(hf://|git@hf\.co:|git@huggingface\.co:)", "https://huggingface.co/", text)
    if re.match(r"(www\.)?(huggingface\.co|hf\.co)/", address):
        address = f"https://{address}"
    if cached := _CACHED.fullmatch(text.rstrip("/")):
        address = f"{cached[1]}/{cached[2]}"
    revision = None
    if re.match(r"[a-zA-Z][\w+.-]*://", address):
        address, revision = _of_address(address, text)
    elif "/" in address:
        address = address.rstrip("/")
    try:
        validate_repo_id(address)
    except HFValidationError:
        return None
    return HubName(address, revision) if "/" in address else None


def _of_address(address: str, text: str) -> tuple[str, str | None]:
    """An address of the hub -> (id, revision); paths are those of its pages, its files and its git repositories."""
    wrong = f"no such model: {brief_name(text)}: is not the address of a model: give its id, like Qwen/Qwen3-30B-A3B"
    try:
        parts = urlsplit(address)
        host, endpoint = parts.hostname, urlsplit(constants.ENDPOINT).hostname
    except ValueError:
        raise Qwen3Error(wrong) from None
    pieces = [unquote(piece) for piece in parts.path.split("/") if piece]
    if (
        host not in _SITES | {endpoint}
        or len(pieces) < 2
        or pieces[0] in ("datasets", "spaces", "papers", "collections")
    ):
        raise Qwen3Error(wrong)
    if pieces[0] == "models":
        pieces = pieces[1:]
    # Any page of a model but those below a revision: discussions, commits, and so on.
    revision = pieces[3] if len(pieces) > 3 and pieces[2] in ("tree", "blob", "resolve", "raw", "commit") else None
    return "/".join((*pieces[:1], pieces[1].removesuffix(".git"))) if len(pieces) > 1 else "", revision


def is_complete(folder: Path) -> bool:
    """Tells whether a folder has every file of a model and no unfinished download or update."""
    if os.path.lexists(folder / STAGING):
        return False
    try:
        names = (CONFIG, TOKENIZER, *weight_names(folder))
    except Qwen3Error:
        return False
    return all(os.path.isfile(folder / name) for name in names)


def hub_cache() -> Path:
    """The cache of huggingface_hub, which transformers and vLLM fill."""
    return Path(constants.HF_HUB_CACHE)


def snapshot(repo: Path, revision: str | None = None) -> Path | None:
    """The snapshot of a repository in the cache: of `revision`, else of its main branch, else the newest one."""
    snapshots = repo / "snapshots"
    wanted = revision or constants.DEFAULT_REVISION
    try:
        commit = (
            read_text(repo / "refs" / wanted, limit=200).strip() if os.path.lexists(repo / "refs" / wanted) else wanted
        )
    except Qwen3Error:
        commit = wanted
    if re.fullmatch(r"[\w-]+", commit) and os.path.isdir(snapshots / commit):
        return snapshots / commit
    if revision is not None:
        return None
    try:
        found = [entry for entry in snapshots.iterdir() if entry.is_dir()]
    except OSError:
        return None
    return max(found, key=lambda entry: (is_complete(entry), entry.stat().st_mtime), default=None)


def cached(repo_id: str, revision: str | None = None) -> Path | None:
    """The snapshot of a model in the cache of Hugging Face, complete or not."""
    return snapshot(hub_cache() / f"models--{repo_id.replace('/', '--')}", revision)


def _in_folder(path: Path, text: str) -> Path:
    """A folder that was given: itself, or the snapshot of a repository in the cache."""
    if os.path.lexists(path / STAGING):
        raise Qwen3Error(
            f"{brief_name(text)}: its download is not complete: run the same `qwen3 download` again, it resumes"
        )
    if not os.path.lexists(path / CONFIG):
        repo = path.parent if path.name == "snapshots" else path
        if os.path.isdir(repo / "snapshots"):
            found = snapshot(repo)
            if found is None or not os.path.lexists(found / CONFIG):
                raise Qwen3Error(
                    f"{path}: is a model of the Hugging Face cache without a complete snapshot: download it"
                )
            return found
    refuse_what_is_no_model(path)
    return path


def _complete(name: HubName | None, models: Path) -> Path | None:
    """The folder of a hub id: a complete one in `models`, else a complete snapshot in the cache, else None."""
    if name is None:
        return None
    # A download keeps no name of its revision: an address with one is looked up in the cache alone.
    if name.revision in (None, constants.DEFAULT_REVISION) and is_complete(models / name.id):
        return models / name.id
    found = cached(name.id, name.revision)
    return found if found is not None and is_complete(found) else None


def _by_id(name: HubName, models: Path) -> Path:
    """The folder of a hub id; raises Qwen3Error, which says where it looked, where none is complete."""
    if complete := _complete(name, models):
        return complete
    folder, found = models / name.id, cached(name.id, name.revision)
    downloaded = name.revision in (None, constants.DEFAULT_REVISION)
    if found is not None and os.path.isfile(found / CONFIG) and not folder.exists():
        state = f"it is in {found}, but not complete"
    elif downloaded and os.path.lexists(folder):
        state = "its download is not complete"
    else:
        state = f"it is not in the folder {models}, nor complete in the Hugging Face cache {hub_cache()}"
    if close := _similar(name.id, models):
        state += f"; did you mean {close}?"
    revision = f" --revision {name.revision}" if name.revision else ""
    raise Qwen3Error(f"no such model: {name.id}: {state}: run `qwen3 download {name.id}{revision}`")


def _similar(text: str, models: Path) -> str | None:
    """The id of a model that is here, for one that was mistyped or named without its organisation."""
    here = {f"{folder.parent.name}/{folder.name}": folder.name for folder in local_models(models)} | cached_models()
    for name in here:
        if text and f"/{name}".lower().endswith(f"/{text.lower()}"):
            return name
    return closest(text, here, cutoff=0.8)


def local_models(models: Path) -> list[Path]:
    """The folders of models in `models`, unfinished ones among them."""
    return sorted(
        folder
        for folder in models.glob("*/*")
        if os.path.isdir(folder) and (os.path.lexists(folder / CONFIG) or os.path.lexists(folder / STAGING))
    )


def cached_models() -> dict[str, Path]:
    """The models in the cache of Hugging Face by id, each with its snapshot."""
    found = {}
    for repo in sorted(hub_cache().glob("models--*--*")):
        name, folder = _CACHED.fullmatch(repo.name), snapshot(repo)
        if name and folder is not None:
            found[f"{name[1]}/{name[2]}"] = folder
    return found
