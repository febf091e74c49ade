"""Whether an answer is read whole in every form that HTTP gives it, and nothing else is taken for one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from zephyrctl.builtin import wire
from zephyrctl.builtin.wire import Answer, Cut, Unreached, Wire

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nParis"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nPa\r\n3\r\nris\r\n0\r\n"


class Served:
    """What a server of these tests saw."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests: list[bytes] = []


def talk(
    answer: bytes, work: Callable[[Wire], Awaitable[Any]], hangs_up: bool = False, step: int = 0, seconds: float = 5.0
) -> tuple[Any, Served]:
    """What the work brings against a server that sends these bytes (in steps) to every request."""
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
            if hangs_up:
                break
        writer.close()

    async def go() -> Any:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        made = Wire(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x", {"X-Name": "y"}, seconds)
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


async def twice(made: Wire) -> list[Answer]:
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
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * wire.LARGEST_HEAD,
    ],
    ids=lambda answer: answer[:60].decode(),
)
def test_what_is_no_answer_is_cut_off(answer: bytes) -> None:
    with pytest.raises(Cut, match="speaks no HTTP"):
        talk(answer, lambda made: made.post(b"{}"))


@pytest.mark.parametrize("answer", [b"", WHOLE[:10], WHOLE[:-1], CHUNKED])
def test_an_answer_that_breaks_off_is_none(answer: bytes) -> None:
    with pytest.raises(Cut, match="hung up"):
        talk(answer or b" "[:0] or b"H", lambda made: made.post(b"{}"), hangs_up=True)


def test_bytes_that_come_slowly_do_not_put_off_the_end() -> None:
    """The time counts from the beginning, not from the last byte."""

    async def work(made: Wire) -> None:
        with pytest.raises(TimeoutError):
            await made.post(b"{}")

    talk(WHOLE[:-1], work, seconds=0.1)


def test_a_call_that_is_cancelled_gives_no_other_its_answer() -> None:
    """Its connection is not used again."""

    async def work(made: Wire) -> Answer:
        call = asyncio.create_task(made.post(b"1"))
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            await made.post(b"2")
        return Answer(0, {}, b"")

    _, served = talk(WHOLE[:-1], work, seconds=0.1)
    assert served.connections == 2


def test_a_name_that_is_none_is_not_reached() -> None:
    for url in ("http://no.such.host.invalid/v1", "http://127.0.0.1:1/v1"):
        with pytest.raises(Unreached):
            asyncio.run(Wire(url, {}, 5).post(b"{}"))
