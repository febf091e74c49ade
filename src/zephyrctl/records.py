"""The records that stages exchange: dialogues, prompts, rated answers and preference pairs."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "test"]

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""The four aspects that UltraFeedback rates, each from 1 to 5."""


class Record(BaseModel):
    """A row. It is immutable."""

    # No text is that long. With a maximum, pydantic checks texts for lone surrogates (half characters) when a row is
    # created, and not only when it is written.
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=2**31, defer_build=True)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Conversation(Record):
    """Turns with the id of the first user turn."""

    id: str = Field(description="prompt_id of the first user turn")
    messages: list[Message]

    def user_turns(self) -> list[str]:
        """The texts of the user turns."""
        return [message.content for message in self.messages if message.role == "user"]


class Dialogue(Conversation):
    """A conversation to imitate: an optional system turn, then alternating user and assistant turns, assistant last."""

    source: str
    origin: str = Field(default="", description="file and line, or how a teacher produced it")


class Prompt(Conversation):
    """A conversation to answer: it ends with a user turn. In an evaluation the model answers earlier turns too."""

    source: str
    origin: str = Field(default="", description="file and line, or how a teacher produced it")


class Rating(Record):
    """A judge's rating of one aspect of an answer; the value is None if the judge gave none."""

    aspect: str
    value: float | None = Field(ge=1, le=5, description="the mean, if it was requested more than once")
    rationale: str = ""
    spread: float | None = Field(default=None, ge=0, description="standard deviation of repeated ratings (ddof 1)")
    rater: str = Field(default="", description="model id that the server reported")


class Completion(Record):
    """A model's answer to a prompt, with one rating per aspect after a judge has rated it."""

    model: str
    text: str
    ratings: list[Rating] = Field(default_factory=list)
    overall: float | None = Field(default=None, description="separate overall score from 1 to 10, if there is one")
    critique: str = ""
    principle: str = Field(default="", description="name of the principle in its system prompt")
    finish_reason: str = Field(default="", description="'length' if the answer was cut")

    def mean_rating(self) -> float | None:
        """The mean over the aspects that have a value, or None if none has one (paper section 4.1)."""
        values = [rating.value for rating in self.ratings if rating.value is not None]
        return sum(values) / len(values) if values else None


class RatedPrompt(Conversation):
    """A conversation that ends with a user turn, and the answers of several models to it."""

    completions: list[Completion]
    source: str
    origin: str = ""


class Judgment(Record):
    """A call of the rater: what it was shown, in which order, and its reply."""

    prompt_id: str
    aspect: str = Field(description="an aspect, or 'critique'")
    repeat: int = Field(ge=0, description="which of the repeated ratings")
    ask: int = Field(ge=0, description="number of earlier calls whose reply could not be parsed")
    order: list[int] = Field(description="position of the answer that was shown first, second, ...")
    values: list[float | None] = Field(description="ratings by position of the answer; the overall score of a critique")
    text: str = Field(description="the rater's raw reply; empty if rules rate")
    rater: str = Field(description="model id that the server reported")


class PreferencePair(Conversation):
    """The same conversation answered twice, the better answer first (the triple x, y_w, y_l of the paper)."""

    chosen: str
    rejected: str
    score_chosen: float | None
    score_rejected: float | None
    chosen_model: str = ""
    rejected_model: str = ""
    chosen_place: int | None = Field(default=None, description="position of the answer among those of its prompt")
    rejected_place: int | None = None


def prompt_id(text: str) -> str:
    """The published sets' key of a prompt: sha256 of its UTF-8 text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def first_user_turn(messages: list[Message]) -> str:
    """The text of the first user turn; empty if there is none."""
    return next((message.content for message in messages if message.role == "user"), "")


def split_of(id: str, test_share: float) -> Split:
    """The split of a prompt, by the hash of its id: new data moves no prompt to the other split."""
    position = int(hashlib.sha256(f"split:{id}".encode()).hexdigest()[:12], 16) / 16**12
    return "test" if position < test_share else "train"
