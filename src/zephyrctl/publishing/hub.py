"""Connect to the Hub: its address, a token that is never shown, transfers, and its errors in plain words."""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar
from urllib.parse import urlsplit

from zephyrctl import __version__
from zephyrctl.errors import ZephyrError
from zephyrctl.publishing.secrets import SECRET
from zephyrctl.runs.manifest import hash_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

HUB = "https://huggingface.co"
WAITS = (1.0, 4.0, 15.0)
"""Seconds between attempts if the Hub answers 5xx and huggingface_hub does not retry by itself."""
RepoType = Literal["model", "dataset"]

Returned = TypeVar("Returned")


def checked_endpoint(endpoint: str) -> str:
    """An http(s) address. One with a user and password is an error: they would be sent instead of the token."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(endpoint)
        if parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc:
            return endpoint.rstrip("/")
    shown = endpoint.rpartition("@")[2]
    raise ZephyrError(f"{shown!r} is not the address of a Hub", "set HF_ENDPOINT to an https:// address, or unset it")


def checked_token(token: str | None) -> str:
    """The token, if it fits in an HTTP header; the HTTP library's own error would quote a bad one."""
    from huggingface_hub import get_token

    token = (token or get_token() or "").strip()
    if not token:
        raise ZephyrError("there is no Hub token", _LOG_IN)
    if not re.fullmatch(r"[!-~]+", token):
        raise ZephyrError("the Hub token contains blanks or characters that no token has", _LOG_IN)
    return token


def open_api(endpoint: str, token: str | None) -> "HfApi":
    """The client of the Hub at that address."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token=token or False, library_name="zephyrctl", library_version=__version__)


@contextlib.contextmanager
def transfer_for(api: "HfApi", repo_id: str, repo_type: RepoType = "model") -> Iterator[None]:
    """Use Xet if the server offers it, else LFS over plain HTTP.

    huggingface_hub 2.4 does not ask the server: if hf_xet is installed, every large file goes through Xet, also to
    servers without it. So we ask the server for a Xet token, and turn Xet off if there is none.
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


def retry(call: Callable[[], Returned], waits: Sequence[float]) -> Returned:
    """What the call returns, after more attempts if the Hub or the network failed for a moment."""
    import httpx2

    for wait in waits:
        try:
            return call()
        except httpx2.HTTPError as error:
            if not _is_temporary(error):
                raise
        time.sleep(wait)
    return call()


def _is_temporary(error: Exception) -> bool:
    """True if waiting may help; huggingface_hub already retries the requests of uploads itself."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        path = error.response.request.url.path
        return error.response.status_code >= 500 and "/preupload/" not in path and "/info/lfs/" not in path
    return isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)


_TRY_AGAIN = "try again; files that arrived are not sent twice"
_LOG_IN = "log in: hf auth login, or set HF_TOKEN"
_REMEDIES = {
    401: ("does not accept the token", _LOG_IN),
    402: (
        "asks for payment first",
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
    409: ("is at work on {repo} for another client", "wait a moment and try again"),
    412: ("is at work on {repo} for another client", "wait a moment and try again"),
    413: ("says that the upload is too large", "see the storage limits of the account"),
    429: ("received too many requests", "wait some minutes and try again; files that arrived are not sent twice"),
}


@contextlib.contextmanager
def explained(repo_id: str, endpoint: str) -> Iterator[list[str]]:
    """Raise errors of the Hub and the network as ZephyrErrors; secrets that are put in the list are never shown."""
    import httpx2

    secrets: list[str] = []
    try:
        with _hidden_in_logs(secrets):
            yield secrets
    except ZephyrError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _explain(error, repo_id, endpoint, secrets) from None


def _explain(error: BaseException, repo_id: str, endpoint: str, secrets: list[str]) -> ZephyrError:
    """An error that a user can act on, from the first of the causes that came over HTTP."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = urlsplit(endpoint).netloc
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _explain_status(cause, repo_id, hub, secrets)
        if isinstance(cause, OfflineModeIsEnabled):
            return ZephyrError(
                "the Hub is switched off by an environment variable", "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE"
            )
        if isinstance(cause, httpx2.ConnectError):
            return ZephyrError(f"no connection to {hub}", "check the network and HF_ENDPOINT, then try again")
        if isinstance(cause, httpx2.HTTPError):
            return ZephyrError(f"the connection to {hub} was cut", _TRY_AGAIN)
        if isinstance(cause, json.JSONDecodeError):
            return ZephyrError(f"{hub} does not answer as a Hub does", "check HF_ENDPOINT")
    message = _hide(" ".join(str(error).split())[:300], secrets)
    return ZephyrError(f"the request to {hub} failed: {message or type(error).__name__}", _TRY_AGAIN)


def _explain_status(error: "HfHubHTTPError", repo_id: str, hub: str, secrets: list[str]) -> ZephyrError:
    status = error.response.status_code
    if status >= 500:
        problem, remedy = f"fails with {status} at every attempt", "try again later"
    else:
        problem, remedy = _REMEDIES.get(status, (f"refuses with {status}", "read its message, then try again"))
    names = {"repo": repo_id, "org": repo_id.partition("/")[0]}
    message = _hide(" ".join((error.server_message or "").split())[:300], secrets)
    shown = f" ({message})" if message else ""
    return ZephyrError(f"{hub} {problem.format(**names)}{shown}", remedy.format(**names))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextlib.contextmanager
def _hidden_in_logs(secrets: list[str]) -> Iterator[None]:
    """Keep tokens and the signatures of upload addresses out of the logs of huggingface_hub."""

    def hide(record: logging.LogRecord) -> bool:
        record.msg, record.args = _hide(record.getMessage(), secrets), None
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(hide)
    try:
        yield
    finally:
        logger.removeFilter(hide)


def _hide(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return SECRET.sub("***", re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?...", text))


class HubRepo:
    """A published model on the Hub. Small files are downloaded; for large ones the Hub's own sha256 is used."""

    def __init__(self, repo_id: str, endpoint: str, token: str | None, revision: str | None, cache: Path) -> None:
        self.name = repo_id
        self._api = open_api(endpoint, token)
        self._revision = revision
        self._cache = cache
        self._hashes: dict[str, str | None] | None = None

    def files(self) -> Mapping[str, str | None]:
        """Every file, with its sha256 if it is a large one."""
        if self._hashes is None:
            info = self._api.model_info(self.name, revision=self._revision, files_metadata=True)
            self._revision = info.sha  # all later reads are of the same commit
            siblings = info.siblings or []
            self._hashes = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in siblings}
        return self._hashes

    def read(self, path: str) -> bytes:
        """The content of one file."""
        return self._local(path).read_bytes()

    def sha256(self, path: str) -> str:
        """The hash of one file."""
        return self.files()[path] or hash_file(self._local(path))

    def _local(self, path: str) -> Path:
        return Path(self._api.hf_hub_download(self.name, path, revision=self._revision, cache_dir=self._cache))
