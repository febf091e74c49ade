"""The rows that travel between stages: dialogues, prompts, rated answers and preference pairs."""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "test"]

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
"""The four aspects that UltraFeedback rates, each from 1 to 5."""


class Record(BaseModel):
    """A row; it is read by one stage and changed by none."""

    # The bound is never met; with it pydantic looks into texts and refuses half characters (lone surrogates) when a
    # row is made, and not only when it is written.
    model_config = ConfigDict(frozen=True, extra="forbid", str_max_length=2**31, defer_build=True)


class Message(Record):
    """One turn of a conversation."""

    role: Role
    content: str


class Conversation(Record):
    """Turns under the id of what the user says first."""

    id: str = Field(description="prompt_id of the first user turn")
    messages: list[Message]

    def user_turns(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message.content for message in self.messages if message.role == "user"]


class Dialogue(Conversation):
    """A conversation to imitate: an optional system turn, then user and assistant in turn, ending on the assistant."""

    source: str
    origin: str = Field(default="", description="file and line, or how the teacher came to it")


class Prompt(Conversation):
    """A conversation that ends on the user, to be answered; an evaluation lets the model answer earlier turns too."""

    source: str
    origin: str = Field(default="", description="file and line, or how the teacher came to it")


class Rating(Record):
    """A judge's mark for one aspect of one answer; None where the judge gave none."""

    aspect: str
    value: float | None = Field(ge=1, le=5, description="the mean, where it was asked for more than once")
    rationale: str = ""
    spread: float | None = Field(default=None, ge=0, description="standard deviation of repeated marks (ddof 1)")
    rater: str = Field(default="", description="model id that the server reported")


class Completion(Record):
    """One model's answer to a prompt, with its ratings, one an aspect, once a judge has seen it."""

    model: str
    text: str
    ratings: list[Rating] = Field(default_factory=list)
    overall: float | None = Field(default=None, description="separate overall score from 1 to 10, where there is one")
    critique: str = ""
    principle: str = Field(default="", description="name of the principle that its system prompt stated")
    finish_reason: str = Field(default="", description="'length' where the answer was cut")

    def mean_rating(self) -> float | None:
        """The mean over the aspects that have a value, or None where none has one (paper section 4.1)."""
        values = [rating.value for rating in self.ratings if rating.value is not None]
        return sum(values) / len(values) if values else None


class RatedPrompt(Conversation):
    """A conversation that ends on the user, and the answers of several models to it."""

    completions: list[Completion]
    source: str
    origin: str = ""


class Judgment(Record):
    """One call of the rater as it was: what it was shown, in which order, and its own words."""

    prompt_id: str
    aspect: str = Field(description="an aspect, or 'critique'")
    repeat: int = Field(ge=0, description="which of the repeated ratings")
    ask: int = Field(ge=0, description="0, or how often it was asked again as it could not be read")
    order: list[int] = Field(description="place of the answer that was shown first, second, ...")
    values: list[float | None] = Field(description="marks by place of the answer; the overall score of a critique")
    text: str = Field(description="the rater's raw words; empty where rules rate")
    rater: str = Field(description="model id that the server reported")


class PreferencePair(Conversation):
    """The same conversation answered twice, the better answer first (the triple x, y_w, y_l of the paper)."""

    chosen: str
    rejected: str
    score_chosen: float | None
    score_rejected: float | None
    chosen_model: str = ""
    rejected_model: str = ""
    chosen_place: int | None = Field(default=None, description="place of the answer among those of its prompt")
    rejected_place: int | None = None


def prompt_id(text: str) -> str:
    """The published sets' key of a prompt: sha256 of its UTF-8 text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def first_user_turn(messages: list[Message]) -> str:
    """The text that a conversation starts from; empty where no user speaks."""
    return next((message.content for message in messages if message.role == "user"), "")


def split_of(id: str, test_share: float) -> Split:
    """The side on which a prompt lies for good, by the hash of its id: adding data moves nothing."""
    position = int(hashlib.sha256(f"split:{id}".encode()).hexdigest()[:12], 16) / 16**12
    return "test" if position < test_share else "train"
