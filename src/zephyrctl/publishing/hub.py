"""The way to the Hub: its address, a token that is never shown, transfers, and its failures in words."""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from zephyrctl import __version__
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.secrets import SECRET
from zephyrctl.runs.manifest import hash_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

HUB = "https://huggingface.co"
WAITS = (1.0, 4.0, 15.0)
"""Seconds between attempts where the Hub fails with 5xx and huggingface_hub does not try again by itself."""
RepoType = Literal["model", "dataset"]

Answer = TypeVar("Answer")


def checked_endpoint(endpoint: str) -> str:
    """An http(s) address without a name and password, which would be sent in the token's stead."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
            return endpoint.rstrip("/")
    shown = endpoint.rpartition("@")[2]
    raise ZephyrError(f"{shown!r} is no address of a Hub", "set HF_ENDPOINT to an https:// address, or unset it")


def checked_token(token: str | None) -> str:
    """A token that fits in a header; a bad one would be quoted in the HTTP library's error."""
    from huggingface_hub import get_token

    found = (token or get_token() or "").strip()
    if not found:
        raise ZephyrError("there is no Hub token", _LOG_IN)
    if not re.fullmatch(r"[!-~]+", found):
        raise ZephyrError("the Hub token has blanks or signs that no token has", _LOG_IN)
    return found


def open_api(endpoint: str, token: str | None) -> "HfApi":
    """The Hub's API at that address."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token or False, library_name="zephyrctl", library_version=__version__)


@contextlib.contextmanager
def transfer_for(api: "HfApi", repo_id: str, repo_type: RepoType = "model") -> Iterator[None]:
    """Xet where the server offers it, else LFS over plain HTTP.

    huggingface_hub 2.4 asks no server: with hf_xet installed every large file takes Xet, which a server
    without it cannot follow. So the server is asked for a Xet token, and where it has none Xet is turned off.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or _offers_xet(api, repo_id, repo_type):
        yield
        return
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = False


def _offers_xet(api: "HfApi", repo_id: str, repo_type: RepoType) -> bool:
    from huggingface_hub import get_session, hf_raise_for_status

    url = f"{api.endpoint}/api/{repo_type}s/{repo_id}/xet-write-token/main"
    response = get_session().get(url, headers={"authorization": f"Bearer {api.token}"})
    if response.status_code in (401, 403) or response.status_code >= 500:
        hf_raise_for_status(response)
    return response.status_code == 200 and "casUrl" in response.text


def repeated(call: Callable[[], Answer], waits: Sequence[float]) -> Answer:
    """The call's answer, after further attempts where the Hub or the way to it failed for a moment."""
    import httpx2

    for wait in waits:
        try:
            return call()
        except httpx2.HTTPError as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return call()


def _may_pass(error: Exception) -> bool:
    """Whether waiting may help; huggingface_hub has repeated the uploads' own requests already."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        path = error.response.request.url.path
        return error.response.status_code >= 500 and "/preupload/" not in path and "/info/lfs/" not in path
    return isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)


_AGAIN = "try again; what arrived is not sent twice"
_LOG_IN = "log in: hf auth login, or set HF_TOKEN"
_REMEDIES = {
    401: ("does not accept the token", _LOG_IN),
    402: (
        "asks for payment before it takes this",
        "see the billing page of the account, or push without --public",
    ),
    403: (
        "refuses: the token may not write to {repo}",
        "use a token with write access to {org}, or push to another --hub",
    ),
    404: (
        "does not know {repo}, or hides it from this token",
        "check its name, that {org} exists, and HF_ENDPOINT",
    ),
    409: ("is at work on {repo} for somebody else", "wait a moment and try again"),
    412: ("is at work on {repo} for somebody else", "wait a moment and try again"),
    413: ("says that this is too large", "see the storage limits of the account"),
    429: ("has had too many requests", "wait some minutes and try again; what arrived is not sent twice"),
}


@contextlib.contextmanager
def explained(repo_id: str, endpoint: str) -> Iterator[list[str]]:
    """The Hub's and the network's failures as ZephyrErrors; secrets put in the list are never shown."""
    import httpx2

    secrets: list[str] = []
    try:
        with _discreet(secrets):
            yield secrets
    except ZephyrError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explanation(error, repo_id, endpoint, secrets) from None


def _explanation(error: BaseException, repo_id: str, endpoint: str, secrets: list[str]) -> ZephyrError:
    """The error that a user can act on; the first of its causes that came over HTTP says most."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = urlsplit(endpoint).netloc
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, repo_id, hub, secrets)
        if isinstance(cause, OfflineModeIsEnabled):
            return ZephyrError("the Hub is switched off here", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
        if isinstance(cause, httpx2.ConnectError):
            return ZephyrError(f"no connection to {hub}", "check the network and HF_ENDPOINT, then try again")
        if isinstance(cause, httpx2.HTTPError):
            return ZephyrError(f"the connection to {hub} was cut", _AGAIN)
        if isinstance(cause, json.JSONDecodeError):
            return ZephyrError(f"{hub} does not answer as a Hub does", "check HF_ENDPOINT")
    said = _discreetly(" ".join(str(error).split())[:300], secrets)
    return ZephyrError(f"the work with {hub} failed: {said or type(error).__name__}", _AGAIN)


def _refusal(error: Any, repo_id: str, hub: str, secrets: list[str]) -> ZephyrError:
    status = error.response.status_code
    if status >= 500:
        problem, remedy = f"fails with {status}, again and again", "try again later"
    else:
        problem, remedy = _REMEDIES.get(status, (f"refuses with {status}", "see what it says, then try again"))
    names = {"repo": repo_id, "org": repo_id.partition("/")[0]}
    said = _discreetly(" ".join((error.server_message or "").split())[:300], secrets)
    return ZephyrError(f"{hub} {problem.format(**names)}" + (f" ({said})" if said else ""), remedy.format(**names))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _discreet(secrets: list[str]) -> Iterator[None]:
    """Keep tokens and the signatures of upload addresses out of what huggingface_hub logs."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _discreetly(record.getMessage(), secrets), None
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _discreetly(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return SECRET.sub("***", re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", text))


class HubRepo:
    """A published model on the Hub: its small files are read, and of large ones the Hub's own sha256 is taken."""

    def __init__(self, repo_id: str, endpoint: str, token: str | None, revision: str | None, cache: Path) -> None:
        self.name = repo_id
        self._api = open_api(endpoint, token)
        self._revision = revision
        self._cache = cache
        self._hashes: dict[str, str | None] | None = None

    def files(self) -> Mapping[str, str | None]:
        """Every file, with its sha256 where it is a large one."""
        if self._hashes is None:
            info = self._api.model_info(self.name, revision=self._revision, files_metadata=True)
            self._revision = info.sha  # all that follows is of one commit
            siblings = info.siblings or []
            self._hashes = {one.rfilename: one.lfs.sha256 if one.lfs else None for one in siblings}
        return self._hashes

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return self._local(path).read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return self.files()[path] or hash_file(self._local(path))

    def _local(self, path: str) -> Path:
        return Path(self._api.hf_hub_download(self.name, path, revision=self._revision, cache_dir=self._cache))
