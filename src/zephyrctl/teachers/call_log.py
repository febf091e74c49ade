"""The write-ahead ledger of paid calls: what was asked, written down before it is sent and again when it settles.

One SQLite file a run. A process that is killed anywhere leaves attempts without an end: those may have been paid, and
are listed. A settled call is never made again. A call is sent, and a reply used, once its row is committed (WAL,
`synchronous=NORMAL`, with an fsync of its own every second): a kill at any moment loses nothing; a power cut may lose
what settled in the last second, and never damages the file. Rows that wait are committed together at the end of the
event loop's turn, in its own thread: that takes 20 us a call, while a writer thread waited 5 ms for Python's lock at
every statement, and an fsync a commit (`synchronous=FULL`) took another half of the throughput.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TextIO

import orjson

from zephyrctl.disk import lock
from zephyrctl.errors import ZephyrError

FILE = "calls.sqlite"
VERSION = 1
UNDER_WAY = "under way"
INTERRUPTED = "interrupted"
"""The outcome of an attempt whose process ended before it did."""
NOT_SENT = "not sent"
SETTLED = "settled"
PREVIEW_CHARACTERS = 80
RESERVE_BYTES = 4 * 2**20
"""Disk space held back while calls are made: where the disk fills up, replies to calls under way still find a place."""
SYNC_SECONDS = 1.0
ROWS_A_STATEMENT = 64
"""13 columns x 64 rows stay below the 999 values that every SQLite takes."""
TABLES = """
create table if not exists calls (
  key text primary key, stage text, teacher text, identity text, label text, model text, text text, finish_reason text,
  prompt_tokens integer, completion_tokens integer, usd real, seconds real, settled_at real
);
create index if not exists calls_of_a_teacher on calls (teacher, identity);
create table if not exists attempts (
  id integer primary key, key text, stage text, label text, preview text, begun_at real, ended_at real, outcome text,
  may_be_paid integer, worst_usd real
);
create index if not exists attempts_lost on attempts (stage) where may_be_paid;
"""
BEGIN = "insert into attempts (key, stage, label, preview, begun_at, worst_usd, may_be_paid) values "
END = "insert into attempts (id, outcome, ended_at, may_be_paid) values "
END_OF_KNOWN = (
    " on conflict (id) do update set"
    " outcome=excluded.outcome, ended_at=excluded.ended_at, may_be_paid=excluded.may_be_paid"
)
KEEP = "insert or ignore into calls values "


def canonical(value: Any) -> str:
    """A value's one JSON text: keys in order, no spaces."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True)
class Request:
    """One call, as the ledger knows it."""

    key: str
    teacher: str
    identity: str
    label: str
    preview: str

    @classmethod
    def of(
        cls,
        teacher: str,
        identity: Mapping[str, Any] | str,
        label: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any] | str,
        sample: int,
    ) -> Self:
        """Keyed by teacher, options, messages, sampling and sample index: sha256 of their canonical JSON.

        Options and sampling may be given as their canonical JSON: they are the same for many calls.
        """
        options = identity if isinstance(identity, str) else canonical(identity)
        drawn = sampling if isinstance(sampling, str) else canonical(sampling)
        asked = f"[{canonical(teacher)},{options},{canonical(messages)},{drawn},{sample}]"
        words = messages[-1]["content"][: 2 * PREVIEW_CHARACTERS].split() if messages else ()
        key = hashlib.sha256(asked.encode()).hexdigest()
        return cls(key, teacher, options, label, " ".join(words)[:PREVIEW_CHARACTERS])


