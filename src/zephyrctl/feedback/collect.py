"""`data feedback`: answers of several models to each prompt and a teacher's ratings of them (paper section 3, AIF)."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from zephyrctl import plugins
from zephyrctl.concurrency import gather
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.data import shapes
from zephyrctl.data.files import Raw, read_rows
from zephyrctl.data.hub import load_rows
from zephyrctl.errors import ZephyrError
from zephyrctl.journal import Journal
from zephyrctl.progress import Progress
from zephyrctl.recipe import Choice, Feedback, Recipe
from zephyrctl.records import ASPECTS, Completion, Prompt, RatedPrompt, Rating, Split, split_of
from zephyrctl.runs import SPLITS, Artifact, Draft
from zephyrctl.stages import Inputs, Source, Step


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered and rated; `answers` are there already for rows that bring them."""

    split: Split
    prompt: RatedPrompt


def step(recipe: Recipe, input_file: Path | None = None) -> Step:
    """The feedback step: over the prompts of `build`, or over a file of prompts or of answered prompts."""
    source = Source(path=input_file) if input_file else Source(artifact="build", stage="build")

    def work(draft: Draft, inputs: Inputs, progress: Progress) -> None:
        if recipe.feedback.published and not input_file:
            _write(draft, list(_published(recipe, draft)))
        else:
            asked = list(_asked(inputs["prompts"], recipe, draft))
            asyncio.run(_collect(recipe, asked, draft, progress))

    reads = {} if recipe.feedback.published and not input_file else {"prompts": source}
    return Step(
        name="feedback",
        stage="feedback",
        does=_describe(recipe.feedback, input_file),
        settings={
            "seed": recipe.seed,
            "test_share": recipe.build.test_share,
            "skip_bad_rows": recipe.skip_bad_rows,
            **recipe.feedback.model_dump(mode="json", exclude={"concurrency"}),
        },
        reads=reads,
        work=work,
    )


def _describe(feedback: Feedback, input_file: Path | None) -> str:
    if feedback.published and not input_file:
        return f"load the rated prompts of {feedback.published}"
    names = ", ".join(choice.name for choice in feedback.completers) or "nobody"
    rater = feedback.rater.name if feedback.rater else "nobody"
    return f"ask {names} for an answer to each prompt and {rater} for {len(ASPECTS)} ratings calls a prompt"


def _published(recipe: Recipe, draft: Draft) -> Iterator[Asked]:
    assert recipe.feedback.published
    rows = load_rows(recipe.feedback.published, recipe.feedback.published_revision, "train")
    for rated in shapes.each(rows, shapes.rated_prompt, recipe.skip_bad_rows, draft.lose):
        yield Asked(split_of(rated.id, recipe.build.test_share), rated)


def _asked(source: "Artifact | Path", recipe: Recipe, draft: Draft) -> Iterator[Asked]:
    """The prompts of `build`, or the rows of a file: prompts, or UltraFeedback rows that bring their answers."""
    if isinstance(source, Artifact):
        for split in SPLITS:
            for prompt in source.read("prompts", split, Prompt):
                yield Asked(split, _unanswered(prompt))
        return
    name = source.name

    def read(row: Raw, where: str) -> RatedPrompt:
        is_answered = shapes.is_rated_form(row)
        return shapes.rated_prompt(row, where) if is_answered else _unanswered(shapes.prompt(row, where, name))

    for rated in shapes.each(read_rows(source), read, recipe.skip_bad_rows, draft.lose):
        yield Asked(split_of(rated.id, recipe.build.test_share), rated)


def _unanswered(prompt: Prompt) -> RatedPrompt:
    return RatedPrompt(id=prompt.id, messages=prompt.messages, completions=[], source=prompt.source)


