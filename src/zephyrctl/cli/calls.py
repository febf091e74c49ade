"""`zephyrctl data calls`: the paid calls of a run, with their tokens, costs and failures."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.table import Table

from zephyrctl.cli.session import Session, with_session
from zephyrctl.errors import ZephyrError
from zephyrctl.teachers.call_log import FILE, CallLog, LostAttempt

SHOWN = 20


@with_session
def calls(session: Session) -> None:
    """List paid calls by stage and teacher, failed attempts, and calls that may have been charged without a reply."""
    run = session.open(session.load())
    if not (run.path / FILE).is_file():
        raise ZephyrError(f"{run.path} has no call log", "a stage creates it with its first call to a paid teacher")
    with CallLog(run.path) as call_log:
        summary = {
            "calls": call_log.totals(),
            "attempts": call_log.outcomes(),
            "possibly_paid": [_as_json(attempt) for attempt in call_log.possibly_paid()],
            "usd": call_log.spent_usd(),
        }
    session.screen.show(summary, *_tables(summary))


def _as_json(attempt: LostAttempt) -> dict[str, Any]:
    begun = datetime.fromtimestamp(attempt.begun_at, UTC).isoformat(timespec="seconds")
    return {**asdict(attempt), "begun_at": begun}


def _tables(summary: dict[str, Any]) -> Iterator[Any]:
    settled = Table("stage", "teacher", "model reported", "calls", "prompt tokens", "reply tokens", "US dollars")
    for row in summary["calls"]:
        usd = "no price" if row["unpriced"] == row["calls"] else f"{row['usd']:.4f}"
        names = (row["stage"], row["teacher"], row["model"])
        counts = (row["calls"], row["prompt_tokens"], row["completion_tokens"])
        settled.add_row(*names, *map(str, counts), usd)
    yield settled
    if failed := [row for row in summary["attempts"] if row["outcome"] != "settled"]:
        table = Table("stage", "teacher", "failed attempts", "number")
        for row in failed:
            table.add_row(row["stage"], row["teacher"], row["outcome"], str(row["attempts"]))
        yield table
    if lost := summary["possibly_paid"]:
        table = Table("may have been charged", "started", "teacher", "at most, US dollars", "prompt")
        for row in lost[:SHOWN]:
            worst = "no price" if row["worst_usd"] is None else f"{row['worst_usd']:.4f}"
            table.add_row(row["outcome"], row["begun_at"], row["label"], worst, row["preview"])
        yield table
        if len(lost) > SHOWN:
            yield f"and {len(lost) - SHOWN} more: --json lists all"
