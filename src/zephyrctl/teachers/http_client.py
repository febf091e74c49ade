"""POST JSON to one URL over kept-alive connections, with aiohttp, and say whether anything was sent when it fails.

Importing this module takes 0.2 s, because of aiohttp: `http_service` imports it at the first call.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from zephyrctl import __version__
from zephyrctl.errors import ZephyrError

IDLE_SECONDS = 4.0
"""An idle connection is reused within this time: uvicorn, and so vLLM, closes it after 5."""
CONNECT_SHARE = 0.95
"""Share of the timeout after which connecting fails: a little before the whole call does, so that the two differ."""
MAX_HEADER_BYTES = 2**16
MAX_BODY_BYTES = 2**26
"""A reply with a longer header line or body is cut off."""


class NotConnected(Exception):
    """There was no connection: nothing was sent."""


class CertificateRejected(NotConnected):
    """The server's certificate is expired, is for another name, or is signed by nobody whom this machine trusts."""


class ConnectionCut(Exception):
    """The connection ended, or the server sent something else than HTTP, after the request was sent."""


@dataclass(frozen=True)
class HttpReply:
    """A reply: status, headers by lower-case name, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class CheckedConnector(aiohttp.TCPConnector):
    """Closes idle connections on which the server sent something: a reply to nothing, or a notice that it is closing.

    aiohttp would give those bytes to the next call as its reply, and the call log would keep them for ever.
    """

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        while connection := await super()._get(key, traces):
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection
            connection.close()
        return None


class HttpClient:
    """The connections to one URL, through the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY)."""

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        """`seconds` is the longest time for one call, connecting included. Needs a running event loop."""
        self._seconds = seconds
        self._proxy = find_proxy(url)
        # The library's own `trust_env` would read the environment and ~/.netrc in a thread at every call, and would
        # send a password of ~/.netrc to the server.
        self._session = aiohttp.ClientSession(
            connector=CheckedConnector(
                limit=0,  # the number of calls at once is limited by the caller
                keepalive_timeout=IDLE_SECONDS,
                ssl=ssl.create_default_context(),  # reads SSL_CERT_FILE now, and not when aiohttp is imported
            ),
            proxy=self._proxy,
            timeout=aiohttp.ClientTimeout(total=seconds, connect=seconds * CONNECT_SHARE, ceil_threshold=seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        # Not the session's headers: aiohttp sends those to a proxy too, in the clear, and one of ours is the key.
        self._headers = CIMultiDict(
            {
                "User-Agent": f"zephyrctl/{__version__}",
                "Accept": "application/json",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                **headers,
            }
        )
        self._url = URL(url)

    async def post(self, body: bytes) -> HttpReply:
        """Send a body and return the whole reply, whatever its status; redirects are not followed.

        Raises NotConnected if nothing could be sent, ConnectionCut if no whole reply came, and TimeoutError.
        """
        try:
            async with self._session.post(
                self._url, data=body, headers=self._headers, allow_redirects=False
            ) as response:
                content = await _read(response)
                headers = {name.lower(): value for name, value in response.headers.items()}
                return HttpReply(response.status, headers, content)
        except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, UnicodeError) as error:
            raise self._not_connected(error) from None
        except aiohttp.ClientHttpProxyError as error:
            raise NotConnected(f"the proxy answers {error.status}") from None
        except aiohttp.ClientError as error:
            raise ConnectionCut(_explain_cut(error)) from None

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
        await asyncio.sleep(0)  # asyncio closes the sockets in its next turn

    def _not_connected(self, error: Exception) -> NotConnected:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return NotConnected(f"no connection within {self._seconds:g} s")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            reason = error.certificate_error
            words = reason.verify_message if isinstance(reason, ssl.SSLCertVerificationError) else str(reason)
            return CertificateRejected(f"its certificate is not trusted: {words}")
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        proxy = urlsplit(self._proxy) if self._proxy else None
        by = f" (by the proxy {proxy.hostname}:{proxy.port or 80})" if proxy else ""
        return NotConnected(f"{type(cause).__name__}: {cause}{by}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, decompressed. Raises ConnectionCut if it is longer than `MAX_BODY_BYTES`."""
    body = bytearray()
    if (response.content_length or 0) <= MAX_BODY_BYTES:
        async for part in response.content.iter_any():
            body += part
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    raise ConnectionCut(f"the server sends no usable reply: its body has more than {MAX_BODY_BYTES:,} bytes")


def _explain_cut(error: aiohttp.ClientError) -> str:
    """What happened to a connection after the request was sent."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"the server sends no usable reply: {error.message}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the server hung up"
    return f"the server hung up: {error}"


def find_proxy(url: str) -> str | None:
    """The URL of the proxy that the environment names for a URL.

    None for a server on this machine, or if NO_PROXY names the host. Raises ZephyrError unless it is an HTTP proxy.
    """
    from urllib.request import getproxies_environment, proxy_bypass  # takes 20 ms to import

    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or _is_this_machine(host) or proxy_bypass(host):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = urlsplit(proxy).scheme
    if scheme != "http" or not urlsplit(proxy).hostname:
        raise ZephyrError(
            f"the proxy that the environment names for {parts.scheme} is not an HTTP proxy ({scheme}://...)",
            f"set {parts.scheme.upper()}_PROXY to a URL that begins with http://, or add {host} to NO_PROXY",
        )
    return proxy


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
