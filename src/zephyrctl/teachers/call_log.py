"""The write-ahead log of paid calls: what is asked is written down before it is sent, and again when it settles.

One SQLite file per run. If the process is killed, attempts without an end are left: those may have been paid, and are
listed. A settled call is never made again. A call is sent, and a reply used, once its row is committed (WAL,
`synchronous=NORMAL`, with our own fsync every second): a kill at any moment loses nothing; a power cut may lose what
settled in the last second, and never damages the file. Waiting rows are committed together at the end of the event
loop's turn, in its own thread: this takes 20 us per call, while a writer thread waited 5 ms for Python's lock at every
statement, and an fsync per commit (`synchronous=FULL`) took another half of the throughput.
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
IN_FLIGHT = "in flight"
INTERRUPTED = "interrupted"
"""The outcome of an attempt whose process ended first."""
NOT_SENT = "not sent"
SETTLED = "settled"
PREVIEW_CHARACTERS = 80
RESERVE_BYTES = 4 * 2**20
"""Disk space reserved while calls are made: if the disk fills up, replies to calls in flight still fit."""
SYNC_SECONDS = 1.0
ROWS_PER_STATEMENT = 64
"""13 columns x 64 rows are below the 999 values that every SQLite takes in a statement."""
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
    """A value's canonical JSON: keys sorted, no spaces. Keys of calls depend on it, so it never changes."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


@dataclass(frozen=True)
class LoggedCall:
    """One call, as the call log knows it."""

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
        """The call with its key: sha256 of the canonical JSON of teacher, options, messages, sampling and sample index.

        Options and sampling may be given as canonical JSON, as they are the same for many calls.
        """
        options = identity if isinstance(identity, str) else canonical(identity)
        drawn = sampling if isinstance(sampling, str) else canonical(sampling)
        content = f"[{canonical(teacher)},{options},{canonical(messages)},{drawn},{sample}]"
        words = messages[-1]["content"][: 2 * PREVIEW_CHARACTERS].split() if messages else ()
        key = hashlib.sha256(content.encode()).hexdigest()
        return cls(key, teacher, options, label, " ".join(words)[:PREVIEW_CHARACTERS])


