"""Whether an answer is read whole in every form that HTTP gives it, and nothing else is taken for one."""

import asyncio
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from zephyrctl.errors import ZephyrError
from zephyrctl.teachers import http_client
from zephyrctl.teachers.http_client import (
    CertificateRejected,
    ConnectionCut,
    HttpClient,
    HttpReply,
    NotConnected,
    find_proxy,
)

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nParis"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nPa\r\n3\r\nris\r\n0\r\n"


class Served:
    """What a server of these tests saw."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []


def talk(
    answer: bytes,
    work: Callable[[HttpClient], Awaitable[Any]],
    hangs_up: bool = False,
    step: int = 0,
    seconds: float = 5.0,
    host: str = "127.0.0.1",
    context: ssl.SSLContext | None = None,
    after: bytes = b"",
) -> tuple[Any, Served]:
    """What the work brings against a server that sends these bytes (in steps) to every request.

    `host` is what the server listens on and is called by; a name is looked up by nobody but a proxy. `after` is sent
    50 ms after each answer, though nothing asks for it.
    """
    served = Served()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        while head := await _head_of(reader):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            served.requests.append(head + await reader.readexactly(length))
            for start in range(0, len(answer), step or len(answer)):
                writer.write(answer[start : start + (step or len(answer))])
                await writer.drain()
                await asyncio.sleep(0)
            if after:
                await asyncio.sleep(0.05)
                writer.write(after)
            if hangs_up:
                break
        writer.close()

    async def go() -> Any:
        listens = "::1" if host == "[::1]" else "127.0.0.1"
        server = await asyncio.start_server(serve, listens, 0, ssl=context)
        scheme, port = "https" if context else "http", server.sockets[0].getsockname()[1]
        made = HttpClient(f"{scheme}://{host}:{port}/v1/x", {"X-Name": "y"}, seconds)
        try:
            return await work(made)
        finally:
            await made.close()
            server.close()

    return asyncio.run(go()), served


async def _head_of(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return b""


async def twice(made: HttpClient) -> list[HttpReply]:
    """Two answers, one after the other."""
    return [await made.post(b"{}"), await made.post(b"[]")]


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
        CHUNKED + b"\r\n",
        CHUNKED + b"Trailer: x\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length:5\r\n\r\nParis",
    ],
    ids=["length", "continue", "chunks", "trailers", "1.0"],
)
def test_a_whole_answer_is_read_and_the_connection_kept(answer: bytes, step: int) -> None:
    """However its bytes come."""
    answers, served = talk(answer, twice, step=step)
    assert [(one.status, one.body) for one in answers] == [(200, b"Paris")] * 2
    assert served.connections == 1
    assert served.requests[0].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Name: y\r\n" in served.requests[0]
    assert [request[-2:] for request in served.requests] == [b"{}", b"[]"]


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"]
)
def test_an_answer_may_end_with_the_connection(head: bytes) -> None:
    """Then the next call opens another one."""
    answers, served = talk(head + b"Paris", twice, hangs_up=True)
    assert [one.body for one in answers] == [b"Paris"] * 2
    assert served.connections == 2


def test_a_server_that_closes_is_asked_over_a_new_connection() -> None:
    answers, served = talk(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), twice)
    assert [one.body for one in answers] == [b"Paris"] * 2
    assert served.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nParis",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nParis",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nParis",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nParis",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nParis\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nParis\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * http_client.MAX_HEADER_BYTES,
    ],
    ids=lambda answer: answer[:60].decode(),
)
def test_what_is_no_answer_is_cut_off(answer: bytes) -> None:
    with pytest.raises(ConnectionCut, match="sends no usable reply"):
        talk(answer, lambda made: made.post(b"{}"))


@pytest.mark.parametrize("answer", [b"", WHOLE[:10], WHOLE[:-1], CHUNKED])
def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    with pytest.raises(ConnectionCut, match="hung up"):
        talk(answer or b" "[:0] or b"H", lambda made: made.post(b"{}"), hangs_up=True)


SECOND = WHOLE.replace(b"Paris", b"Rome!")


@pytest.mark.parametrize(("answer", "after"), [(WHOLE + SECOND, b""), (WHOLE, SECOND)], ids=["at once", "later"])
def test_a_reply_to_nothing_is_not_taken_for_the_next_calls(answer: bytes, after: bytes) -> None:
    """A server that sends two replies to one request: the connection is not used again."""

    async def work(client: HttpClient) -> list[HttpReply]:
        first = await client.post(b"{}")
        await asyncio.sleep(0.1)
        return [first, await client.post(b"[]")]

    replies, served = talk(answer, work, after=after)
    assert [reply.body for reply in replies] == [b"Paris", b"Paris"]
    assert served.connections == 2


def test_bytes_that_come_slowly_do_not_put_off_the_end() -> None:
    """The time counts from the beginning, not from the last byte."""

    async def work(made: HttpClient) -> None:
        with pytest.raises(TimeoutError):
            await made.post(b"{}")

    talk(WHOLE[:-1], work, seconds=0.1)


def test_a_call_that_is_cancelled_gives_no_other_its_answer() -> None:
    """Its connection is not used again."""

    async def work(made: HttpClient) -> HttpReply:
        call = asyncio.create_task(made.post(b"1"))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            await made.post(b"2")
        return HttpReply(0, {}, b"")

    _, served = talk(WHOLE[:-1], work, seconds=0.1)
    assert served.connections == 2


def test_a_name_that_is_none_is_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")

    async def post(url: str) -> None:
        client = HttpClient(url, {}, 5)
        try:
            await client.post(b"{}")
        finally:
            await client.close()

    for url in ("http://no.such.host.invalid/v1", "http://127.0.0.1:1/v1", f"http://{'x' * 70}.invalid/v1"):
        with pytest.raises(NotConnected):
            asyncio.run(post(url))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who signs the certificates of these tests."""
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that trusts it."""
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


def secured(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    """A server's side, with a certificate for these names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("answer", [WHOLE, CHUNKED + b"\r\n"], ids=["length", "chunks"])
def test_tls_is_spoken_over_a_connection_that_is_kept(authority: trustme.CA, answer: bytes) -> None:
    answers, served = talk(answer, twice, step=3, context=secured(authority, "127.0.0.1"))
    assert [one.body for one in answers] == [b"Paris", b"Paris"]
    assert served.connections == 1
    assert [request.partition(b"\r\n\r\n")[2] for request in served.requests] == [b"{}", b"[]"]


