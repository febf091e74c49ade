"""Post to a model behind an HTTP API, with its key, and turn failures into CallFailed errors.

Teachers for any such API use it, in this package and in plugins; they only write requests and read replies.
"""

import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from zephyrctl.errors import CallFailed, ZephyrError

if TYPE_CHECKING:
    from zephyrctl.teachers.http_client import HttpClient, HttpReply

MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
"""Statuses that may pass, so the call is tried again. 529 is Anthropic's status for an overloaded server."""
OF_THIS_REQUEST = {400, 413, 422}
"""Statuses that refuse one request only; any other refusal would meet every call, so it ends the stage."""
LONGEST_WAIT_SECONDS = 300.0
"""The longest Retry-After that is followed."""
UNREACHED = "no connection"
QUOTED_CHARACTERS = 200
RUNS = "see that the server runs, then run the same command again: replies so far are kept"


class Service:
    """One address that answers JSON with JSON. It connects at the first call; the key stays in the environment."""

    def __init__(
        self,
        url: str,
        path: str,
        *,
        model: str,
        key_variable: str,
        timeout_seconds: float,
        headers: Callable[[str], Mapping[str, str]],
    ) -> None:
        """`path` follows the URL; `headers` makes the headers that carry a key, which is empty if there is none."""
        self.url = url
        self.model = model
        self.key_variable = key_variable
        self.timeout_seconds = timeout_seconds
        self._path = path
        self._headers = headers
        self._key = ""
        self._client: HttpClient | None = None

    async def post(self, body: Mapping[str, Any]) -> "HttpReply":
        """The reply to one request, whatever its status.

        Raises CallFailed if none comes, and ZephyrError if the key's variable does not contain a key.
        """
        from zephyrctl.teachers import http_client

        client = self._client = self._client or self._connect()
        try:
            return await client.post(orjson.dumps(body))
        except TimeoutError:
            remedy = "raise the teacher's timeout_seconds, or check that the server is not overloaded"
            message = f"no reply within {self.timeout_seconds:g} s"
            raise self.failed(message, remedy, cause="timeout", may_pass=True, may_be_paid=True) from None
        except http_client.CertificateRejected as error:
            remedy = "put the path of your authority's certificate into SSL_CERT_FILE, or fix the teacher's base_url"
            raise self.failed(str(error), remedy, cause="certificate", is_fatal=True) from None
        except http_client.NotConnected as error:
            raise self.failed(str(error), RUNS, cause=UNREACHED, may_pass=True, is_unreached=True) from None
        except http_client.ConnectionCut as error:
            raise self.failed(str(error), RUNS, cause="cut connection", may_pass=True, may_be_paid=True) from None

    async def close(self) -> None:
        """Close the connections."""
        if self._client:
            await self._client.close()
            self._client = None

    def failed(self, message: str, remedy: str, *, cause: str, **flags: Any) -> CallFailed:
        """The error of a call. The key is removed, in case the server repeats it."""
        return CallFailed(f"{self.url}: {self._without_key(message)}", remedy, cause=cause, **flags)

    def unreadable(self, cause: str, content: bytes = b"", *, may_pass: bool = True) -> CallFailed:
        """The error of a reply without an answer, with the server's words; such a reply may have been paid for."""
        words = self._words(content)
        message = f"{cause} ({words})" if words else cause
        remedy = "check the teacher's base_url and model"
        return self.failed(message, remedy, cause=cause, may_pass=may_pass, may_be_paid=True)

    def refused(self, answer: "HttpReply") -> CallFailed:
        """The error of a status other than 200. For a refused key nothing is quoted: servers repeat parts of it."""
        status, variable = answer.status, self.key_variable
        message = f"{status} {self._words(answer.body)}".strip()
        if status in MAY_PASS:
            wait = retry_after(answer.headers.get("retry-after", ""))
            return self.failed(message, RUNS, cause=str(status), may_pass=True, wait=wait)
        if status in (401, 403):
            message = f"{status}, the key in {variable} {'is not accepted' if self._key else 'is empty'}"
        wrong_address = "check base_url (it ends with /v1) and the model's name"
        remedies = {
            401: f"put a valid key into the environment variable {variable}",
            403: f"put a key with access to {self.model!r} into {variable}",
            404: wrong_address,
            413: "shorten the conversation",
        }
        otherwise = "check the teacher's options" if status >= 400 else wrong_address
        remedy = remedies.get(status, otherwise)
        problem = f"{self.url} refused: {self._without_key(message)}"
        return CallFailed(problem, remedy, cause=str(status), is_fatal=status not in OF_THIS_REQUEST)

    def _connect(self) -> "HttpClient":
        self._key = os.environ.get(self.key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise ZephyrError(
                f"the environment variable {self.key_variable} does not contain a key: it has several lines, "
                "or characters that no key has",
                "put only the key into it",
            )
        from zephyrctl.teachers.http_client import HttpClient

        return HttpClient(f"{self.url}{self._path}", self._headers(self._key), self.timeout_seconds)

    def _words(self, content: bytes) -> str:
        """The server's own error message, shortened to one line; empty if there is none."""
        try:
            answer = orjson.loads(content)
            error = answer.get("error") or answer.get("message") or answer.get("detail")
        except (ValueError, AttributeError):
            return ""
        message = error.get("message") if isinstance(error, dict) else error
        return self._without_key(" ".join(str(message or "").split()))[:QUOTED_CHARACTERS]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "...") if self._key else text


def plain_url(url: str) -> str:
    """A base URL without its last slash. Raises ValueError if it contains a key or is not a URL."""
    if set("@?#") & set(url):
        raise ValueError("keys do not belong into the URL; name their variable under key_variable")
    if not _is_address(url):
        raise ValueError("a URL begins with http:// or https:// and names a host")
    return url.rstrip("/")


def retry_after(stated: str) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or a date), at most 300; None if it cannot be read."""
    try:
        seconds = float(stated)
    except ValueError:
        try:
            moment = parsedate_to_datetime(stated)
        except ValueError:
            return None
        seconds = (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS) if math.isfinite(seconds) else None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message repeats the URL, which may contain a key
        return False
