"""How JSON is posted over kept connections: as much of HTTP/1.1 as chat servers speak, at a third of aiohttp's cost."""

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import cast
from urllib.parse import quote, unquote, urlsplit

from zephyrctl import __version__
from zephyrctl.errors import ZephyrError

IDLE_SECONDS = 4.0
"""A kept connection is used again within this time: uvicorn, and with it vLLM, hangs up after 5."""
LARGEST_HEAD = 2**16
LARGEST_BODY = 2**26
"""Bytes; a server that sends more is cut off."""


class Unreached(Exception):
    """No connection: nothing was sent."""


class Untrusted(Unreached):
    """The server's certificate is signed by nobody whom this machine trusts, is another server's, or has ended."""


class Cut(Exception):
    """The connection ended, or spoke no HTTP, after the request was sent."""


@dataclass(frozen=True)
class Head:
    """Status line and headers; `length` is None where the body is chunked or goes on until the server hangs up."""

    status: int
    headers: Mapping[str, str]
    length: int | None
    is_chunked: bool
    is_kept: bool


@dataclass(frozen=True)
class Proxy:
    """A server that passes requests on; `authorization` is the header that it wants, or empty."""

    host: str
    port: int
    authorization: str = ""


@dataclass(frozen=True)
class Answer:
    """Status, headers by their lower-case names, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._received = bytearray()
        self._head: Head | None = None
        self._chunks = bytearray()
        self._opens_tunnel = False

    @property
    def is_open(self) -> bool:
        """True where another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        self._transport = cast(asyncio.Transport, transport)

    async def post(self, request: bytes, deadline: float) -> Answer:
        """Send a request and wait for its answer. Raises Cut, and TimeoutError at the deadline."""
        assert self._transport
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._answer = answer
        timer = loop.call_at(deadline, self._fail, TimeoutError())
        self._transport.write(request)
        try:
            return await answer
        finally:
            timer.cancel()
            self._answer = None
            self.idle_since = loop.time()
            if not answer.done() or answer.cancelled() or answer.exception():
                self.abort()

    async def tunnel(self, request: bytes, context: ssl.SSLContext, host: str, deadline: float) -> None:
        """Have a proxy connect to a host, and speak TLS with that from here on. Raises Unreached where it does not."""
        self._opens_tunnel = True
        try:
            answer = await self.post(request, deadline)
        except Cut as error:
            raise Unreached(f"the proxy: {error}") from None
        finally:
            self._opens_tunnel = False
        if answer.status != 200:
            raise Unreached(f"the proxy answers {answer.status}")
        assert self._transport
        loop = asyncio.get_running_loop()
        self._transport = await loop.start_tls(self._transport, self, context, server_hostname=host)

    def abort(self) -> None:
        """Hang up."""
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._received += data
        if self._answer is None:
            self.abort()  # nobody asked
            return
        try:
            self._read()
        except ValueError as error:
            self._fail(Cut(f"the server speaks no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio: the end of a body without a length, or a failure."""
        if self._head and self._head.length is None and not self._head.is_chunked and not error:
            self._give(bytes(self._received))
        self._fail(Cut(str(error) if error else "the server hung up"))

    def _fail(self, error: Exception) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error)

    def _give(self, body: bytes) -> None:
        head, self._head = self._head, None
        self._received.clear()
        if head and self._answer and not self._answer.done():
            self._answer.set_result(Answer(head.status, head.headers, body))
            if not head.is_kept:
                self.abort()

    def _read(self) -> None:
        """Give the answer once it is whole."""
        while self._head is None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                _check(len(self._received), LARGEST_HEAD)
                return
            head = _head(bytes(self._received[:end]))
            del self._received[: end + 4]
            if self._opens_tunnel and head.status == 200:
                head = replace(head, length=0, is_chunked=False, is_kept=True)
            self._head = head if head.status >= 200 else None  # 100 Continue and the like come before the answer
        if self._head.is_chunked:
            self._read_chunks()
        elif self._head.length is None:
            _check(len(self._received), LARGEST_BODY)
        elif len(self._received) >= self._head.length:
            self._give(bytes(self._received[: self._head.length]))

    def _read_chunks(self) -> None:
        """Take whole chunks; the last one is empty, and trailers may follow it."""
        while (end := self._received.find(b"\r\n")) >= 0:
            size = int(self._received[:end].partition(b";")[0], 16)
            if size == 0:
                if self._received.startswith(b"\r\n", end + 2) or self._received.find(b"\r\n\r\n", end) >= 0:
                    body, self._chunks = bytes(self._chunks), bytearray()
                    self._give(body)
                return
            _check(len(self._chunks) + size, LARGEST_BODY)
            if len(self._received) < end + size + 4:
                return
            self._chunks += self._received[end + 2 : end + 2 + size]
            del self._received[: end + size + 4]
        _check(len(self._received), LARGEST_HEAD)


def _check(bytes_: int, most: int) -> None:
    if not 0 <= bytes_ <= most:
        raise ValueError(f"{bytes_} bytes where at most {most} are taken")


def _head(received: bytes) -> Head:
    """Raises ValueError where it is no head of an HTTP/1 answer, or its body is in a form that was not asked for."""
    status, *lines = received.decode("latin-1").split("\r\n")
    version, _, rest = status.partition(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError("it has no status line")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("content-encoding", "identity") != "identity":
        raise ValueError(f"its body is {headers['content-encoding']}, which was not asked for")
    code = int(rest[:3])
    is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    stated = "0" if code in (204, 304) else headers.get("content-length")
    length = int(stated) if stated is not None and not is_chunked else None
    _check(length or 0, LARGEST_BODY)
    said = headers.get("connection", "keep-alive" if version != "HTTP/1.0" else "close").lower()
    return Head(code, headers, length, is_chunked, is_kept="close" not in said and (is_chunked or length is not None))


class Wire:
    """The connections to one URL, through the proxy that the environment names for it (HTTPS_PROXY, NO_PROXY)."""

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._secured = ssl.create_default_context() if parts.scheme == "https" else None
        self._proxy = proxy_of(url)
        self._port = parts.port or (443 if self._secured else 80)
        self._seconds = seconds
        self._idle: deque[Line] = deque()
        named = f"[{self._host}]" if ":" in self._host else self._host.encode("idna").decode()
        fields = {
            "Host": named if parts.port is None else f"{named}:{parts.port}",
            "User-Agent": f"zephyrctl/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            **headers,
        }
        place = quote(parts.path, safe="/%:~")
        word = self._proxy.authorization if self._proxy else ""
        for_proxy = {"Proxy-Authorization": word} if word else {}
        if self._proxy and not self._secured:
            place, fields = f"http://{fields['Host']}{place}", fields | for_proxy
        end = f"{named}:{self._port}"
        self._tunnel = f"CONNECT {end} HTTP/1.1\r\n{_lines({'Host': end, **for_proxy})}\r\n".encode("ascii")
        self._head = f"POST {place} HTTP/1.1\r\n{_lines(fields)}Content-Length: ".encode("ascii")

    async def post(self, body: bytes) -> Answer:
        """Send a body and wait for the whole answer; the time counts from here, connecting included.

        Raises Unreached where nothing could be sent, Cut where the connection ended, and TimeoutError.
        """
        deadline = asyncio.get_running_loop().time() + self._seconds
        line = self._take() or await self._connect(deadline)
        answer = await line.post(b"%b%d\r\n\r\n%b" % (self._head, len(body), body), deadline)
        if line.is_open:
            self._idle.append(line)
        return answer

    async def close(self) -> None:
        """Hang up on the server."""
        while self._idle:
            self._idle.pop().abort()
        await asyncio.sleep(0)  # asyncio ends them in its next turn

    def _take(self) -> Line | None:
        """The connection that was used last: the others may rest until they are too old."""
        oldest = asyncio.get_running_loop().time() - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().abort()
        while self._idle:
            line = self._idle.pop()
            if line.is_open:
                return line
        return None

    async def _connect(self, deadline: float) -> Line:
        try:
            async with asyncio.timeout_at(deadline):
                return await (self._by_proxy(self._proxy, deadline) if self._proxy else self._direct())
        except TimeoutError:
            raise Unreached(f"no connection within {self._seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(f"its certificate is not trusted: {error.verify_message}") from None
        except (OSError, UnicodeError) as error:
            with contextlib.suppress(AttributeError):
                error = getattr(error, "exceptions", [error])[0]
            by = f" (by the proxy {self._proxy.host}:{self._proxy.port})" if self._proxy else ""
            raise Unreached(f"{type(error).__name__}: {error}{by}") from None

    async def _direct(self) -> Line:
        _, line = await asyncio.get_running_loop().create_connection(
            Line, self._host, self._port, ssl=self._secured, happy_eyeballs_delay=0.25
        )
        return line

    async def _by_proxy(self, proxy: Proxy, deadline: float) -> Line:
        _, line = await asyncio.get_running_loop().create_connection(Line, proxy.host, proxy.port)
        if self._secured:
            try:
                await line.tunnel(self._tunnel, self._secured, self._host, deadline)
            except BaseException:
                line.abort()
                raise
        return line


def proxy_of(url: str) -> Proxy | None:
    """The proxy that the environment names for a URL; none for this machine itself, or where NO_PROXY names the host.

    Raises ZephyrError where it is no HTTP proxy.
    """
    from urllib.request import getproxies_environment, proxy_bypass  # 20 ms

    parts = urlsplit(url)
    given = getproxies_environment()
    address = given.get(parts.scheme) or given.get("all")
    if not address or _is_here(parts.hostname or "") or proxy_bypass(parts.hostname or ""):
        return None
    named = urlsplit(address if "://" in address else f"http://{address}")
    if named.scheme != "http" or not named.hostname:
        raise ZephyrError(
            f"the environment names a proxy for {parts.scheme} that is no http:// one ({named.scheme}://...)",
            f"set {parts.scheme.upper()}_PROXY to an http:// proxy, or name {parts.hostname} in NO_PROXY",
        )
    said = f"{unquote(named.username or '')}:{unquote(named.password or '')}"
    word = f"Basic {b64encode(said.encode()).decode()}" if named.username else ""
    return Proxy(named.hostname, named.port or 80, word)


def _is_here(host: str) -> bool:
    """True for this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lines(fields: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items())
