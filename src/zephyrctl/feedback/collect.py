"""The feedback stage: several models answer each prompt and a teacher rates the answers (paper section 3, AIF)."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from zephyrctl.concurrency import in_order
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback.annotators import Annotators, Collected, FailedCall, check, no_completers
from zephyrctl.feedback.forecast import forecast
from zephyrctl.feedback.prompts import PromptSource, SplitPrompt
from zephyrctl.feedback.ratings import NOT_APPLICABLE, UNREADABLE
from zephyrctl.progress import Progress
from zephyrctl.recipe.schema import Feedback, Recipe
from zephyrctl.records import RatedPrompt, Record, Split
from zephyrctl.runs.artifacts import SPLITS, Draft
from zephyrctl.runs.parquet import RowWriter
from zephyrctl.runs.run import Run
from zephyrctl.stages import Inputs, Stage
from zephyrctl.teachers import prices
from zephyrctl.teachers.client import Calls
from zephyrctl.teachers.costs import open_history

AHEAD = 1024
"""Rows that may be finished before an earlier one is, in addition to eight times those in flight (10 KB each)."""
WITHOUT_RESULT = {"concurrency", "failed_share"}
"""Settings that change how the work is done, but not its result."""


class FeedbackStage(Stage):
    """Answers and ratings for the prompts of `build`, of a file of prompts or answered prompts, or of a file per model.

    `max_usd` is the most that its calls may cost; it does not change the result. Raises UsageError if the files
    contradict each other.
    """

    name = stage = "feedback"

    def __init__(
        self,
        recipe: Recipe,
        input_file: Path | None = None,
        answer_files: Sequence[Path] = (),
        max_usd: float | None = None,
    ) -> None:
        self.source = PromptSource(recipe, input_file, tuple(answer_files))
        self.source.check()
        self.max_usd = max_usd
        self.does = _describe(self.source)
        self.settings = {
            "seed": recipe.seed,
            "test_share": recipe.build.test_share,
            "skip_bad_rows": recipe.skip_bad_rows,
            **_settings(recipe.feedback),
        }
        self.reads = self.source.reads()

    def work(self, draft: Draft, inputs: Inputs, progress: Progress) -> None:
        """Write rated prompts, judgments and failed calls into the draft."""
        if self.source.is_published:
            self._copy_published(draft)
        else:
            asyncio.run(self._collect(inputs, draft, progress))

    def check(self) -> None:
        """Raise ZephyrError if a teacher is missing or unknown, or if aspects do not fit."""
        check(self.source)

    def costs(self, run: Run, inputs: Inputs) -> dict[str, Any] | None:
        """A `Forecast` of the calls that are not in the call log; None for a published set."""
        if self.source.is_published:
            return None
        with open_history(run.path) as history:
            return forecast(self.source, inputs, history).model_dump()

    def _copy_published(self, draft: Draft) -> None:
        """Use a published set of rated prompts as it is."""
        with FeedbackTables(draft) as tables:
            for row in self.source.rows({}, draft.drop):
                tables.add(row.split, Collected(row.prompt))
        tables.close_into(draft)

    async def _collect(self, inputs: Inputs, draft: Draft, progress: Progress) -> None:
        """Answer and rate each prompt; rows are written in the order of their source while later ones are in flight."""
        recipe = self.source.recipe
        total = self._count_prompts(inputs, draft)
        known_prices = prices.load(recipe.prices)
        async with Calls(draft.run.path, "feedback", known_prices, self.max_usd, progress) as calls:
            annotators = Annotators.of(recipe.feedback, recipe.seed, calls.teacher)
            with FeedbackTables(draft, total, recipe.feedback.failed_share) as tables:

                async def collect(row: SplitPrompt) -> Collected:
                    if tables.are_given_up:
                        return Collected()
                    collected = await annotators.collect(row.prompt)
                    tables.failed += bool(collected.failures)  # now, not in the row's turn: failures may stop the stage
                    return collected

                rows = takewhile(lambda _: not tables.are_given_up, self.source.rows(inputs))
                at_once = recipe.feedback.concurrency
                async for row, collected in in_order(collect, rows, at_once, AHEAD + 8 * at_once):
                    tables.add(row.split, collected)
                    progress.advance(tables.prompts + tables.failed, total, "prompts rated")
            calls.close_into(draft)
        tables.close_into(draft)
        _add_notes(annotators, draft)

    def _count_prompts(self, inputs: Inputs, draft: Draft) -> int:
        """The number of prompts. All rows are read before anything is paid for, and dropped rows are counted."""
        total = 0
        for row in self.source.rows(inputs, draft.drop):
            total += 1
            if not row.prompt.completions and not self.source.recipe.feedback.completers:
                raise no_completers()
        if not total:
            raise no_usable_prompt(draft.dropped)
        return total


def no_usable_prompt(dropped: object) -> ZephyrError:
    """The error for a source of which no row can be used."""
    return ZephyrError(f"no prompt can be used ({dropped})", "fix the rows, or give others")


def _settings(feedback: Feedback) -> dict[str, Any]:
    """What the result depends on; the limits of teachers are not part of it."""
    settings = feedback.model_dump(mode="json", exclude=WITHOUT_RESULT)
    for choice in (*settings["completers"], settings["rater"]):
        if choice:
            choice.pop("limits")
    return settings


def _describe(source: PromptSource) -> str:
    feedback = source.recipe.feedback
    if source.is_published:
        return f"load the rated prompts of {feedback.published}"
    rater = feedback.rater.name if feedback.rater else "nobody"
    ratings = f"ask {rater} for {len(feedback.aspects) * feedback.repeats} ratings per prompt"
    if feedback.critique:
        ratings += " and a critique of each answer"
    if source.answers:
        return f"join the answers of {len(source.answers)} files, then {ratings}"
    names = ", ".join(choice.name for choice in feedback.completers) or "nobody"
    if len(feedback.completers) > feedback.answers:
        names = f"{feedback.answers} of {names}"
    return f"ask {names} to answer each prompt, then {ratings}"


def _add_notes(annotators: Annotators, draft: Draft) -> None:
    if annotators.rater.is_rule_based:
        draft.notes.append(f"ratings are the rules of the {annotators.rater.name!r} teacher, not a language model's")
    pool, answers = len(annotators.pool), annotators.feedback.answers
    if 0 < pool < answers:
        draft.notes.append(f"{pool} answers per prompt, as there are fewer than {answers} completers")


class FeedbackTables:
    """The tables of the stage, written row by row, and their counts."""

    def __init__(self, draft: Draft, total: int = 0, failed_share: float = 1.0) -> None:
        self.prompts = 0
        self.failed = 0
        self.total = total
        self.failed_share = failed_share
        self.counts: Counter[str] = Counter()
        self.causes: Counter[str] = Counter()
        self.first: FailedCall | None = None
        self._draft = draft
        self._files: dict[tuple[str, Split], RowWriter] = {}
        self._open = ExitStack()

    @property
    def are_given_up(self) -> bool:
        """True once too many prompts have failed: no other is begun, and those in flight are finished."""
        return self.failed > self.failed_share * self.total

    def add(self, split: Split, collected: Collected) -> None:
        """Write the result for a prompt."""
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

    def _fail(self, failures: Sequence[FailedCall]) -> None:
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
        """Put the counts into the draft. Raises ZephyrError if too many prompts failed, or none is left."""
        if self.are_given_up:
            raise self._given_up()
        if not self.prompts:
            raise no_usable_prompt(draft.dropped)
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
            f"run the same command again: only failed calls are repeated (listed in {self._draft.path / 'failed'}); "
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
