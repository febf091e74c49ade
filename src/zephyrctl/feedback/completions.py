"""Which prompts are answered, by whom and under which principle, and which answers are there already."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml
from pydantic import ValidationError

from zephyrctl import templates
from zephyrctl.contracts import Sampling, Teacher
from zephyrctl.data.conversations import seed_of
from zephyrctl.errors import BadRow, UsageError, ZephyrError
from zephyrctl.recipe.schema import Feedback, Recipe
from zephyrctl.records import Completion, Message, Prompt, RatedPrompt, Split, split_of
from zephyrctl.rows.files import Raw, rows_of
from zephyrctl.rows.hub_datasets import load_rows
from zephyrctl.rows.published_rows import find_match, read_each, row_formats
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.stages import Inputs, Source, sources

Lose = Callable[[str], None]
Principles = Mapping[str, Sequence[str]]
SHIPPED = "shipped"
PROMPT_KEYS = ("instruction", "prompt")
ANSWER_KEYS = ("output", "response")
MODEL_KEYS = ("generator", "model")
FEWEST = 2
"""Answers of a prompt that can be compared."""


@dataclass(frozen=True)
class Asked:
    """A prompt to be answered and rated; answers that it brings are kept as they are."""

    split: Split
    prompt: RatedPrompt


@dataclass(frozen=True)
class Intake:
    """Where prompts come from: `build`, a file of prompts or rated rows, or a file of answers for each model."""

    recipe: Recipe
    file: Path | None = None
    answers: tuple[Path, ...] = ()

    def check(self) -> None:
        """Raises UsageError where the files contradict each other."""
        if self.file and self.answers:
            raise UsageError("--input and --answers both say what to read", "give one of them")
        if len(self.answers) == 1:
            raise UsageError(
                f"--answers: {self.answers[0]} alone leaves nothing to compare", "give --answers once for each model"
            )
        if len(set(self.answers)) < len(self.answers):
            raise UsageError("--answers names a file twice", "give one file for each model")

    @property
    def is_published(self) -> bool:
        """True where a published set of rated prompts is taken as it is, and nobody is asked."""
        return bool(self.recipe.feedback.published) and not self.file and not self.answers

    def reads(self) -> dict[str, Source]:
        """What the stage depends on, by name."""
        if self.is_published:
            return {}
        if self.answers:
            return sources("answers", self.answers)
        reads = {"prompts": Source(path=self.file) if self.file else Source(artifact="build", stage="build")}
        principles = self.recipe.feedback.principles
        if principles and principles != SHIPPED:
            reads["principles"] = Source(path=Path(principles))
        return reads

    def rows(self, inputs: Inputs, lose: Lose = lambda cause: None) -> Iterator[Asked]:
        """Every prompt once, in the order of its source; `lose` hears of each row that is left out, by cause.

        Without it nobody does: that is for rows which were counted before.
        """
        seen: set[tuple[Split, str]] = set()
        for asked in self._rows(inputs, lose):
            key = asked.split, asked.prompt.id
            if key in seen:
                lose("prompts given more than once")
                continue
            seen.add(key)
            yield asked

    def _rows(self, inputs: Inputs, lose: Lose) -> Iterator[Asked]:
        if self.is_published:
            return self._split(self._published(lose))
        if self.answers:
            return self._split(joined(self.answers, self.recipe.skip_bad_rows, lose))
        source = inputs["prompts"]
        return _of_build(source) if isinstance(source, Artifact) else self._split(self._of_file(source, lose))

    def _split(self, prompts: Iterable[RatedPrompt]) -> Iterator[Asked]:
        return (Asked(split_of(prompt.id, self.recipe.build.test_share), prompt) for prompt in prompts)

    def _of_file(self, path: Path, lose: Lose) -> Iterator[RatedPrompt]:
        """Prompts, or rated rows that bring their answers; a file may mix them."""
        formats = row_formats()

        def read(row: Raw, where: str) -> RatedPrompt:
            rated = find_match(formats.rated, row)
            prompt = rated.read(row, where) if rated else _unanswered(formats.prompt(row, where, path.name))
            return prompt.model_copy(update={"origin": prompt.origin or _near(where, path)})

        return read_each(rows_of(path), read, self.recipe.skip_bad_rows, lose)

    def _published(self, lose: Lose) -> Iterator[RatedPrompt]:
        assert self.recipe.feedback.published
        rows = load_rows(self.recipe.feedback.published, self.recipe.feedback.published_revision, "train")
        return read_each(rows, row_formats().rated_prompt, self.recipe.skip_bad_rows, lose)


def _of_build(build: Artifact) -> Iterator[Asked]:
    for split in SPLITS:
        for prompt in build.read("prompts", split, Prompt):
            yield Asked(split, _unanswered(prompt))


def _unanswered(prompt: Prompt) -> RatedPrompt:
    return RatedPrompt(
        id=prompt.id, messages=prompt.messages, completions=[], source=prompt.source, origin=prompt.origin
    )


def _near(where: str, path: Path) -> str:
    """The place of a row from its file's name on: where the file lay says nothing of the row."""
    return where.removeprefix(f"{path.parent}/")


