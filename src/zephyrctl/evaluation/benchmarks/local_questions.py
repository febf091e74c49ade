"""Find local files with the leaderboard's questions, and check that they are in the published form.

arc/train.jsonl        arc/test.jsonl               rows of allenai/ai2_arc, ARC-Challenge
hellaswag/train.jsonl  hellaswag/validation.jsonl   rows of Rowan/hellaswag
mmlu/SUBJECT/dev.jsonl mmlu/SUBJECT/test.jsonl      rows of cais/mmlu; as many subjects as there are folders
truthfulqa/validation.jsonl                         rows of truthfulqa/truthful_qa, multiple_choice
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.evaluation.benchmarks.leaderboard_tasks import SUBJECTS, TASKS
from zephyrctl.evaluation.rows_of_files import bad, rows

LAYOUT = "arc/{train,test}.jsonl, hellaswag/{train,validation}.jsonl, mmlu/SUBJECT/{dev,test}.jsonl, \
truthfulqa/validation.jsonl"

Texts = Annotated[list[str], Field(min_length=2)]


class ArcChoices(BaseModel):
    """The choices of a question of ARC, and the label of each."""

    text: Texts
    label: Texts


class ArcRow(BaseModel):
    """A question of ARC as published; other fields are ignored."""

    question: str
    choices: ArcChoices
    answerKey: str  # noqa: N815

    @model_validator(mode="after")
    def _answer_is_a_label(self) -> Self:
        if self.answerKey not in self.choices.label:
            raise ValueError(f"answerKey {self.answerKey!r} is not a label of the choices")
        return self


class HellaSwagRow(BaseModel):
    """A question of HellaSwag as published."""

    activity_label: str
    ctx_a: str
    ctx_b: str
    endings: Annotated[list[str], Field(min_length=4, max_length=4)]
    label: Annotated[str, Field(pattern="^[0-3]$")]


class MmluRow(BaseModel):
    """A question of MMLU as published."""

    question: str
    choices: Annotated[list[str], Field(min_length=4, max_length=4)]
    answer: Annotated[int, Field(ge=0, le=3)]


class TruthfulQaTargets(BaseModel):
    """The choices of a question of TruthfulQA, and for each whether it is true."""

    choices: Texts
    labels: list[int]

    @model_validator(mode="after")
    def _some_are_true(self) -> Self:
        if len(self.labels) != len(self.choices) or not {0, 1} == set(self.labels):
            raise ValueError("labels: one for each choice, 1 if it is true and 0 if not, and at least one of each")
        return self


class TruthfulQaRow(BaseModel):
    """A question of TruthfulQA's multiple choice as published."""

    question: str
    mc2_targets: TruthfulQaTargets


FORMS: dict[str, type[BaseModel]] = {
    "arc": ArcRow,
    "hellaswag": HellaSwagRow,
    "mmlu": MmluRow,
    "truthfulqa": TruthfulQaRow,
}


def find(data: Path, benchmark: str) -> dict[str, dict[str, Path]]:
    """The files of a benchmark as {lm-eval's task: {split: file}}.

    Raises ZephyrError if a file is missing, or if a folder in `mmlu` is not named after a subject.
    """
    published = TASKS[benchmark]
    splits = [split for split in (published.examples, published.asked) if split]
    if benchmark != "mmlu":
        return {published.task: {split: _existing(data / benchmark / f"{split}.jsonl") for split in splits}}
    folders = sorted(path for path in (data / "mmlu").glob("*") if path.is_dir())
    for folder in folders:
        if folder.name not in SUBJECTS:
            remedy = did_you_mean(folder.name, SUBJECTS, otherwise=f"the subjects are: {', '.join(SUBJECTS)}")
            raise ZephyrError(f"{folder} is not a subject of MMLU", remedy)
    if not folders:
        raise _missing(data / "mmlu" / SUBJECTS[0])
    return {
        f"mmlu_{folder.name}": {split: _existing(folder / f"{split}.jsonl") for split in splits} for folder in folders
    }


def check(data: Path, benchmarks: Sequence[str]) -> None:
    """Raise ZephyrError if a file is missing, a row is not in the published form, or there are too few examples."""
    for benchmark in benchmarks:
        published = TASKS[benchmark]
        for files in find(data, benchmark).values():
            counts = {split: sum(1 for _ in _rows(path, benchmark)) for split, path in files.items()}
            for split, count in counts.items():
                # 25 shots need 25 examples. One question is enough, since --limit may ask a part of them only.
                needed = published.shots if split == published.examples else 1
                if count < needed:
                    raise ZephyrError(
                        f"{files[split]} has {count} rows, but {needed} are needed",
                        "give the whole split as published",
                    )


def _rows(path: Path, benchmark: str) -> Iterator[BaseModel]:
    for location, row in rows(path):
        try:
            yield FORMS[benchmark].model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise bad(location, ": ".join(filter(None, (field, first["msg"])))) from None


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise _missing(path)
    return path


def _missing(path: Path) -> ZephyrError:
    return ZephyrError(f"there is no {path}", f"name the files {LAYOUT}, or leave that benchmark out")
