"""How many calls a second the paid-call machinery makes, beside what the server can give and beside plain AsyncOpenAI.

    python -m benchmarks.throughput

A server on 127.0.0.1, in a process of its own, answers every call after 50 ms; 256 calls are in flight. There are
three: one with FastAPI under plain uvicorn, as `transformers serve` is, one with aiohttp, which is faster, and one that
parses as little as it can, which no inference server does. The sides take turns within one run: `server` is a bare load
generator that does nothing but send and receive, `zephyrctl` is `Calls` with the `openai` teacher and the call log
on disk, `openai` is a gather over `AsyncOpenAI` behind a semaphore. Each side is a process of its own and counts from
its first call to its last; connections are part of it.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn
from aiohttp import web
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks import machine

RESULT = Path(__file__).with_suffix(".json")
SECONDS = 0.05
KINDS = ("fastapi", "aiohttp", "protocol")
MODEL = "loopback"
TEXT = "The capital of France is Paris, a city on the Seine that has been its capital for a thousand years. " * 4
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 60, "completion_tokens": 88, "total_tokens": 148},
    }
).encode()
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)


def question(number: int) -> str:
    """The text of a call: no two are the same."""
    return f"Question {number}: which city is the capital of France, and since when? " + "Say it in one sentence. " * 8


class Server(asyncio.Protocol):
    """One connection: as little work a request as Python can do."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.received = b""
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Answer 50 ms after the last byte of a request."""
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self.received = body[length:]
            self.loop.call_later(SECONDS, self.transport.write, RESPONSE)


class Turn(BaseModel):
    """A message."""

    role: str
    content: str


class Asked(BaseModel):
    """What a request says."""

    model: str
    messages: list[Turn]
    max_tokens: int | None = None
    temperature: float | None = None


def fastapi_app() -> FastAPI:
    """The same answer, as the servers that models run behind are written."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(asked: Asked) -> Response:
        await asyncio.sleep(SECONDS)
        return Response(ANSWER, media_type="application/json")

    return app


async def answer(request: web.Request) -> web.Response:
    """What a server written with a framework does."""
    await request.json()
    await asyncio.sleep(SECONDS)
    return web.Response(body=ANSWER, content_type="application/json")


def serve(kind: str, pipe: Connection) -> None:
    """Serve until the parent ends the process; the port goes through the pipe."""

    async def run() -> None:
        if kind == "fastapi":
            listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
            pipe.send(listener.getsockname()[1])
            await uvicorn.Server(uvicorn.Config(fastapi_app(), log_level="error", access_log=False)).serve([listener])
        if kind == "aiohttp":
            app = web.Application()
            app.router.add_post("/v1/chat/completions", answer)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
            pipe.send(runner.addresses[0][1])
            await asyncio.Event().wait()
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=2048)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def server(kind: str) -> Iterator[int]:
    """A server's port, while it runs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(kind, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


class Generator(asyncio.Protocol):
    """One connection of the bare load generator: a request, its response, the next request."""

    def __init__(self, requests: Iterator[bytes], ended: Callable[[], None]) -> None:
        self.requests = requests
        self.ended = ended
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.send()

    def send(self) -> None:
        """The next request, or the end."""
        request = next(self.requests, None)
        if request is None:
            self.transport.close()
            self.ended()
            return
        self.received = b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """A part of a response, which ends as long after its head as the answer is."""
        self.received += data
        head = self.received.find(b"\r\n\r\n")
        if head >= 0 and len(self.received) >= head + 4 + len(ANSWER):
            self.send()


async def bare(port: int, calls: int, at_once: int) -> None:
    """What the server can give."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    left = at_once

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    requests = (_request(number) for number in range(calls))
    for _ in range(at_once):
        await loop.create_connection(lambda: Generator(requests, ended), "127.0.0.1", port)
    await done


