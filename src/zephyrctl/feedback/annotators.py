"""Who works on a prompt, what each of them is asked, and what came of it."""

from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from zephyrctl import plugins
from zephyrctl.concurrency import together
from zephyrctl.contracts import Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.feedback import completions, ratings
from zephyrctl.feedback.completions import Intake, Principles
from zephyrctl.feedback.ratings import Heard
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.records import Judgment, RatedPrompt, Record

ANSWERS, RATINGS, CRITIQUES = "answers", "ratings", "critiques"
WORK: ContextVar[str] = ContextVar("work")
"""What the call under way is for: one of the three above."""

Made = TypeVar("Made")


class Failed(Record):
    """A prompt that is not in the artifact, as a call for it failed for good."""

    id: str
    what: str
    cause: str
    problem: str


@dataclass(frozen=True)
class Collected:
    """What came of one prompt: its rated answers, or why there are none; None for both where it was not begun."""

    prompt: RatedPrompt | None = None
    judgments: Sequence[Judgment] = ()
    failures: Sequence[Failed] = ()
    missing: ratings.Missing = field(default_factory=ratings.Missing)


@dataclass(frozen=True)
class Crew:
    """Who works on the prompts, and by which recipe."""

    recipe: Recipe
    pool: Sequence[Teacher]
    rater: Teacher
    principles: Principles

    @classmethod
    def of(cls, recipe: Recipe, hire: Callable[[TeacherChoice], Teacher]) -> Self:
        """The teachers of a recipe, each made by `hire`."""
        assert recipe.feedback.rater
        pool = [hire(choice) for choice in recipe.feedback.completers]
        return cls(recipe, pool, hire(recipe.feedback.rater), completions.load_principles(recipe.feedback))

    async def collect(self, prompt: RatedPrompt) -> Collected:
        """Answer a prompt, where it brings no answers, and rate them; a call that fails for good fails the prompt."""
        answered, failures = await self.answer(prompt)
        return Collected(failures=failures) if failures else await self.rate(answered)

    def places(self, prompt: RatedPrompt) -> list[completions.Place]:
        """Who is to answer a prompt: nobody where it brings its answers."""
        return [] if prompt.completions else completions.places(prompt, self.pool, self.principles, self.recipe)

    async def answer(self, prompt: RatedPrompt) -> tuple[RatedPrompt, list[Failed]]:
        """A prompt with its answers, or which of them failed."""
        places = self.places(prompt)
        if not places:
            return prompt, []
        tries = [
            attempt(
                ANSWERS, completions.complete(prompt, place, self.recipe), prompt, f"answer of {place.teacher.label}"
            )
            for place in places
        ]
        made, failures = sort_out(await together(tries))
        return prompt.model_copy(update={"completions": made}), failures

    async def rate(self, prompt: RatedPrompt) -> Collected:
        """Rate the answers of a prompt."""
        heard, failures = sort_out(await together(self._rating_calls(prompt)))
        if failures:
            return Collected(failures=failures)
        return Collected(
            prompt.model_copy(update={"completions": ratings.marked(prompt.completions, heard)}),
            judgments=[call.judgment for calls in heard for call in calls],
            missing=ratings.missing(heard, len(prompt.completions)),
        )

    def _rating_calls(self, prompt: RatedPrompt) -> Iterator[Coroutine[Any, Any, "list[Heard] | Failed"]]:
        feedback = self.recipe.feedback
        for aspect in feedback.aspects:
            for repeat in range(feedback.repeats):
                call = ratings.rate(prompt, self.rater, aspect, repeat, self.recipe)
                yield attempt(RATINGS, call, prompt, f"rating of {aspect}")
        for place in range(len(prompt.completions)) if feedback.critique else ():
            call = ratings.criticise(prompt, self.rater, place, self.recipe)
            yield attempt(CRITIQUES, call, prompt, f"critique of answer {place + 1}")


async def attempt(work: str, call: Awaitable[Made], prompt: RatedPrompt, what: str) -> Made | Failed:
    """What a call brings, or how it failed for good; what no other call can mend is raised."""
    WORK.set(work)  # each call is a task of its own, with its own context
    try:
        return await call
    except CallFailed as error:
        if error.is_fatal:
            raise
        return Failed(id=prompt.id, what=what, cause=error.cause, problem=error.problem)


def sort_out(results: Sequence[Made | Failed]) -> tuple[list[Made], list[Failed]]:
    """Results, and failures."""
    made = [result for result in results if not isinstance(result, Failed)]
    return made, [result for result in results if isinstance(result, Failed)]


def check(intake: Intake) -> None:
    """Raises ZephyrError where the recipe names nobody to ask, somebody unknown, or aspects that do not fit."""
    if intake.is_published:
        return
    feedback, binarize = intake.recipe.feedback, intake.recipe.binarize
    if not feedback.rater:
        raise ZephyrError("no teacher is chosen to rate the answers", "name one under feedback.rater")
    if not feedback.completers and not intake.file and not intake.answers:
        raise nobody_answers()
    if repeated := [aspect for aspect, times in Counter(feedback.aspects).items() if times > 1]:
        raise ZephyrError(f"feedback.aspects names {repeated[0]!r} twice", "name each aspect once")
    unrated = [aspect for aspect in binarize.weights if aspect not in feedback.aspects]
    if binarize.score == "weights" and unrated:
        raise ZephyrError(
            f"binarize.weights weighs {unrated[0]!r}, which feedback.aspects does not rate",
            f"add it to feedback.aspects, or weigh only {', '.join(feedback.aspects)}",
        )
    for choice in (*feedback.completers, feedback.rater):
        plugins.load().find("teacher", choice.name)
    completions.load_principles(feedback)


def nobody_answers() -> ZephyrError:
    """The error for prompts that bring no answers, where no completer is chosen."""
    return ZephyrError("no completer is chosen to answer the prompts", "name some under feedback.completers")