def test_a_certificate_that_nobody_trusts_or_of_another_name_is_refused(
    authority: trustme.CA, request: pytest.FixtureRequest
) -> None:
    """Before anything is sent."""
    for names, reason in ((["127.0.0.1"], "unable to get local issuer"), (["other.test"], "mismatch")):
        with pytest.raises(CertificateRejected, match=reason):
            talk(WHOLE, twice, context=secured(authority, *names))
        request.getfixturevalue("trusting")


def test_a_server_that_never_finishes_the_handshake_was_sent_nothing() -> None:
    """The time is up while connecting: such a call cannot have been paid for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:

        async def post() -> None:
            client = HttpClient(f"https://127.0.0.1:{silent.getsockname()[1]}/v1", {}, 0.2)
            try:
                await client.post(b"{}")
            finally:
                await client.close()

        with pytest.raises(NotConnected, match=r"no connection within 0\.2 s"):
            asyncio.run(post())


def can_listen(address: str) -> bool:
    """True where this machine has an address of version 6."""
    try:
        socket.create_server((address, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not can_listen("::1"), reason="this machine has no IPv6")
def test_an_address_of_version_6_is_spoken_to() -> None:
    answers, served = talk(WHOLE, twice, host="[::1]")
    assert [one.body for one in answers] == [b"Paris", b"Paris"]
    assert b"\r\nHost: [::1]:" in served.requests[0]


class Passing:
    """A proxy on a thread of its own: it knows every name as this machine, or answers 407 without the right word."""

    def __init__(self, word: str = "") -> None:
        self.word = word
        self.heads: list[bytes] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Passing":
        self._thread.start()
        assert self._is_up.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._pass, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._is_up.set()
        self._loop.run_forever()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await _head_of(reader)
        self.heads.append(head)
        said = head.partition(b"Proxy-Authorization: Basic ")[2].partition(b"\r\n")[0]
        if b64decode(said).decode() != self.word:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        verb, place, _ = head.split(b" ", 2)
        port = int(place.removeprefix(b"http://").partition(b"/")[0].rpartition(b":")[2])
        inner, outer = await asyncio.open_connection("127.0.0.1", port)
        if verb == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            outer.write(head)
        await asyncio.gather(self._copy(reader, outer), self._copy(inner, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passing]:
    """A proxy that the environment names, with a user and a word."""
    with Passing("me:a word") as proxy:
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://me:a%20word@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield proxy


@pytest.mark.usefixtures("trusting")
def test_a_proxy_passes_tls_on_unseen(authority: trustme.CA, passing: Passing) -> None:
    """The name is the proxy's to look up, the certificate is the server's; one tunnel serves several requests."""
    answers, served = talk(WHOLE, twice, host="model.test", context=secured(authority, "model.test"))
    assert [one.body for one in answers] == [b"Paris", b"Paris"]
    (head,) = passing.heads
    assert head.startswith(b"CONNECT model.test:")
    assert b"X-Name" not in head
    assert b"Proxy-Authorization" not in served.requests[0]
    with pytest.raises(CertificateRejected, match="mismatch"):
        talk(WHOLE, twice, host="model.test", context=secured(authority, "other.test"))


def test_a_proxy_is_asked_for_the_whole_address_without_tls(passing: Passing) -> None:
    answers, served = talk(WHOLE, twice, host="model.test")
    assert [one.body for one in answers] == [b"Paris", b"Paris"]
    assert passing.heads[0].startswith(b"POST http://model.test:")
    assert b"\r\nHost: model.test:" in served.requests[0]


def test_this_machine_and_names_in_no_proxy_are_spoken_to_directly(
    passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(WHOLE, twice)
    assert not passing.heads
    assert find_proxy("http://localhost:8000/v1") is None
    assert find_proxy("https://api.model.test/v1") == f"http://me:a%20word@127.0.0.1:{passing.port}"
    monkeypatch.setenv("no_proxy", "model.test,other.test")
    assert find_proxy("https://api.model.test/v1") is None


@pytest.mark.usefixtures("trusting")
def test_a_proxy_that_refuses_or_is_none_is_said_without_its_word(
    authority: trustme.CA, passing: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing.word = "another"
    with pytest.raises(NotConnected, match=r"^the proxy answers 407$"):
        talk(WHOLE, twice, host="model.test", context=secured(authority, "model.test"))
    monkeypatch.setenv("https_proxy", "http://me:secret@127.0.0.1:1")
    with pytest.raises(NotConnected, match=r"by the proxy 127\.0\.0\.1:1") as caught:
        talk(WHOLE, twice, host="model.test", context=secured(authority, "model.test"))
    assert "secret" not in str(caught.value)
    monkeypatch.setenv("https_proxy", "socks5://me:secret@127.0.0.1:1")
    with pytest.raises(ZephyrError, match=r"socks5://\.\.\."):
        find_proxy("https://model.test/v1")
