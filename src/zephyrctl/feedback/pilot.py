"""Answer and rate a few prompts for real, and forecast the rest from them before it is paid for."""

import asyncio
import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from zephyrctl.concurrency import in_order
from zephyrctl.errors import UsageError
from zephyrctl.feedback.annotators import Annotators, check
from zephyrctl.feedback.collect import FeedbackStage, no_usable_prompt
from zephyrctl.feedback.forecast import forecast
from zephyrctl.feedback.prompts import SplitPrompt
from zephyrctl.feedback.ratings import NOT_APPLICABLE, UNREADABLE
from zephyrctl.progress import Progress
from zephyrctl.runs.run import Run
from zephyrctl.stages import open_inputs
from zephyrctl.teachers import costs, prices
from zephyrctl.teachers.client import Calls
from zephyrctl.teachers.costs import open_history

COUNTED = {"calls": "calls", "calls_from_log": "calls from the call log", "failed": "failed prompts"}
"""Metrics of a pilot that are printed, and their words."""


@dataclass
class PilotSummary:
    """What a draft would record; a pilot makes no artifact."""

    metrics: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0

    def drop(self, cause: str, rows: int = 1) -> None:
        """Count rows that are left out, by cause."""
        if rows:
            self.dropped[cause] += rows


class PilotResult(TypedDict):
    """What a pilot measured, and the forecast of the rest."""

    name: str
    pilot: dict[str, Any]
    rest: dict[str, Any]


def run_pilot(run: Run, stage: FeedbackStage, prompts: int, progress: Progress) -> PilotResult:
    """Answer and rate so many prompts through the call log, and forecast the rest; no artifact is written.

    The prompts are those with the smallest hashes of their ids: a random sample, and the same one each time.
    """
    source = stage.source
    check(source)
    if source.is_published:
        raise UsageError("a published set is used as it is, so there is nothing to try", "leave out --pilot")
    inputs = open_inputs(run, stage)
    summary = PilotSummary()
    sample = heapq.nsmallest(prompts, source.rows(inputs, summary.drop), key=_hash)
    if not sample:
        raise no_usable_prompt(dict(summary.dropped))
    began = time.monotonic()
    asyncio.run(_annotate(run, stage, sample, summary, progress))
    measured = {
        "prompts": len(sample),
        "seconds": round(time.monotonic() - began, 3),
        "usd": summary.cost_usd,
        **summary.metrics,
        "dropped": dict(summary.dropped),
        "notes": summary.notes,
    }
    with open_history(run.path) as history:
        rest = forecast(source, inputs, history)
    return {"name": stage.name, "pilot": measured, "rest": rest.model_dump()}


def _hash(row: SplitPrompt) -> str:
    return hashlib.sha256(f"pilot:{row.prompt.id}".encode()).hexdigest()


async def _annotate(
    run: Run, stage: FeedbackStage, sample: Sequence[SplitPrompt], summary: PilotSummary, progress: Progress
) -> None:
    recipe = stage.source.recipe
    done = failed = 0
    known_prices = prices.load(recipe.prices)
    async with Calls(run.path, "feedback", known_prices, stage.max_usd, progress) as calls:
        annotators = Annotators.of(recipe.feedback, recipe.seed, calls.teacher)
        at_once = recipe.feedback.concurrency
        async for _, collected in in_order(lambda row: annotators.collect(row.prompt), sample, at_once, len(sample)):
            done += 1
            failed += bool(collected.failures)
            for failure in collected.failures[:1]:
                summary.drop(f"prompts failed: {failure.cause}")
            summary.drop(NOT_APPLICABLE, collected.missing.not_applicable)
            summary.drop(UNREADABLE, collected.missing.unreadable)
            progress.advance(done, len(sample), "prompts of the pilot")
        calls.close_into(summary)
    summary.metrics["failed"] = failed


def lines(result: PilotResult) -> Iterator[str]:
    """A pilot as lines to print."""
    measured = result["pilot"]
    counts = "".join(f", {measured[name]} {words}" for name, words in COUNTED.items() if measured.get(name))
    tokens = sum(measured.get("tokens", {}).values())
    used = f", {tokens:,} tokens" if tokens else ""
    yield f"pilot: {measured['prompts']} prompts in {measured['seconds']:.1f} s{counts}{used}, ${measured['usd']:.4g}"
    for cause, rows in measured["dropped"].items():
        yield f"  {rows} {cause}"
    yield "still to do:"
    yield from costs.lines(result["rest"])
    yield "  calls of the pilot are not repeated: run zephyrctl data feedback without --pilot to do the rest"
