"""Read the prompts to answer and rate: from `build`, from a file of prompts or rated rows, or from a file per model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from zephyrctl.errors import BadRow, UsageError
from zephyrctl.feedback.completions import SHIPPED
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Completion, Prompt, RatedPrompt, Split, split_of
from zephyrctl.rows.files import Raw, rows_of
from zephyrctl.rows.hub_datasets import load_rows
from zephyrctl.rows.published_rows import find_match, read_each, row_formats
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.stages import Inputs, Source, sources

CountDropped = Callable[[str], None]
"""Called once for each row that is left out, with the cause."""
PROMPT_KEYS = ("instruction", "prompt")
ANSWER_KEYS = ("output", "response")
MODEL_KEYS = ("generator", "model")
FEWEST_ANSWERS = 2
"""Answers of a prompt that can be compared."""


@dataclass(frozen=True)
class SplitPrompt:
    """A prompt to answer and rate, with its split; answers that it has already are kept."""

    split: Split
    prompt: RatedPrompt


@dataclass(frozen=True)
class PromptSource:
    """Where the prompts come from."""

    recipe: Recipe
    file: Path | None = None
    answers: tuple[Path, ...] = ()

    def check(self) -> None:
        """Raise UsageError if the files contradict each other."""
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
        """True if a published set of rated prompts is used as it is, and no teacher is asked."""
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

    def rows(self, inputs: Inputs, drop: CountDropped = lambda cause: None) -> Iterator[SplitPrompt]:
        """Each prompt once, in the order of its source; `drop` is called for each row that is left out.

        Leave `drop` out if the rows were counted before.
        """
        seen: set[tuple[Split, str]] = set()
        for row in self._rows(inputs, drop):
            key = row.split, row.prompt.id
            if key in seen:
                drop("prompts given more than once")
                continue
            seen.add(key)
            yield row

    def _rows(self, inputs: Inputs, drop: CountDropped) -> Iterator[SplitPrompt]:
        if self.is_published:
            return self._split(self._published(drop))
        if self.answers:
            return self._split(join_answers(self.answers, self.recipe.skip_bad_rows, drop))
        source = inputs["prompts"]
        return _rows_of_build(source) if isinstance(source, Artifact) else self._split(self._rows_of_file(source, drop))

    def _split(self, prompts: Iterable[RatedPrompt]) -> Iterator[SplitPrompt]:
        return (SplitPrompt(split_of(prompt.id, self.recipe.build.test_share), prompt) for prompt in prompts)

    def _rows_of_file(self, path: Path, drop: CountDropped) -> Iterator[RatedPrompt]:
        """Prompts, or rated rows that include answers; a file may contain both."""
        formats = row_formats()

        def read(row: Raw, where: str) -> RatedPrompt:
            rated = find_match(formats.rated, row)
            prompt = rated.read(row, where) if rated else _unanswered(formats.prompt(row, where, path.name))
            return prompt.model_copy(update={"origin": prompt.origin or _from_file_name(where, path)})

        return read_each(rows_of(path), read, self.recipe.skip_bad_rows, drop)

    def _published(self, drop: CountDropped) -> Iterator[RatedPrompt]:
        assert self.recipe.feedback.published
        rows = load_rows(self.recipe.feedback.published, self.recipe.feedback.published_revision, "train")
        return read_each(rows, row_formats().rated_prompt, self.recipe.skip_bad_rows, drop)


def _rows_of_build(build: Artifact) -> Iterator[SplitPrompt]:
    for split in SPLITS:
        for prompt in build.read("prompts", split, Prompt):
            yield SplitPrompt(split, _unanswered(prompt))


def _unanswered(prompt: Prompt) -> RatedPrompt:
    return RatedPrompt(
        id=prompt.id, messages=prompt.messages, completions=[], source=prompt.source, origin=prompt.origin
    )


def _from_file_name(where: str, path: Path) -> str:
    """A row's location without the folder of its file, which says nothing about the row."""
    return where.removeprefix(f"{path.parent}/")


def join_answers(paths: Sequence[Path], skip_bad_rows: bool, drop: CountDropped) -> Iterator[RatedPrompt]:
    """Join the answers of several models, one file per model, by the text of their prompts.

    Answers are in the order of `paths`; prompts are in the order of the first file, followed by those that only later
    files have. A prompt that only one file answers is left out. Of two answers in one file the first is kept. All texts
    are in memory.
    """
    joined: dict[str, tuple[RatedPrompt, dict[int, Completion]]] = {}
    for number, path in enumerate(paths):
        for prompt, completion in read_each(rows_of(path), _answer_reader(path), skip_bad_rows, drop):
            _, answers = joined.setdefault(prompt.id, (prompt, {}))
            if number in answers:
                drop("answers given more than once in a file")
            answers.setdefault(number, completion)
    for prompt, answers in joined.values():
        if len(answers) < FEWEST_ANSWERS:
            drop("prompts with an answer of one file only")
            continue
        for _ in range(len(paths) - len(answers)):
            drop("answers that a file lacks")
        yield prompt.model_copy(update={"completions": [answers[number] for number in sorted(answers)]})


def _answer_reader(path: Path) -> Callable[[Raw, str], tuple[RatedPrompt, Completion]]:
    formats = row_formats()

    def read(row: Raw, where: str) -> tuple[RatedPrompt, Completion]:
        _text(row, PROMPT_KEYS, "prompt", where)
        source = str(row.get("dataset") or row.get("source") or path.name)
        text = _text(row, ANSWER_KEYS, "answer", where)
        model = str(next((row[key] for key in MODEL_KEYS if row.get(key)), path.stem))
        prompt_row = {key: row[key] for key in (*PROMPT_KEYS, "input") if key in row}
        prompt = formats.prompt(prompt_row, where, source)
        prompt = prompt.model_copy(update={"origin": _from_file_name(where, path)})
        try:
            return _unanswered(prompt), Completion(model=model, text=text)
        except ValidationError:
            raise BadRow(where, "an answer that is not made of text") from None

    return read


def _text(row: Raw, keys: Sequence[str], what: str, where: str) -> str:
    text = next((row[key] for key in keys if key in row), None)
    if text is None:
        raise BadRow(where, f"no {what}: neither {' nor '.join(f'`{key}`' for key in keys)}")
    if not isinstance(text, str):
        raise BadRow(where, f"the {what} is not text")
    return text
