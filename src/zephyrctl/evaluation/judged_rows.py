"""The rows that every evaluation writes: the answers of models, and the judgments of them."""

from collections.abc import Iterator

from pydantic import Field, model_validator

from zephyrctl.records import Message, Record
from zephyrctl.runs.artifacts import Artifact

ANSWERS, JUDGMENTS = "answers", "judgments"
"""The two tables of an evaluation."""
BEFORE = {"checkpoint": "model", "prompt_id": "question", "asked": "messages", "reason": "text"}
"""Columns that had another name in version 0.1, and their names now."""


class AnswerRow(Record):
    """One model's answer to one turn of a question, of held-out prompts and benchmarks alike."""

    model: str
    question: str = Field(description="id of the question, or of the held-out prompt")
    category: str = ""
    turn: int = Field(ge=1)
    messages: list[Message] = Field(description="the conversation up to this answer")
    answer: str
    finish_reason: str = Field(default="", description="'length' if the answer was cut off; empty if it is not known")
    answered_at: float = Field(default=0.0, description="seconds since 1970; 0 if it is not known")

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, row: object) -> object:
        return _renamed(row, cls)


class JudgmentRow(Record):
    """One judgment of an answer, alone or compared with another answer; repeated judgments are rows of their own."""

    model: str
    question: str
    category: str = ""
    turn: int = Field(ge=1)
    sample: int = Field(default=0, ge=0, description="number of the repeated judgment")
    score: float | None = Field(description="1 to 10, or the share of a win from 0 to 1; none if there is no verdict")
    cause: str = Field(default="", description="why there is no score")
    judge: str = Field(description="model id that the server reported")
    prompt: str = Field(default="", description="name of the judge's prompt")
    text: str = Field(default="", description="the judge's own words")
    opponent: str = Field(default="", description="model of the other answer; empty if the answer was judged alone")
    is_swapped: bool = Field(default=False, description="whether the judge saw the other answer first")
    judged_at: float = Field(default=0.0, description="seconds since 1970; 0 if it is not known")

    @model_validator(mode="before")
    @classmethod
    def _from_before(cls, row: object) -> object:
        return _renamed(row, cls)


def read_answers(artifact: Artifact) -> Iterator[AnswerRow]:
    """The answers of an evaluation, written by this version or by the one before."""
    return artifact.read(ANSWERS, "test", AnswerRow)


def read_judgments(artifact: Artifact) -> Iterator[JudgmentRow]:
    """The judgments of an evaluation, written by this version or by the one before.

    Version 0.1 kept the score of a held-out answer in the same row as the answer.
    """
    is_benchmark = artifact.manifest.metrics.get("benchmark") is not None
    has_judgments = artifact.table(JUDGMENTS, "test").is_file()
    return artifact.read(JUDGMENTS if is_benchmark or has_judgments else ANSWERS, "test", JudgmentRow)


def _renamed(row: object, record: type[Record]) -> object:
    """A row of version 0.1 in today's columns; other rows as they are.

    Such a row of held-out answers has `checkpoint`, and both the answer and its judgment: each record takes its part.
    """
    if not isinstance(row, dict) or not ("checkpoint" in row or "asked" in row):
        return row
    renamed = {BEFORE.get(name, name): value for name, value in row.items()}
    if "checkpoint" not in row:
        return renamed
    return {name: value for name, value in renamed.items() if name in record.model_fields}
