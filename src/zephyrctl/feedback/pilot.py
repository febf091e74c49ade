"""What a few prompts, really answered and rated, say of the rest before it is paid for."""

import asyncio
import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zephyrctl.concurrency import in_order
from zephyrctl.errors import UsageError, ZephyrError
from zephyrctl.feedback.annotators import Crew, check
from zephyrctl.feedback.completions import Asked, Intake
from zephyrctl.feedback.dry_run import books_of
from zephyrctl.feedback.ratings import NOT_APPLICABLE, UNREADABLE
from zephyrctl.progress import Progress
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Stage, open_inputs
from zephyrctl.teachers import costs, prices
from zephyrctl.teachers.client import Calls


@dataclass
class Tally:
    """What a draft would note, where no artifact is made."""

    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0

    def drop(self, cause: str, rows: int = 1) -> None:
        """Count rows that are dropped for a cause."""
        if rows:
            self.dropped[cause] += rows


def pilot(
    run: Run, step: Stage, intake: Intake, rows: int, progress: Progress, max_usd: float | None = None
) -> dict[str, Any]:
    """Do so many prompts through the ledger, and forecast the rest from them; no artifact is written.

    They are those with the smallest hashes of their ids: a fair sample, and the same one each time. What is measured
    stands under `pilot`, the forecast of what is left under `rest`.
    """
    check(intake)
    if intake.is_published:
        raise UsageError("a published set is taken as it is: there is nothing to try", "leave --pilot away")
    inputs = open_inputs(run, step)
    tally = Tally()
    chosen = _sample(intake, inputs, rows, tally)
    began = time.monotonic()
    asyncio.run(_do(run, intake, chosen, tally, progress, max_usd))
    measured = {
        "prompts": len(chosen),
        "seconds": round(time.monotonic() - began, 3),
        "usd": tally.cost_usd,
        **tally.metrics,
        "dropped": dict(tally.dropped),
        "notes": tally.notes,
    }
    with books_of(run.path) as books:
        rest = costs.forecast(intake, inputs, books)
    return {"name": step.name, "pilot": measured, "rest": rest.model_dump()}


def _sample(intake: Intake, inputs: Inputs, rows: int, tally: Tally) -> list[Asked]:
    def drawn(asked: Asked) -> str:
        return hashlib.sha256(f"pilot:{asked.prompt.id}".encode()).hexdigest()

    chosen = heapq.nsmallest(rows, intake.rows(inputs, tally.drop), key=drawn)
    if not chosen:
        raise ZephyrError(f"no prompt can be used ({dict(tally.dropped)})", "mend the rows, or give others")
    return chosen


async def _do(
    run: Run, intake: Intake, chosen: Sequence[Asked], tally: Tally, progress: Progress, max_usd: float | None
) -> None:
    recipe = intake.recipe
    done = failed = 0
    async with Calls(run.path, "feedback", prices.load(recipe.prices), max_usd, progress) as calls:
        crew = Crew.of(recipe, calls.teacher)
        at_once = recipe.feedback.concurrency
        async for _, collected in in_order(lambda asked: crew.collect(asked.prompt), chosen, at_once, len(chosen)):
            done += 1
            failed += bool(collected.failures)
            for failure in collected.failures[:1]:
                tally.drop(f"prompts failed: {failure.cause}")
            tally.drop(NOT_APPLICABLE, collected.missing.not_applicable)
            tally.drop(UNREADABLE, collected.missing.unreadable)
            progress.advance(done, len(chosen), "prompts of the pilot")
        calls.close_into(tally)
    tally.metrics["failed"] = failed


def lines(told: Mapping[str, Any]) -> Iterator[str]:
    """A pilot for people."""
    measured = told["pilot"]
    counted = {key: measured[key] for key in ("calls", "calls_from_log", "tokens", "failed") if measured.get(key)}
    numbers = "".join(f", {value} {key.replace('_', ' ')}" for key, value in counted.items())
    yield f"pilot: {measured['prompts']} prompts in {measured['seconds']:.1f} s{numbers}, ${measured['usd']:.4g}"
    for cause, rows in measured["dropped"].items():
        yield f"  {rows} {cause}"
    yield "what is left:"
    yield from costs.lines(told["rest"])
    yield "  what the pilot paid for is not asked again: zephyrctl data feedback without --pilot does the rest"
