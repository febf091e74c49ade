"""The leaderboard's questions from files of one's own: where they lie, and whether they are in the published form.

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


class _Choices(BaseModel):
    text: Texts
    label: Texts


class ArcRow(BaseModel):
    """A question of ARC as published; further fields are let through."""

    question: str
    choices: _Choices
    answerKey: str  # noqa: N815

    @model_validator(mode="after")
    def _answer_is_there(self) -> Self:
        if self.answerKey not in self.choices.label:
            raise ValueError(f"answerKey {self.answerKey!r} is no label of the choices")
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


class _Targets(BaseModel):
    choices: Texts
    labels: list[int]

    @model_validator(mode="after")
    def _some_are_true(self) -> Self:
        if len(self.labels) != len(self.choices) or not {0, 1} == set(self.labels):
            raise ValueError("labels: one for each choice, 1 where it is true and 0 where not, and some of both")
        return self


class TruthfulQaRow(BaseModel):
    """A question of TruthfulQA's multiple choice as published."""

    question: str
    mc2_targets: _Targets


FORMS: dict[str, type[BaseModel]] = {
    "arc": ArcRow,
    "hellaswag": HellaSwagRow,
    "mmlu": MmluRow,
    "truthfulqa": TruthfulQaRow,
}


def find(data: Path, benchmark: str) -> dict[str, dict[str, Path]]:
    """The files of a benchmark, as lm-eval's task: {split: file}.

    Raises ZephyrError where one is missing, or a folder of `mmlu` is no subject.
    """
    published = TASKS[benchmark]
    splits = [split for split in (published.examples, published.asked) if split]
    if benchmark != "mmlu":
        return {published.task: {split: _there(data / benchmark / f"{split}.jsonl") for split in splits}}
    folders = sorted(path for path in (data / "mmlu").glob("*") if path.is_dir())
    for folder in folders:
        if folder.name not in SUBJECTS:
            remedy = did_you_mean(folder.name, SUBJECTS, otherwise=f"the subjects are: {', '.join(SUBJECTS)}")
            raise ZephyrError(f"{folder} is no subject of MMLU", remedy)
    if not folders:
        raise _missing(data / "mmlu" / SUBJECTS[0])
    return {f"mmlu_{folder.name}": {split: _there(folder / f"{split}.jsonl") for split in splits} for folder in folders}


def check(data: Path, benchmarks: Sequence[str]) -> None:
    """Raise ZephyrError where a file is missing, a row is not in the published form, or there are too few examples."""
    for benchmark in benchmarks:
        published = TASKS[benchmark]
        for files in find(data, benchmark).values():
            counts = {split: sum(1 for _ in _rows(path, benchmark)) for split, path in files.items()}
            for split, count in counts.items():
                needed = published.shots if split == published.examples else 1
                if count < needed:
                    raise ZephyrError(
                        f"{files[split]} has {count} rows, and {needed} are needed",
                        "give the whole split as published",
                    )


def _rows(path: Path, benchmark: str) -> Iterator[BaseModel]:
    for where, row in rows(path):
        try:
            yield FORMS[benchmark].model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise bad(where, ": ".join(filter(None, (field, first["msg"])))) from None


def _there(path: Path) -> Path:
    if not path.is_file():
        raise _missing(path)
    return path


def _missing(path: Path) -> ZephyrError:
    return ZephyrError(f"there is no {path}", f"lay the files out as {LAYOUT}, or leave that benchmark out")
