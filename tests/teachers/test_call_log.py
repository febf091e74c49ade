"""Whether every call is on record before it is sent and once it settles, whatever becomes of process and disk."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.teachers.call_log import FILE, INTERRUPTED, CallLog, LoggedCall, SettledCall

REPLY = SettledCall("Yes.\u2028é", "m-1", 10, 2, "stop", 0.5, 0.1)


def request(text: str = "Why?", sample: int = 0, **identity: str) -> LoggedCall:
    """A call of a made-up teacher."""
    return LoggedCall.of(
        "t", {"model": "m", **identity}, "m", [{"role": "user", "content": text}], {"temperature": 0.0}, sample
    )


async def settle(log: CallLog, asked: LoggedCall, reply: SettledCall = REPLY) -> None:
    """A whole call."""
    log.settle(await log.begin(asked, 1.0), asked, reply)


def test_a_key_is_of_all_that_a_reply_depends_on() -> None:
    """Teacher, options, messages, sampling and sample; not of the order of options."""
    first = request()
    others = [request("Who?"), request(sample=1), request(system="Be brief.")]
    others.append(
        LoggedCall.of("u", {"model": "m"}, "m", [{"role": "user", "content": "Why?"}], {"temperature": 0.0}, 0)
    )
    others.append(
        LoggedCall.of("t", {"model": "m"}, "m", [{"role": "user", "content": "Why?"}], {"temperature": 1.0}, 0)
    )
    others.append(
        LoggedCall.of("t", {"model": "m"}, "m", [{"role": "system", "content": "Why?"}], {"temperature": 0.0}, 0)
    )
    keys = {first.key, *(other.key for other in others)}
    assert len(keys) == 1 + len(others)
    assert request(a="1", b="2").key == request(b="2", a="1").key


def test_what_settled_is_there_for_every_later_process(tmp_path: Path) -> None:
    with CallLog(tmp_path, "feedback") as log:
        assert log.reply(request().key) is None
        asyncio.run(settle(log, request()))
        assert log.reply(request().key) == REPLY
    with CallLog(tmp_path, "eval") as log:
        assert log.reply(request().key) == REPLY
        assert log.spent_usd() == 0, "another stage's spending"
    with CallLog(tmp_path, "feedback") as log:
        assert log.spent_usd() == 0.5
        assert log.possibly_paid() == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
from tests.teachers.test_call_log import request, settle
from zephyrctl.teachers.call_log import CallLog
async def go():
    log = CallLog(Path(sys.argv[1]), "feedback")
    await settle(log, request("settled"))
    await log.begin(request("in flight"), 2.0)
    os.kill(os.getpid(), 9)
asyncio.run(go())
"""


def test_a_kill_loses_nothing_and_lists_what_was_under_way(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], env=environment, check=False)
    assert done.returncode == -9
    with CallLog(tmp_path, "eval") as log:
        assert log.end_interrupted() == 0, "another stage's attempts are its own"
        assert [attempt.outcome for attempt in log.possibly_paid()] == ["in flight"]
    with CallLog(tmp_path, "feedback") as log:
        assert log.reply(request("settled").key) == REPLY
        assert log.reply(request("in flight").key) is None
        assert log.end_interrupted() == 1
        assert log.end_interrupted() == 0
        (lost,) = log.possibly_paid()
        assert (lost.outcome, lost.preview, lost.worst_usd) == (INTERRUPTED, "in flight", 2.0)
        assert log.spent_usd() == 0.5 + 2.0


def test_attempts_are_counted_by_outcome(tmp_path: Path) -> None:
    async def go(log: CallLog) -> None:
        await settle(log, request())
        for cause, is_paid in (("429", False), ("429", False), ("timeout", True)):
            log.fail(await log.begin(request("Who?"), 0.25), cause, is_paid)

    with CallLog(tmp_path, "feedback") as log:
        asyncio.run(go(log))
        assert {row["outcome"]: row["attempts"] for row in log.outcomes()} == {"settled": 1, "429": 2, "timeout": 1}
        assert [attempt.outcome for attempt in log.possibly_paid()] == ["timeout"]
        assert log.spent_usd() == 0.75
        (total,) = log.totals()
        assert (total["teacher"], total["model"], total["calls"], total["prompt_tokens"]) == ("m", "m-1", 1, 10)
        assert list(log.history("t", {"model": "m"})) == [(10, 2, 0.1, 0.5)]
        assert list(log.history("t", {"model": "n"})) == []