@dataclass(frozen=True)
class SettledCall:
    """A call that got a reply."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    usd: float | None
    seconds: float


@dataclass(frozen=True)
class LostAttempt:
    """An attempt that got no reply and may have been paid."""

    stage: str
    label: str
    preview: str
    begun_at: float
    outcome: str
    worst_usd: float | None


SqlValue = str | int | float | None
SqlRow = Sequence[SqlValue]


@dataclass
class LogBatch:
    """Rows of one transaction; whoever begins an attempt waits for its number."""

    begun: "list[tuple[SqlRow, asyncio.Future[int]]]" = field(default_factory=list)
    ended: list[SqlRow] = field(default_factory=list)
    kept: list[SqlRow] = field(default_factory=list)


class CallLog:
    """The calls of a run, to read; or, if a stage is given, to make its calls, which locks out other processes.

    Reads are immediate. What is written in a turn of the event loop is committed together at its end; an attempt waits
    for that before it is sent. After a row that cannot be written, nothing more is: `begin` and `close` raise.
    """

    def __init__(self, run_path: Path, stage: str = "") -> None:
        self.path = run_path / FILE
        self.stage = stage
        run_path.mkdir(parents=True, exist_ok=True)
        self._reserve = _lock(run_path / f".calls.{stage}.lock", stage) if stage else None
        self._file = _connect(self.path)
        self._known = {_short(key) for (key,) in self._rows("select key from calls")}
        """Settled calls by the first 15 digits of their keys: 60 MB for a million, and a new call reads no file."""
        self._waiting = LogBatch()
        self._failure: Exception | None = None
        self._syncing = DiskSync(self.path.with_name(f"{FILE}-wal")) if stage else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Commit what is waiting and close the file. Raises the error of `begin` if something could not be written."""
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

    def reply(self, key: str) -> SettledCall | None:
        """The reply to a call, or None if it has not settled."""
        if _short(key) not in self._known:
            return None
        columns = "text, model, prompt_tokens, completion_tokens, finish_reason, usd, seconds"
        query = f"select {columns} from calls where key=?"
        row = next(self._rows(query, key), None)
        if row is None and self._waiting.kept:
            self._commit()  # it settled in this turn of the event loop
            row = next(self._rows(query, key), None)
        return SettledCall(*row) if row else None

    def end_interrupted(self) -> int:
        """Mark this stage's attempts that a killed process left open, and return their number."""
        with _translated(self.path):
            change = "update attempts set outcome=?, may_be_paid=1 where stage=? and outcome is null"
            return self._file.execute(change, (INTERRUPTED, self.stage)).rowcount  # the time of their end is not known

    async def begin(self, request: LoggedCall, worst_usd: float | None) -> int:
        """Log that a call is about to be sent, and return the attempt's number once that is committed.

        Raises OSError if the disk is full, and ZephyrError if the file cannot be written.
        """
        if self._failure:
            raise self._failure.with_traceback(None)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        row = (request.key, self.stage, request.label, request.preview, time.time(), worst_usd, 0)
        self._batch().begun.append((row, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not (future.cancelled() or future.exception()):
                self.fail(future.result(), NOT_SENT, may_be_paid=False)
            raise

    def settle(self, attempt: int, request: LoggedCall, settled: SettledCall) -> None:
        """Log a reply."""
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
        batch = self._batch()
        batch.ended.append((attempt, SETTLED, now, 0))
        batch.kept.append(row)
        self._known.add(_short(request.key))

    def fail(self, attempt: int, cause: str, may_be_paid: bool) -> None:
        """Log that an attempt got no reply."""
        self._batch().ended.append((attempt, cause, time.time(), int(may_be_paid)))

    def spent_usd(self) -> float:
        """What this stage has spent, in US dollars. Attempts that may have been paid count at their worst cost."""
        settled = "select coalesce(sum(usd), 0) from calls where stage=?"
        lost = "select coalesce(sum(worst_usd), 0) from attempts where stage=? and may_be_paid"
        return float(sum(next(self._rows(query, self.stage))[0] for query in (settled, lost)))

    def unpriced(self) -> list[tuple[str, str, int, int]]:
        """(teacher, model, prompt tokens, completion tokens) of this stage's settled calls that had no price."""
        columns = "label, model, sum(prompt_tokens), sum(completion_tokens)"
        return [*self._rows(f"select {columns} from calls where stage=? and usd is null group by 1, 2", self.stage)]

    def possibly_paid(self, stage: str | None = None) -> list[LostAttempt]:
        """Attempts without a reply that may have been paid, including those in flight; of all stages by default."""
        rows = self._rows(
            f"select stage, label, preview, begun_at, coalesce(outcome, '{IN_FLIGHT}'), worst_usd from attempts"
            " where (may_be_paid or outcome is null) and (? is null or stage=?) order by begun_at, id",
            stage,
            stage,
        )
        return [LostAttempt(*row) for row in rows]

    def history(self, teacher: str, identity: Mapping[str, Any]) -> Iterator[tuple[int, int, float, float | None]]:
        """(prompt tokens, completion tokens, seconds, US dollars) of each settled call of a teacher."""
        columns = "prompt_tokens, completion_tokens, seconds, usd"
        options = canonical(identity)
        yield from self._rows(f"select {columns} from calls where teacher=? and identity=?", teacher, options)

    def totals(self) -> list[dict[str, Any]]:
        """SettledCall calls, tokens and US dollars by stage, teacher and model."""
        rows = self._rows(
            "select stage, label, model, count(*), sum(prompt_tokens), sum(completion_tokens), sum(usd),"
            " sum(usd is null), sum(seconds) from calls group by stage, label, model order by stage, label, model"
        )
        names = (
            "stage", "teacher", "model", "calls", "prompt_tokens", "completion_tokens", "usd", "unpriced", "seconds"
        )  # fmt: skip
        return [dict(zip(names, row, strict=True)) for row in rows]

    def outcomes(self) -> list[dict[str, Any]]:
        """Attempts by stage, teacher and outcome, with the number that may have been paid."""
        rows = self._rows(
            f"select stage, label, coalesce(outcome, '{IN_FLIGHT}'), count(*), sum(may_be_paid or outcome is null)"
            " from attempts group by 1, 2, 3 order by 1, 2, 3"
        )
        names = ("stage", "teacher", "outcome", "attempts", "possibly_paid")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _rows(self, query: str, *values: SqlValue) -> Iterator[tuple[Any, ...]]:
        with _translated(self.path):
            yield from self._file.execute(query, values)

    def _batch(self) -> LogBatch:
        """The rows to commit at the end of this turn of the event loop."""
        if not (self._waiting.begun or self._waiting.ended):
            asyncio.get_running_loop().call_soon(self._commit)
        return self._waiting

    def _commit(self) -> None:
        """Write the waiting rows, without calls that were cancelled meanwhile.

        If the disk is full, the reserved space is freed for attempts that have ended, and no other is begun.
        """
        batch, self._waiting = self._waiting, LogBatch()
        batch.begun = [(row, future) for row, future in batch.begun if not future.done()]
        self._failure = self._try_to_write(batch) or self._failure
        if not self._failure:
            return
        for _, future in batch.begun:
            future.set_exception(self._failure)
        if isinstance(self._failure, OSError) and batch.ended and self._reserve:
            self._reserve.truncate(0)
            self._failure = self._try_to_write(LogBatch([], batch.ended, batch.kept)) or self._failure

    def _try_to_write(self, batch: LogBatch) -> Exception | None:
        """Commit the whole batch or nothing; returns the error, if any."""
        try:
            with _translated(self.path):
                last = write(self._file, batch)
        except Exception as error:  # of any kind: it must reach whoever waits for a number
            return error
        for number, (_, future) in enumerate(batch.begun, last + 1 - len(batch.begun)):
            future.set_result(number)
        if self._syncing and (batch.begun or batch.ended):
            self._syncing.is_due = True
        return None


class DiskSync:
    """Calls fsync on a file every second, in its own thread."""

    def __init__(self, path: Path) -> None:
        self.is_due = False
        self._path = path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="call-log", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Sync a last time and end the thread."""
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


def write(connection: sqlite3.Connection, batch: LogBatch) -> int:
    """Commit a whole batch or nothing; returns the number of the last attempt that was begun."""
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


def insert(connection: sqlite3.Connection, into: str, rows: Sequence[SqlRow], rest: str = "") -> int:
    """Insert rows, many per statement, and return the last id; SQLite numbers the rows of a statement in sequence."""
    last = 0
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        some = rows[start : start + ROWS_PER_STATEMENT]
        marks = f"({', '.join('?' * len(some[0]))})"
        values = [value for row in some for value in row]
        last = connection.execute(f"{into}{', '.join([marks] * len(some))}{rest}", values).lastrowid or 0
    return last


def _lock(path: Path, stage: str) -> TextIO:
    """Lock the stage's calls for this process, and reserve disk space."""
    file = lock(path, f"makes the calls of {stage!r}")
    try:
        os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
    except (OSError, AttributeError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            file.truncate(0)
            file.close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from None
    return file  # other errors mean that this file system cannot reserve space


def _connect(path: Path) -> sqlite3.Connection:
    """Open the call log; create it if missing. Raises ZephyrError if it is damaged or of a newer version."""
    with _translated(path):
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
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's error of a full disk into an OSError, and its other errors into ZephyrErrors that name the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            remedy = f"move {path} away: its calls will be made, and paid for, again"
            raise ZephyrError(f"{path} is damaged: {error}", remedy) from None
        remedy = "check that the file can be written and that no other program has it open"
        raise ZephyrError(f"{path}: {error}", remedy) from None