async def _collect(recipe: Recipe, asked: Sequence[Asked], draft: Draft, progress: Progress) -> None:
    """Answer and rate every prompt; each finished one is journalled before the next is asked for."""
    completers = [_teacher(choice) for choice in recipe.feedback.completers]
    rater = _teacher(_rater(recipe.feedback))
    if not completers and any(not row.prompt.completions for row in asked):
        raise ZephyrError("no completer is chosen to answer the prompts", "name some under feedback.completers")
    unique = {f"{row.split}:{row.prompt.id}": row for row in asked}
    draft.lose("prompts given more than once", len(asked) - len(unique))
    try:
        with Journal(draft.scratch / "rated.journal") as journal:
            todo = [key for key in unique if key not in journal]

            async def rate(key: str) -> RatedPrompt:
                return await _rated(unique[key].prompt, completers, rater, recipe)

            async for key, rated in gather(rate, todo, recipe.feedback.concurrency):
                journal.add(key, rated.model_dump())
                progress.advance(len(journal.rows), len(unique), "prompts rated")
            rows = [Asked(row.split, RatedPrompt.model_validate(journal.rows[key])) for key, row in unique.items()]
    finally:
        for teacher in (*completers, rater):
            await teacher.close()
    if rater.is_rule_based:
        draft.notes.append(f"ratings are the rules of the {rater.name!r} teacher, not a language model's")
    _write(draft, rows)


def _rater(feedback: Feedback) -> Choice:
    if feedback.rater:
        return feedback.rater
    raise ZephyrError("no teacher is chosen to rate the answers", "name one under feedback.rater")


def _teacher(choice: Choice) -> Teacher:
    return plugins.load().teacher(choice.name, choice.options)


async def _rated(prompt: RatedPrompt, completers: Sequence[Teacher], rater: Teacher, recipe: Recipe) -> RatedPrompt:
    completions = prompt.completions or [
        await _complete(prompt, teacher, place, recipe) for place, teacher in enumerate(completers)
    ]
    by_answer = await _rate(prompt, [completion.text for completion in completions], rater, recipe.seed)
    rated = [
        completion.model_copy(update={"ratings": ratings})
        for completion, ratings in zip(completions, by_answer, strict=True)
    ]
    return prompt.model_copy(update={"completions": rated})


async def _complete(prompt: RatedPrompt, teacher: Teacher, place: int, recipe: Recipe) -> Completion:
    seed = int(hashlib.sha256(f"{recipe.seed}:{prompt.id}:{place}".encode()).hexdigest()[:8], 16)
    sampling = Sampling(temperature=recipe.feedback.temperature, max_tokens=recipe.feedback.max_tokens, seed=seed)
    reply = await teacher.reply(prompt.messages, sampling)
    return Completion(model=reply.model, text=reply.text)


async def _rate(prompt: RatedPrompt, answers: Sequence[str], rater: Teacher, seed: int) -> list[list[Rating]]:
    """The ratings of each answer, one call an aspect; each call shows them in an order drawn by the prompt's id."""
    by_answer: list[list[Rating]] = [[] for _ in answers]
    for aspect in ASPECTS:
        order = list(range(len(answers)))
        Random(f"{seed}:{prompt.id}:{aspect}").shuffle(order)
        ratings = await rater.rate(prompt.messages, [answers[place] for place in order], aspect)
        for place, rating in zip(order, ratings, strict=True):
            by_answer[place].append(rating)
    return by_answer


def _write(draft: Draft, rows: Sequence[Asked]) -> None:
    if not rows:
        raise ZephyrError(f"no prompt can be used ({draft.losses})", "mend the rows, or give others")
    for split in SPLITS:
        draft.write("rated", split, (row.prompt for row in rows if row.split == split), RatedPrompt)
    ratings = [rating for row in rows for completion in row.prompt.completions for rating in completion.ratings]
    draft.metrics |= {
        "prompts": len(rows),
        "completions": sum(len(row.prompt.completions) for row in rows),
        "ratings": len(ratings),
        "ratings_missing": sum(rating.value is None for rating in ratings),
    }
