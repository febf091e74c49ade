"""A chat server that fails as real ones do, by seed and at a given rate, and writes down every request that it saw.

    python -m tests.hostile_server LOG --rate 0.2 --seed 1

It runs in a process of its own, so that it outlives clients that are killed. What it answers hangs on the request
alone: two runs against it come to the same rows, however often their calls failed on the way. A fault is drawn anew
each time that a request comes. `disagreements` compares what it saw with what a ledger says.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests import chat_server
from tests.chat_server import Call
from zephyrctl.contracts import Sampling
from zephyrctl.teachers.call_log import FILE, NOT_SENT, SETTLED, LoggedCall

ROOT = Path(__file__).parents[1]
ANSWERED = "answered"
FAULTS = {
    "429": "429",
    "429 with a wait": "429",
    "500": "500",
    "hang": "timeout",
    "slow bytes": "timeout",
    "cut": "cut connection",
    "malformed": "an answer that is no JSON",
    "empty": "an empty answer",
}
"""What it does, and what the ledger must call it."""
WAIT_SECONDS = 0.2
WRONG_RATINGS = 0.1
"""Share of the rating calls that get a wrong number of ratings, each time they are made: such a call settles."""
LIFETIME_SECONDS = 3600.0


@dataclass
class Hostile:
    """The server's state: what it does and where it writes down what it did."""

    log: Path
    rate: float
    seed: int
    delay: float
    hang: float
    seen: Counter[str] = field(default_factory=Counter)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._answer(reader, writer):
                pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read a request and answer it; False at the end of the connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = json.loads(await reader.readexactly(int(head.partition("content-length:")[2].split("\r\n")[0])))
        outcome = self._draw(body)
        with self.log.open("a") as log:
            log.write(json.dumps({"at": time.time(), "body": body, "outcome": outcome}) + "\n")
        await asyncio.sleep(self.delay)
        if outcome in ("hang", "cut", "slow bytes"):
            await self._break(outcome, writer)
            return False
        status, text = await self._say(body, outcome)
        headers = f"Retry-After: {WAIT_SECONDS}\r\n" if outcome == "429 with a wait" else ""
        content = text.encode()
        writer.write(f"HTTP/1.1 {status} OK\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        return True

    def _draw(self, body: Mapping[str, Any]) -> str:
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.seen[digest] += 1
        rng = Random(f"{self.seed}:{digest}:{self.seen[digest]}")
        return rng.choice([*FAULTS]) if rng.random() < self.rate else ANSWERED

    async def _break(self, outcome: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" if outcome != "hang" else b"")
        ends = time.monotonic() + (0.0 if outcome == "cut" else self.hang)
        while time.monotonic() < ends and not writer.is_closing():
            writer.write(b" " if outcome == "slow bytes" else b"")
            await asyncio.sleep(0.02)
        await writer.drain()

    async def _say(self, body: dict[str, Any], outcome: str) -> tuple[int, str]:
        call = Call(body, {})
        if outcome == "malformed":
            return 200, '{"choices": [{"message": {"content": "The'
        if outcome == "empty":
            return 200, json.dumps(chat_server.completion(call, " \n"))
        if outcome != ANSWERED:
            return int(outcome[:3]), json.dumps({"error": {"message": "as hostile servers do"}})
        text = await chat_server.answer_by_rules(call)
        is_rating = call.text.startswith("You rate answers")
        if is_rating and Random(f"{self.seed}:{call.text}").random() < WRONG_RATINGS:
            text = text.rpartition("\n")[0]
        return 200, json.dumps(chat_server.completion(call, text if is_rating else f"{text} ({body['model']})"))


async def run(asked: argparse.Namespace) -> None:
    """Serve on a free port, which is printed, until whoever started it is gone."""
    hostile = Hostile(asked.log, asked.rate, asked.seed, asked.delay, asked.hang)
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0, limit=2**22, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    parent, ends = os.getppid(), time.monotonic() + LIFETIME_SECONDS
    while os.getppid() == parent and time.monotonic() < ends:
        await asyncio.sleep(0.5)


@contextlib.contextmanager
def serve(log: Path, rate: float = 0.2, seed: int = 1, delay: float = 0.0, hang: float = 5.0) -> Iterator[str]:
    """The base URL of a server in a process of its own. It answers after `delay` seconds, and hangs for `hang`."""
    command = [sys.executable, "-m", "tests.hostile_server", str(log), "--rate", str(rate), "--seed", str(seed)]
    command += ["--delay", str(delay), "--hang", str(hang)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


def requests(log: Path) -> list[dict[str, Any]]:
    """What the server saw, in order: when, body and outcome."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def keys(body: Mapping[str, Any], samples: Sequence[int] = range(20)) -> list[str]:
    """The ledger's keys that a request may have: by the body alone its sample index is not known."""
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    drawn = Sampling(
        temperature=body["temperature"],
        top_p=body["top_p"],
        seed=body["seed"],
        max_tokens=body["max_completion_tokens"],
        json_schema=json.dumps(schema) if schema else None,
    ).model_dump()
    identity = {"model": body["model"], "system": None}
    return [LoggedCall.of("openai", identity, "", body["messages"], drawn, sample).key for sample in samples]


def attempts(run_path: Path) -> dict[str, list[str]]:
    """The outcomes of every call's attempts in a ledger, in the order in which they were begun."""
    found: dict[str, list[str]] = {}
    with contextlib.closing(sqlite3.connect(run_path / FILE)) as file:
        for key, outcome in file.execute("select key, outcome from attempts order by id"):
            found.setdefault(key, []).append(outcome)
    return found


def disagreements(log: Path, run_path: Path) -> list[str]:
    """Where a ledger and the server's log differ: for every request, how often it was tried, by outcome.

    An attempt that was interrupted or given up may or may not have been seen; all others must be there, one for one.
    """
    ledger = attempts(run_path)
    seen: dict[tuple[str, ...], Counter[str]] = {}
    for request in requests(log):
        known = tuple(key for key in keys(request["body"]) if key in ledger)  # equal requests, asked for again
        seen.setdefault(known, Counter())[FAULTS.get(request["outcome"], SETTLED)] += 1
    found = [f"{told.total()} requests that no attempt stands for"] if (told := seen.pop((), None)) else []
    silent = {key for key in ledger if not any(key in known for known in seen)}
    for known, told in [*seen.items(), *(((key,), Counter[str]()) for key in silent)]:
        tried = Counter(outcome for key in known for outcome in ledger[key] if outcome != NOT_SENT)
        ends = {outcome: count for outcome, count in tried.items() if outcome in (*FAULTS.values(), SETTLED)}
        unseen, unknown = Counter(ends) - told, told - tried
        if unseen or unknown.total() > tried.total() - sum(ends.values()):
            found.append(f"{known[0][:12]}: not seen {dict(unseen)}, not in the ledger {dict(unknown)}")
    return found


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang", type=float, default=5.0)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