def joined(paths: Sequence[Path], skip_bad_rows: bool, lose: Lose) -> Iterator[RatedPrompt]:
    """The answers of several models to the same prompts, one file a model, joined by the prompt's text.

    A file's place among `paths` is its answer's place; prompts come in the order of the first file, then those that
    only later ones have. A prompt with an answer of one file only is left out. Of two answers in one file the first is
    kept. All texts are held in memory.
    """
    gathered: dict[str, tuple[RatedPrompt, dict[int, Completion]]] = {}
    for place, path in enumerate(paths):
        read = _reader(path)
        for prompt, completion in read_each(rows_of(path), read, skip_bad_rows, lose):
            _, answers = gathered.setdefault(prompt.id, (prompt, {}))
            if place in answers:
                lose("answers given more than once in a file")
            answers.setdefault(place, completion)
    for prompt, answers in gathered.values():
        if len(answers) < FEWEST:
            lose("prompts with an answer of one file only")
            continue
        for _ in range(len(paths) - len(answers)):
            lose("answers that a file lacks")
        yield prompt.model_copy(update={"completions": [answers[place] for place in sorted(answers)]})


def _reader(path: Path) -> Callable[[Raw, str], tuple[RatedPrompt, Completion]]:
    formats = row_formats()

    def read(row: Raw, where: str) -> tuple[RatedPrompt, Completion]:
        _text(row, PROMPT_KEYS, "prompt", where)
        source = str(row.get("dataset") or row.get("source") or path.name)
        text = _text(row, ANSWER_KEYS, "answer", where)
        model = str(next((row[key] for key in MODEL_KEYS if row.get(key)), path.stem))
        asked = {key: row[key] for key in (*PROMPT_KEYS, "input") if key in row}
        prompt = formats.prompt(asked, where, source).model_copy(update={"origin": _near(where, path)})
        try:
            return _unanswered(prompt), Completion(model=model, text=text)
        except ValidationError:
            raise BadRow(where, "an answer that is not made of text") from None

    return read


def _text(row: Raw, keys: Sequence[str], what: str, where: str) -> str:
    found = next((row[key] for key in keys if key in row), None)
    if found is None:
        raise BadRow(where, f"no {what}: neither {' nor '.join(f'`{key}`' for key in keys)}")
    if not isinstance(found, str):
        raise BadRow(where, f"the {what} is not text")
    return found


@dataclass(frozen=True)
class Place:
    """One answer to be asked for: its place in the pool, who gives it, and the system prompt, if any."""

    number: int
    teacher: Teacher
    principle: str = ""
    system: str = ""


def places(prompt: RatedPrompt, pool: Sequence[Teacher], principles: Principles, recipe: Recipe) -> list[Place]:
    """Who answers a prompt: the whole pool in its order, or as many as the recipe says, drawn by the prompt's id.

    Seeds and principles hang on the prompt's id and the place in the pool: a pool that grows at its end keeps what its
    older teachers have answered.
    """
    numbers: Sequence[int] = range(len(pool))
    if len(pool) > recipe.feedback.answers:
        numbers = Random(f"{recipe.seed}:{prompt.id}:completers").sample(numbers, recipe.feedback.answers)
    return [Place(number, pool[number], *_draw(principles, prompt.id, number, recipe.seed)) for number in numbers]


def _draw(principles: Principles, prompt_id: str, number: int, seed: int) -> tuple[str, str]:
    if not principles:
        return "", ""
    rng = Random(f"{seed}:{prompt_id}:{number}:principle")
    name = rng.choice(list(principles))
    return name, rng.choice(principles[name])


async def complete(prompt: RatedPrompt, place: Place, recipe: Recipe) -> Completion:
    """One answer to a prompt. Raises CallFailed where the call fails for good."""
    seed = seed_of(recipe.seed, f"{prompt.id}:{place.number}")
    sampling = Sampling(temperature=recipe.feedback.temperature, max_tokens=recipe.feedback.max_tokens, seed=seed)
    reply = await place.teacher.ask(under(place.system, prompt.messages), sampling)
    return Completion(model=reply.model, text=reply.text, principle=place.principle, finish_reason=reply.finish_reason)


def under(system: str, messages: Sequence[Message]) -> list[Message]:
    """A conversation with a system prompt before it; one that it has already stays, behind ours in the same turn."""
    if not system:
        return list(messages)
    if messages and messages[0].role == "system":
        return [Message(role="system", content=f"{system}\n\n{messages[0].content}"), *messages[1:]]
    return [Message(role="system", content=system), *messages]


def load_principles(feedback: Feedback) -> Principles:
    """The principles of the recipe: name -> its system prompts; none where it names none.

    Raises ZephyrError where the file is not such a mapping.
    """
    if not feedback.principles:
        return {}
    is_shipped = feedback.principles == SHIPPED
    path = templates.path("principles.yaml") if is_shipped else Path(feedback.principles)
    if not path.is_file():
        raise ZephyrError(f"there is no file {path}", "feedback.principles: give a YAML file, or 'shipped'")
    try:
        stated = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZephyrError(f"{path} is not YAML: {_line(error)}", "mend it") from None
    if not isinstance(stated, dict) or not stated:
        raise ZephyrError(
            f"{path} holds no principles", "write a mapping: name of the principle, list of system prompts"
        )
    return {str(name): _wordings(path, name, texts) for name, texts in stated.items()}


def _wordings(path: Path, name: object, texts: Any) -> list[str]:
    stated = [texts] if isinstance(texts, str) else texts
    if not isinstance(stated, list) or not stated or not all(isinstance(text, str) and text.strip() for text in stated):
        raise ZephyrError(f"{path}: the principle {name!r} has no texts", "give it a system prompt, or a list of them")
    return stated


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