def _request(number: int) -> bytes:
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": question(number)}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ours(port: int, calls: int, at_once: int) -> None:
    """`Calls` with the `openai` teacher: each call is in the call log before it is sent and when it settles."""
    from zephyrctl.recipe.schema import Limits, TeacherChoice
    from zephyrctl.records import Message
    from zephyrctl.teachers import prices
    from zephyrctl.teachers.client import Calls

    choice = TeacherChoice(
        name="openai",
        options={"model": MODEL, "base_url": f"http://127.0.0.1:{port}/v1"},
        limits=Limits(concurrency=at_once),
    )
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        async with Calls(Path(folder), "feedback", prices.load()) as paid:
            teacher = paid.teacher(choice)

            async def one(number: int) -> None:
                await teacher.ask([Message(role="user", content=question(number))])

            await _all(one, calls, at_once)


async def plain(port: int, calls: int, at_once: int) -> None:
    """A straightforward gather over AsyncOpenAI, as one writes it in an afternoon."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with places:
            message = {"role": "user", "content": question(number)}
            await client.chat.completions.create(model=MODEL, messages=[message])  # type: ignore[list-item]

    await asyncio.gather(*(one(number) for number in range(calls)))
    await client.close()


async def _all(one: Callable[[int], Awaitable[None]], calls: int, at_once: int) -> None:
    """So many workers, each of which takes the next number."""
    numbers = iter(range(calls))

    async def work() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work() for _ in range(at_once)))


SIDES = {"server": bare, "zephyrctl": ours, "openai": plain}


def run_side(side: str, port: int, calls: int, at_once: int) -> None:
    """Make the calls and print seconds and processor seconds."""

    async def timed() -> dict[str, float]:
        await SIDES[side](port, 2, 2)  # imports are no part of it
        began, cpu = time.perf_counter(), time.process_time()
        await SIDES[side](port, calls, at_once)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}

    print(json.dumps(asyncio.run(timed())))


def measure(kind: str, calls: dict[str, int], at_once: int, rounds: int) -> dict[str, Any]:
    """All sides in turns against one kind of server, each round in another order."""
    figures: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with server(kind) as port, tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for number in range(rounds):
            order = [*SIDES][number % 3 :] + [*SIDES][: number % 3]
            for side in order:
                command = [sys.executable, "-m", "benchmarks.throughput", "--side", side, "--port", str(port)]
                command += ["--calls", str(calls[side]), "--at-once", str(at_once)]
                root = Path(__file__).parents[1]
                environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
                done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, check=True)
                told = json.loads(done.stdout)
                figures[side].append({"calls_per_second": calls[side] / told["seconds"], **told})
                print(kind, side, {key: round(value, 2) for key, value in figures[side][-1].items()}, flush=True)
    rates = {side: median(one["calls_per_second"] for one in told) for side, told in figures.items()}
    return {
        "calls": calls,
        "in_flight": at_once,
        "answer_after_seconds": SECONDS,
        "rounds": figures,
        "median_calls_per_second": rates,
        "share_of_the_server": rates["zephyrctl"] / rates["server"],
        "times_openai": rates["zephyrctl"] / rates["openai"],
    }


def main() -> None:
    """Measure, print, and write the result of the full size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=20_000, help="of the two fast sides; openai makes a tenth of them")
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=[*SIDES], help="make one side's calls against --port")
    parser.add_argument("--port", type=int)
    asked = parser.parse_args()
    if asked.side:
        run_side(asked.side, asked.port, asked.calls, asked.at_once)
        return
    calls = {"server": asked.calls, "zephyrctl": asked.calls, "openai": asked.calls // 10}
    result: dict[str, Any] = {"machine": machine.describe()}
    for kind in KINDS:
        result[kind] = measure(kind, calls, asked.at_once, asked.rounds)
        shown = ("median_calls_per_second", "share_of_the_server", "times_openai")
        print(kind, json.dumps({key: result[kind][key] for key in shown}), flush=True)
    if asked.calls == 20_000:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