def test_many_at_once_are_all_written(tmp_path: Path) -> None:
    """By one writer, in few transactions; a second connection sees them all."""

    async def go(log: CallLog) -> None:
        await asyncio.gather(*(settle(log, request(f"Why {n}?")) for n in range(500)))

    with CallLog(tmp_path, "feedback") as log:
        asyncio.run(go(log))
        with sqlite3.connect(tmp_path / FILE) as other:
            assert other.execute("select count(*), count(distinct key) from calls").fetchone() == (500, 500)
            assert other.execute("select count(*) from attempts where outcome='settled'").fetchone() == (500,)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    async def go(first: CallLog, second: CallLog) -> None:
        calls = [settle(log, request(f"{n}")) for n in range(50) for log in (first, second)]
        await asyncio.gather(*calls)

    with CallLog(tmp_path, "build") as first, CallLog(tmp_path, "feedback") as second:
        asyncio.run(go(first, second))
        assert sum(row["calls"] for row in first.totals()) == 50
        assert sum(row["attempts"] for row in second.outcomes()) == 100


def test_a_full_disk_stops_before_a_call_is_sent_and_keeps_what_settled(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("6m")
    sent = 0

    async def go(log: CallLog) -> None:
        nonlocal sent
        for number in range(10_000):
            asked = request(f"{number} " + "x" * 200)
            attempt = await log.begin(asked, 0.0)
            sent += 1
            log.settle(attempt, asked, SettledCall("y" * 500, "m", 1, 1, "stop", 0.0, 0.1))

    with pytest.raises(OSError, match="No space left"), CallLog(disk, "feedback") as log:
        asyncio.run(go(log))
    assert sent > 20
    with sqlite3.connect(f"file:{disk / FILE}?mode=ro", uri=True) as read:
        (settled,) = read.execute("select count(*) from calls").fetchone()
    assert settled == sent, "a reply was lost: it had no place"


def test_a_file_that_is_no_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(ZephyrError, match="is damaged"):
        CallLog(tmp_path, "feedback")
    (tmp_path / "newer").mkdir()
    with sqlite3.connect(tmp_path / "newer" / FILE) as newer:
        newer.execute("pragma user_version=99")
    with pytest.raises(ZephyrError, match="newer zephyrctl"):
        CallLog(tmp_path / "newer", "feedback")


def test_one_process_at_a_time_makes_the_calls_of_a_stage(tmp_path: Path) -> None:
    """Two would pay twice; reading, and another stage, are free to go on."""
    with CallLog(tmp_path, "feedback"):
        with pytest.raises(ZephyrError, match="another zephyrctl makes the calls of 'feedback'"):
            CallLog(tmp_path, "feedback")
        CallLog(tmp_path).close()
        CallLog(tmp_path, "build").close()
    CallLog(tmp_path, "feedback").close()


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_call_given_up_before_it_was_sent_cannot_have_been_paid(tmp_path: Path, turns: int) -> None:
    """Whenever that happens: before its row is written, or after."""

    async def go(log: CallLog) -> None:
        call = asyncio.create_task(log.begin(request(), 1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    with CallLog(tmp_path, "feedback") as log:
        asyncio.run(go(log))
    with CallLog(tmp_path) as log:
        assert log.possibly_paid() == []


def test_a_reply_that_cannot_be_written_stops_the_work(tmp_path: Path) -> None:
    """And does not leave anybody waiting."""

    async def go(log: CallLog) -> None:
        await settle(log, request(), SettledCall("half a character \ud800", "m", 1, 1, "stop", 0.0, 0.1))
        await asyncio.sleep(0)
        await log.begin(request("Who?"), None)

    with pytest.raises(UnicodeEncodeError), CallLog(tmp_path, "feedback") as log:
        asyncio.run(go(log))
