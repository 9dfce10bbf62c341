"""Error messages for failures of the hub, the network or the disk; none holds the access token."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from huggingface_hub import constants, errors, get_session, get_token

from ..errors import Qwen3Error, brief, one_line
from .contents import CONFIG, NEEDED, TOKENIZER, instead, instead_of_tokenizer

AGAIN = "run the same command again, it resumes"


def http_library() -> ModuleType:
    """The HTTP library of huggingface_hub's client: httpx, or httpx2 since version 2; both name their errors alike."""
    return importlib.import_module(type(open_client()).__module__.partition(".")[0])


def open_client() -> object:
    """huggingface_hub's client; raises Qwen3Error where proxy or certificates of the environment allow none."""
    try:
        return get_session()
    except Exception as error:
        names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        raise Qwen3Error(f"no client for the hub ({public(one_line(error))}): check the variables {names}") from None


def access_token(token: str | None) -> str | None:
    """Returns the token without the line end that files and secrets bring; None takes the one of the environment.

    Raises Qwen3Error, which does not show it, for one that cannot be sent.
    """
    source = "the access token"
    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        source = "the access token of HF_TOKEN or `hf auth login`"
        try:
            token = get_token()
        except (OSError, ValueError) as error:
            raise Qwen3Error(
                f"{source} cannot be read ({type(error).__name__}): correct {constants.HF_TOKEN_PATH}"
            ) from None
    if token is None:
        return None
    if not isinstance(token, str):
        raise Qwen3Error(f"{source} is a {type(token).__name__}: it must be text")
    token = token.strip().removeprefix("\ufeff").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", token):
        raise Qwen3Error(f"{source} has a character that no token has (a space, a line end, an accent): copy it again")
    return token or None


def hub_address(endpoint: str | None) -> str:
    """Returns the address of the hub without a slash behind it; raises Qwen3Error for what is no address."""
    address = constants.ENDPOINT if endpoint is None else endpoint
    if not isinstance(address, str):
        raise Qwen3Error(f"the hub's address is {brief(address)}: it must be text")
    address = address.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine or re.search(r"[\s\x00-\x1f\x7f]", address):
        raise Qwen3Error(
            f"the hub's address is {brief(public(address))}: HF_ENDPOINT must be like https://huggingface.co"
        )
    return address


def public(address: str) -> str:
    """An address without a name and password in it."""
    return re.sub(r"(?<=//)[^/@\s]*@", "", address)


def is_missing(error: BaseException) -> bool:
    """Whether the hub said that a file is not there; mirrors say it without the hub's own code."""
    return isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 404


def explain(error: Exception, page: str, revision: str, found: bool, names: list[str], folder: Path) -> str:
    """Says in one line what the hub's client or the disk raised, where, and what to do.

    page: the address of the model. found: whether the hub has the model at all. names: the files in its repository.
    """
    page, hub = public(page), public(page.rsplit("/", 2)[0])
    match error:
        case errors.OfflineModeIsEnabled():
            return f"cannot download {page}, which is not here: HF_HUB_OFFLINE is set: unset it to reach the hub"
        case errors.GatedRepoError():
            return f"no access to {page}: it is gated: accept its licence there and set HF_TOKEN to your access token"
        case errors.RepositoryNotFoundError():
            return f"no model at {page}, or a private one: check the id, or set HF_TOKEN to a token that may read it"
        case errors.RevisionNotFoundError():
            return f"no revision {brief(revision)} of {page}: choose one of its branches, tags or commits"
        case errors.HfHubHTTPError() if error.response.status_code == 404:
            if not found and not isinstance(error, errors.EntryNotFoundError):
                return f"no model at {page}: check the id, and HF_ENDPOINT where it is set"
            return _lacks(page, error.response.url.path.rsplit("/", 1)[-1], names)
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"no access to {page}: set HF_TOKEN to a valid token that may read it"
        case errors.HfHubHTTPError():
            return f"{page}: the hub answered with HTTP status {error.response.status_code}: later, {AGAIN}"
        case OSError():
            reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
            return f"cannot write to {folder} ({reason}): free or change that place, then {AGAIN}"
    if isinstance(error, http_library().HTTPError):
        cause = " ".join(str(error).split()) or type(error).__name__
        return f"no connection to {hub}, or it broke ({public(cause)}): check the network, then {AGAIN}"
    # Whatever the client raises of an answer that it cannot read.
    return f"{hub} does not answer like a model hub ({public(one_line(error))}): check HF_ENDPOINT and the proxy"


def _lacks(page: str, name: str, names: list[str]) -> str:
    """Returns the message for a repository that lacks a file of a model."""
    what = instead_of_tokenizer(names) if name == TOKENIZER else instead(names)
    if what:
        return f"no {name} at {page}, which {what}"
    if name == CONFIG and page.lower().endswith("gguf"):
        return f"no {name} at {page}, which looks like GGUF weights: take the original model with safetensors weights"
    return f"no {name} at {page}: {NEEDED}"


def hidden(message: str, token: str | None) -> str:
    """A message without the token."""
    return message.replace(token, "[the access token]") if token else message