@dataclass(frozen=True)
class Settled:
    """A call that brought a reply."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    usd: float | None
    seconds: float


@dataclass(frozen=True)
class Attempt:
    """A try that may have been paid though it brought nothing."""

    stage: str
    label: str
    preview: str
    begun_at: float
    outcome: str
    worst_usd: float | None


Row = Sequence[Any]


@dataclass
class Batch:
    """Rows that go into one transaction; an attempt that begins waits for its number."""

    begun: "list[tuple[Row, asyncio.Future[int]]]" = field(default_factory=list)
    ended: list[Row] = field(default_factory=list)
    kept: list[Row] = field(default_factory=list)


class Ledger:
    """The calls of a run: open to read, or, with a stage, to make that stage's calls; then no other process may.

    Reads are at once; what is written in a turn of the event loop is committed together at its end. An attempt waits
    for that before it is sent. A row that cannot be written stops all that comes after it: `begin` and `close` raise.
    """

    def __init__(self, run_path: Path, stage: str = "") -> None:
        self.path = run_path / FILE
        self.stage = stage
        run_path.mkdir(parents=True, exist_ok=True)
        self._reserve = _hold(run_path / f".calls.{stage}.lock", stage) if stage else None
        self._file = _connect(self.path)
        self._known = {_short(key) for (key,) in self._rows("select key from calls")}
        """What settled, by the keys' first 15 digits: 60 MB for a million calls, and a new call asks no file."""
        self._waiting = Batch()
        self._failure: Exception | None = None
        self._syncing = Syncing(self.path.with_name(f"{FILE}-wal")) if stage else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what waits and close the file. Raises what `begin` does where something could not be written."""
        self._commit()
        if self._syncing:
            self._syncing.end()
        self._file.close()
        if self._reserve:
            self._reserve.truncate(0)
            self._reserve.close()
            self._reserve = None
        if self._failure:
            raise self._failure

    def reply(self, key: str) -> Settled | None:
        """What a call brought, or None where it has not settled."""
        if _short(key) not in self._known:
            return None
        columns = "text, model, prompt_tokens, completion_tokens, finish_reason, usd, seconds"
        query = f"select {columns} from calls where key=?"
        row = next(self._rows(query, key), None)
        if row is None and self._waiting.kept:
            self._commit()  # it may have settled in this very turn of the loop
            row = next(self._rows(query, key), None)
        return Settled(*row) if row else None

    def end_interrupted(self) -> int:
        """Mark this stage's attempts that a killed process left open; how many there were."""
        with _ours(self.path):
            change = "update attempts set outcome=?, may_be_paid=1 where stage=? and outcome is null"
            return self._file.execute(change, (INTERRUPTED, self.stage)).rowcount  # when they ended is not known

    async def begin(self, request: Request, worst_usd: float | None) -> int:
        """Write down that a call is about to be sent, and return the attempt's number once that is committed.

        Raises OSError where the disk is full, and ZephyrError where the file cannot be written.
        """
        if self._failure:
            raise self._failure.with_traceback(None)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        row = (request.key, self.stage, request.label, request.preview, time.time(), worst_usd, 0)
        self._gather().begun.append((row, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not (future.cancelled() or future.exception()):
                self.fail(future.result(), NOT_SENT, may_be_paid=False)
            raise

    def settle(self, attempt: int, request: Request, settled: Settled) -> None:
        """Write down a reply."""
        now = time.time()
        row = (
            request.key,
            self.stage,
            request.teacher,
            request.identity,
            request.label,
            settled.model,
            settled.text,
            settled.finish_reason,
            settled.prompt_tokens,
            settled.completion_tokens,
            settled.usd,
            settled.seconds,
            now,
        )
        batch = self._gather()
        batch.ended.append((attempt, SETTLED, now, 0))
        batch.kept.append(row)
        self._known.add(_short(request.key))

    def fail(self, attempt: int, cause: str, may_be_paid: bool) -> None:
        """Write down that an attempt brought nothing."""
        self._gather().ended.append((attempt, cause, time.time(), int(may_be_paid)))

    def spent_usd(self) -> float:
        """What this stage has spent, in US dollars; attempts that may have been paid count at their worst."""
        settled = "select coalesce(sum(usd), 0) from calls where stage=?"
        lost = "select coalesce(sum(worst_usd), 0) from attempts where stage=? and may_be_paid"
        return float(sum(next(self._rows(query, self.stage))[0] for query in (settled, lost)))

    def unpriced(self) -> list[tuple[str, str, int, int]]:
        """(teacher, model, prompt tokens, completion tokens) of this stage's settled calls that had no price."""
        columns = "label, model, sum(prompt_tokens), sum(completion_tokens)"
        return [*self._rows(f"select {columns} from calls where stage=? and usd is null group by 1, 2", self.stage)]

    def possibly_paid(self, stage: str | None = None) -> list[Attempt]:
        """Attempts that brought nothing and may have been paid, those still under way included; of every stage."""
        rows = self._rows(
            f"select stage, label, preview, begun_at, coalesce(outcome, '{UNDER_WAY}'), worst_usd from attempts"
            " where (may_be_paid or outcome is null) and (? is null or stage=?) order by begun_at, id",
            stage,
            stage,
        )
        return [Attempt(*row) for row in rows]

    def history(self, teacher: str, identity: Mapping[str, Any]) -> Iterator[tuple[int, int, float, float | None]]:
        """(prompt tokens, completion tokens, seconds, US dollars) of every settled call of a teacher."""
        columns = "prompt_tokens, completion_tokens, seconds, usd"
        options = canonical(identity)
        yield from self._rows(f"select {columns} from calls where teacher=? and identity=?", teacher, options)

    def totals(self) -> list[dict[str, Any]]:
        """Settled calls, tokens and US dollars by stage, teacher and model."""
        rows = self._rows(
            "select stage, label, model, count(*), sum(prompt_tokens), sum(completion_tokens), sum(usd),"
            " sum(usd is null), sum(seconds) from calls group by stage, label, model order by stage, label, model"
        )
        names = (
            "stage", "teacher", "model", "calls", "prompt_tokens", "completion_tokens", "usd", "unpriced", "seconds"
        )  # fmt: skip
        return [dict(zip(names, row, strict=True)) for row in rows]

    def outcomes(self) -> list[dict[str, Any]]:
        """Attempts by stage, teacher and outcome; of each, how many may have been paid."""
        rows = self._rows(
            f"select stage, label, coalesce(outcome, '{UNDER_WAY}'), count(*), sum(may_be_paid or outcome is null)"
            " from attempts group by 1, 2, 3 order by 1, 2, 3"
        )
        names = ("stage", "teacher", "outcome", "attempts", "possibly_paid")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _rows(self, query: str, *values: Any) -> Iterator[Any]:
        with _ours(self.path):
            yield from self._file.execute(query, values)

    def _gather(self) -> Batch:
        """What is written in this turn of the loop."""
        if not (self._waiting.begun or self._waiting.ended):
            asyncio.get_running_loop().call_soon(self._commit)
        return self._waiting

    def _commit(self) -> None:
        """Write what waits; calls that were given up meanwhile are not begun.

        On a full disk the reserve is given up for what has ended, and nothing more is begun.
        """
        batch, self._waiting = self._waiting, Batch()
        batch.begun = [(row, future) for row, future in batch.begun if not future.done()]
        self._failure = self._try_to_write(batch) or self._failure
        if not self._failure:
            return
        for _, future in batch.begun:
            future.set_exception(self._failure)
        if isinstance(self._failure, OSError) and batch.ended and self._reserve:
            self._reserve.truncate(0)
            self._failure = self._try_to_write(Batch([], batch.ended, batch.kept)) or self._failure

    def _try_to_write(self, batch: Batch) -> Exception | None:
        """Commit all of it, or none; why not."""
        try:
            with _ours(self.path):
                last = write(self._file, batch)
        except Exception as error:  # whatever it is, those who wait must hear of it
            return error
        for number, (_, future) in enumerate(batch.begun, last + 1 - len(batch.begun)):
            future.set_result(number)
        if self._syncing and (batch.begun or batch.ended):
            self._syncing.is_due = True
        return None


class Syncing:
    """Has a file reach the disk every second, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self.is_due = False
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Once more, and no longer."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_last = self._ended.wait(SYNC_SECONDS)
            if self.is_due:
                self.is_due = False
                with contextlib.suppress(OSError), self._path.open("rb") as file:
                    os.fsync(file.fileno())
            if is_last:
                return


def _short(key: str) -> int:
    return int(key[:15], 16)


def write(connection: sqlite3.Connection, batch: Batch) -> int:
    """Commit all of a batch, or none; returns the number of the last attempt begun."""
    if not (batch.begun or batch.ended):
        return 0
    try:
        connection.execute("begin immediate")
        last = insert(connection, BEGIN, [row for row, _ in batch.begun])
        insert(connection, KEEP, batch.kept)
        insert(connection, END, batch.ended, END_OF_KNOWN)
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise
    return last


def insert(connection: sqlite3.Connection, into: str, rows: Sequence[Row], rest: str = "") -> int:
    """Insert rows, many a statement, and return the last one's id: those of one statement are numbered in a row."""
    last = 0
    for start in range(0, len(rows), ROWS_A_STATEMENT):
        some = rows[start : start + ROWS_A_STATEMENT]
        row = f"({', '.join('?' * len(some[0]))})"
        values = [value for one in some for value in one]
        last = connection.execute(f"{into}{', '.join([row] * len(some))}{rest}", values).lastrowid or 0
    return last


def _hold(path: Path, stage: str) -> TextIO:
    """Lock the stage's calls for this process, and hold some disk space back."""
    file = lock(path, f"makes the calls of {stage!r}")
    try:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            file.truncate(0)
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from None
    return file  # a file system that cannot hold space back does without


def _connect(path: Path) -> sqlite3.Connection:
    """Open the ledger, made where it is not there. Raises ZephyrError where it is damaged or of a newer version."""
    with _ours(path):
        connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        version = connection.execute("pragma user_version").fetchone()[0]
        if version > VERSION:
            raise ZephyrError(f"{path} was written by a newer zephyrctl", "use that version, or give another --run")
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=normal")
        if version < VERSION:
            connection.executescript(f"begin immediate; {TABLES} pragma user_version={VERSION}; commit;")
    return connection


@contextlib.contextmanager
def _ours(path: Path) -> Iterator[None]:
    """A full disk as the OSError that it is; any other trouble of SQLite as a ZephyrError that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            remedy = f"move {path} away: what it held will be asked, and paid for, again"
            raise ZephyrError(f"{path} is damaged: {error}", remedy) from None
        remedy = "see that the file can be written and no other program holds it"
        raise ZephyrError(f"{path}: {error}", remedy) from None
