"""The rows that benchmarks write: what was answered, and what a judge said of it."""

from pydantic import Field

from zephyrctl.records import Message, Record


class Answered(Record):
    """One answer of one model to one turn of a question."""

    model: str
    question: str = Field(description="id of the question")
    category: str
    turn: int = Field(ge=1)
    asked: list[Message] = Field(description="the conversation up to this answer")
    answer: str
    finish_reason: str = Field(default="", description="'length' where it was cut off; empty where nobody knows")
    answered_at: float = Field(default=0.0, description="seconds since 1970; 0 where nobody knows")


class Judged(Record):
    """What a judge said of an answer, alone or beside another one; one row a question, turn and repeat."""

    model: str
    question: str
    category: str
    turn: int = Field(ge=1)
    sample: int = Field(default=0, ge=0, description="which of the repeated judgments")
    score: float | None = Field(description="1 to 10 alone; 1, 0.5 or 0 beside another answer; none where unparsed")
    cause: str = Field(default="", description="why there is no score")
    judge: str = Field(description="model id that the server reported")
    prompt: str = Field(default="", description="name of the judge's prompt")
    text: str = Field(default="", description="the judge's own words")
    opponent: str = Field(default="", description="whose answer it was laid beside; empty where it was judged alone")
    is_swapped: bool = Field(default=False, description="whether the judge saw the other answer first")
    judged_at: float = Field(default=0.0, description="seconds since 1970; 0 where nobody knows")
