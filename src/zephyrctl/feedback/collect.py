"""`data feedback`: answers of several models to each prompt and a teacher's ratings of them (paper section 3, AIF)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zephyrctl.concurrency import in_order
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback.annotators import Collected, Crew, Failed, check, nobody_answers
from zephyrctl.feedback.completions import Asked, Intake
from zephyrctl.feedback.dry_run import books_of
from zephyrctl.feedback.ratings import NOT_APPLICABLE, UNREADABLE
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import RatedPrompt, Record, Split
from zephyrctl.runs.artifacts import SPLITS, Draft
from zephyrctl.runs.parquet import RowWriter
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Step
from zephyrctl.teachers import costs, prices
from zephyrctl.teachers.client import Calls

AHEAD = 1024
"""Rows that may be done before an earlier one is, beside eight times those under way (10 KB each)."""
WITHOUT_RESULT = {"concurrency", "failed_share"}
"""Settings that change how the work is done and not what it comes to."""


def step(
    recipe: Recipe, input_file: Path | None = None, answer_files: Sequence[Path] = (), max_usd: float | None = None
) -> Step:
    """The feedback step: over the prompts of `build`, a file of prompts or answered prompts, or a file a model.

    `max_usd` is the most that its calls may cost; it changes no result. Raises UsageError where the files contradict
    each other.
    """
    intake = Intake(recipe, input_file, tuple(answer_files))
    intake.check()

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        if intake.is_published:
            _take(intake, draft)
        else:
            asyncio.run(_collect(intake, inputs, draft, progress, max_usd))

    return Step(
        name="feedback",
        stage="feedback",
        does=_describe(intake),
        settings={
            "seed": recipe.seed,
            "test_share": recipe.build.test_share,
            "skip_bad_rows": recipe.skip_bad_rows,
            **_settings(recipe),
        },
        reads=intake.reads(),
        work=work,
        check=partial(check, intake),
        costs=None if intake.is_published else partial(_costs, intake),
    )


def _costs(intake: Intake, run: Run, inputs: Inputs) -> dict[str, Any]:
    with books_of(run.path) as books:
        return costs.forecast(intake, inputs, books).model_dump()


def _settings(recipe: Recipe) -> dict[str, Any]:
    """What the result depends on; limits of teachers do not belong to it."""
    settings = recipe.feedback.model_dump(mode="json", exclude=WITHOUT_RESULT)
    for choice in (*settings["completers"], settings["rater"]):
        if choice:
            choice.pop("limits")
    return settings


def _describe(intake: Intake) -> str:
    feedback = intake.recipe.feedback
    if intake.is_published:
        return f"load the rated prompts of {feedback.published}"
    rater = feedback.rater.name if feedback.rater else "nobody"
    rated = f"{rater} for {len(feedback.aspects) * feedback.repeats} ratings calls a prompt"
    if feedback.critique:
        rated += " and a critique of each answer"
    if intake.answers:
        return f"join the answers of {len(intake.answers)} files and ask {rated}"
    names = ", ".join(choice.name for choice in feedback.completers) or "nobody"
    if len(feedback.completers) > feedback.answers:
        names = f"{feedback.answers} of {names}"
    return f"ask {names} for an answer to each prompt and {rated}"


def _take(intake: Intake, draft: Draft) -> None:
    """A published set of rated prompts as it is."""
    with Sheets(draft) as sheets:
        for asked in intake.rows({}, draft.drop):
            sheets.add(asked.split, Collected(asked.prompt))
    sheets.close_into(draft)


async def _collect(intake: Intake, inputs: Inputs, draft: Draft, progress: Progress, max_usd: float | None) -> None:
    """Answer and rate every prompt; rows are written in the order of their source while later ones are under way."""
    recipe = intake.recipe
    total = survey(intake, inputs, draft)
    known = prices.load(recipe.prices)
    async with Calls(draft.run.path, "feedback", known, max_usd, progress) as calls:
        crew = Crew.of(recipe, calls.teacher)
        with Sheets(draft, total, recipe.feedback.failed_share) as sheets:

            async def work(asked: Asked) -> Collected:
                if sheets.are_given_up:
                    return Collected()
                collected = await crew.collect(asked.prompt)
                sheets.failed += bool(collected.failures)  # at once, and not when it is this row's turn
                return collected

            rows = takewhile(lambda _: not sheets.are_given_up, intake.rows(inputs))
            at_once = recipe.feedback.concurrency
            async for asked, collected in in_order(work, rows, at_once, AHEAD + 8 * at_once):
                sheets.add(asked.split, collected)
                progress.advance(sheets.prompts + sheets.failed, total, "prompts rated")
        calls.close_into(draft)
    sheets.close_into(draft)
    _note(crew, draft)


def survey(intake: Intake, inputs: Inputs, draft: Draft) -> int:
    """How many prompts there are; every row is read once before anything is paid for, and what is lost is counted."""
    total = 0
    for asked in intake.rows(inputs, draft.drop):
        total += 1
        if not asked.prompt.completions and not intake.recipe.feedback.completers:
            raise nobody_answers()
    if not total:
        raise ZephyrError(f"no prompt can be used ({draft.dropped})", "mend the rows, or give others")
    return total


def _note(crew: Crew, draft: Draft) -> None:
    feedback = crew.recipe.feedback
    if crew.rater.is_rule_based:
        draft.notes.append(f"ratings are the rules of the {crew.rater.name!r} teacher, not a language model's")
    if 0 < len(crew.pool) < feedback.answers:
        draft.notes.append(f"{len(crew.pool)} answers a prompt, as the pool has no {feedback.answers} completers")


class Sheets:
    """The files of the stage, written as rows come, and what is counted on the way."""

    def __init__(self, draft: Draft, total: int = 0, failed_share: float = 1.0) -> None:
        self.prompts = 0
        self.failed = 0
        self.total = total
        self.failed_share = failed_share
        self.counts: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.first: Failed | None = None
        self._draft = draft
        self._files: dict[tuple[str, Split], RowWriter] = {}
        self._open = ExitStack()

    @property
    def are_given_up(self) -> bool:
        """True once more prompts have failed than may: no other is begun, those under way are finished."""
        return self.failed > self.failed_share * self.total

    def add(self, split: Split, collected: Collected) -> None:
        """Write what came of a prompt."""
        for judgment in collected.judgments:
            self._write("judgments", split, judgment)
            self.counts["asked_again"] += judgment.ask > 0
        for failure in collected.failures:
            self._write("failed", split, failure)
        if collected.failures:
            self._fail(collected.failures)
        if collected.prompt:
            self._write("rated", split, collected.prompt)
            self._count(collected.prompt)
            self.counts["not_applicable"] += collected.missing.not_applicable
            self.counts["unreadable"] += collected.missing.unreadable

    def _fail(self, failures: Sequence[Failed]) -> None:
        self.first = self.first or failures[0]
        self.causes[failures[0].cause] += 1

    def _count(self, prompt: RatedPrompt) -> None:
        self.prompts += 1
        for completion in prompt.completions:
            self.counts["completions"] += 1
            self.counts["cut"] += completion.finish_reason == "length"
            self.counts["empty"] += not completion.text.strip()
            self.counts["ratings"] += len(completion.ratings)
            self.counts["missing"] += sum(rating.value is None for rating in completion.ratings)

    def _write(self, rows: str, split: Split, row: Record) -> None:
        if (rows, split) not in self._files:
            self._files[rows, split] = self._open.enter_context(self._draft.writer(rows, split, type(row)))
        self._files[rows, split].add(row)

    def close_into(self, draft: Draft) -> None:
        """Put the counts into the draft. Raises ZephyrError where too many prompts failed, or none is left."""
        if self.are_given_up:
            raise self._given_up()
        if not self.prompts:
            raise ZephyrError(f"no prompt can be used ({draft.dropped})", "mend the rows, or give others")
        for cause, rows in self.causes.items():
            draft.drop(f"prompts failed: {cause}", rows)
        draft.drop(NOT_APPLICABLE, self.counts["not_applicable"])
        draft.drop(UNREADABLE, self.counts["unreadable"])
        draft.metrics |= {
            "prompts": self.prompts,
            "completions": self.counts["completions"],
            "ratings": self.counts["ratings"],
            "ratings_missing": self.counts["missing"],
        }
        rare = {"answers_cut": "cut", "answers_empty": "empty", "asked_again": "asked_again"}
        draft.metrics |= {name: self.counts[key] for name, key in rare.items() if self.counts[key]}
        if self.failed:
            draft.metrics["failed"] = self.failed

    def _given_up(self) -> ZephyrError:
        causes = ", ".join(f"{rows} x {cause}" for cause, rows in self.causes.most_common())
        first = f"; the first, {self.first.what}: {self.first.problem}" if self.first else ""
        return ZephyrError(
            f"{self.failed} of {self.total} prompts failed ({causes}{first}), and feedback.failed_share "
            f"allows {self.failed_share:g} of them",
            f"run the same command again: only what failed is asked for (listed in {self._draft.path / 'failed'}); "
            "or raise feedback.failed_share",
        )

    def __enter__(self) -> Self:
        for split in SPLITS:
            self._files["rated", split] = self._open.enter_context(self._draft.writer("rated", split, RatedPrompt))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
