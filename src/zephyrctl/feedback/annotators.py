"""The annotators of a prompt: the teachers that answer it and the one that rates the answers."""

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from zephyrctl import plugins
from zephyrctl.concurrency import together
from zephyrctl.contracts import Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.feedback import ratings
from zephyrctl.feedback.completions import AnswerSlot, Principles, choose_slots, complete, load_principles
from zephyrctl.feedback.prompts import PromptSource
from zephyrctl.feedback.ratings import MissingRatings, RatingCall
from zephyrctl.recipe.schema import Feedback, TeacherChoice
from zephyrctl.records import Completion, Judgment, RatedPrompt, Record

ANSWERS, RATINGS, CRITIQUES = "answers", "ratings", "critiques"
WORK: ContextVar[str] = ContextVar("work")
"""The work that the running call is for: one of the three above."""

Result = TypeVar("Result")


class FailedCall(Record):
    """A call that failed for good, so that its prompt is not in the artifact."""

    id: str
    what: str
    cause: str
    problem: str


@dataclass(frozen=True)
class Collected:
    """The result for one prompt: its rated answers, or failures; neither if work on it was not begun."""

    prompt: RatedPrompt | None = None
    judgments: Sequence[Judgment] = ()
    failures: Sequence[FailedCall] = ()
    missing: MissingRatings = field(default_factory=MissingRatings)


@dataclass(frozen=True)
class Annotators:
    """The teachers of a recipe, with the settings that they work by."""

    feedback: Feedback
    seed: int
    pool: Sequence[Teacher]
    rater: Teacher
    principles: Principles

    @classmethod
    def of(cls, feedback: Feedback, seed: int, make_teacher: Callable[[TeacherChoice], Teacher]) -> Self:
        """The teachers of a recipe, each made by `make_teacher`."""
        assert feedback.rater
        pool = [make_teacher(choice) for choice in feedback.completers]
        return cls(feedback, seed, pool, make_teacher(feedback.rater), load_principles(feedback))

    async def collect(self, prompt: RatedPrompt) -> Collected:
        """Answer a prompt, unless it has answers, and rate them. A call that fails for good fails the prompt."""
        answered, failures = await self.answer(prompt)
        return Collected(failures=failures) if failures else await self.rate(answered)

    def slots(self, prompt: RatedPrompt) -> list[AnswerSlot]:
        """The answers to ask for: none if the prompt has answers."""
        if prompt.completions:
            return []
        return choose_slots(prompt, self.pool, self.principles, self.feedback.answers, self.seed)

    async def answer(self, prompt: RatedPrompt) -> tuple[RatedPrompt, list[FailedCall]]:
        """A prompt with its answers, and the calls that failed."""
        slots = self.slots(prompt)
        if not slots:
            return prompt, []
        calls = []
        for slot in slots:
            call = complete(prompt, slot, self.feedback, self.seed)
            calls.append(_try(ANSWERS, call, prompt, f"answer of {slot.teacher.label}"))
        results: list[Completion | FailedCall] = list(await together(calls))
        completions, failures = _separate(results)
        return prompt.model_copy(update={"completions": completions}), failures

    async def rate(self, prompt: RatedPrompt) -> Collected:
        """Rate the answers of a prompt."""
        repeats, failures = _separate(list(await together(self._rating_calls(prompt))))
        if failures:
            return Collected(failures=failures)
        completions = ratings.add_ratings(prompt.completions, repeats)
        return Collected(
            prompt.model_copy(update={"completions": completions}),
            judgments=[call.judgment for calls in repeats for call in calls],
            missing=ratings.count_missing(repeats, len(prompt.completions)),
        )

    def _rating_calls(self, prompt: RatedPrompt) -> Iterator[Coroutine[Any, Any, "list[RatingCall] | FailedCall"]]:
        asks = self.feedback.asks
        for aspect in self.feedback.aspects:
            for repeat in range(self.feedback.repeats):
                call = ratings.rate(prompt, self.rater, aspect, repeat, asks, self.seed)
                yield _try(RATINGS, call, prompt, f"rating of {aspect}")
        for number in range(len(prompt.completions)) if self.feedback.critique else ():
            critique = ratings.criticise(prompt, self.rater, number, asks)
            yield _try(CRITIQUES, critique, prompt, f"critique of answer {number + 1}")


async def _try(work: str, call: Awaitable[Result], prompt: RatedPrompt, what: str) -> Result | FailedCall:
    """The result of a call, or its failure; an error that would fail every other call too is raised."""
    WORK.set(work)  # each call is a task with its own context
    try:
        return await call
    except CallFailed as error:
        if error.is_fatal:
            raise
        return FailedCall(id=prompt.id, what=what, cause=error.cause, problem=error.problem)


def _separate(results: Sequence[Result | FailedCall]) -> tuple[list[Result], list[FailedCall]]:
    """Results, and failures."""
    succeeded = [result for result in results if not isinstance(result, FailedCall)]
    return succeeded, [result for result in results if isinstance(result, FailedCall)]


def check(source: PromptSource) -> None:
    """Raise ZephyrError if the recipe names no teacher, an unknown teacher, or aspects that do not fit."""
    if source.is_published:
        return
    feedback, binarize = source.recipe.feedback, source.recipe.binarize
    if not feedback.rater:
        raise ZephyrError("no teacher is chosen to rate the answers", "name one under feedback.rater")
    if not feedback.completers and not source.file and not source.answers:
        raise no_completers()
    if repeated := [aspect for aspect, times in Counter(feedback.aspects).items() if times > 1]:
        raise ZephyrError(f"feedback.aspects names {repeated[0]!r} twice", "name each aspect once")
    unrated = [aspect for aspect in binarize.weights if aspect not in feedback.aspects]
    if binarize.score == "weights" and unrated:
        raise ZephyrError(
            f"binarize.weights has a weight for {unrated[0]!r}, which feedback.aspects does not rate",
            f"add it to feedback.aspects, or use only {', '.join(feedback.aspects)}",
        )
    for choice in (*feedback.completers, feedback.rater):
        plugins.load().find("teacher", choice.name)
    load_principles(feedback)


def no_completers() -> ZephyrError:
    """The error for prompts without answers when no completer is chosen."""
    return ZephyrError("no completer is chosen to answer the prompts", "name some under feedback.completers")
