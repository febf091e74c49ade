"""The contracts of teachers, binarizers and model bases.

A plugin's hooks return classes that extend one of them (see `zephyrctl.hooks`). Each class has a `name`, by which
recipes choose it, and a pydantic model `Options`, which validates the options in the recipe.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import templates, verdicts
from zephyrctl.records import Completion, Message, RatedPrompt, Rating
from zephyrctl.verdicts import Verdict


class PluginOptions(BaseModel):
    """Options of a plugin; extend it, or use it as it is if there are none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(BaseModel):
    """How a teacher samples its reply."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.0, ge=0, le=2, description="sampling temperature; 0: greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling")
    max_tokens: int = Field(default=512, ge=1, description="longest reply, in tokens")
    seed: int = Field(default=0, ge=0, description="random seed, if the server supports one")
    json_schema: str | None = Field(
        default=None,
        description="JSON schema of the reply; servers without structured output may ignore it",
    )


GREEDY = Sampling()


@dataclass(frozen=True)
class Reply:
    """A teacher's reply, and what the server reported about it."""

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Ratings:
    """The result of a rating call: a rating for each answer in the order shown, the raw reply, and the rater."""

    marks: list[Rating]
    text: str = ""
    model: str = ""
    is_readable: bool = True
    """False if a rating is missing without a plain N/A: it is worth another call."""


@dataclass(frozen=True)
class Critique:
    """A critique of one answer, with an overall score from 1 to 10 (None if it gave none)."""

    text: str
    overall: float | None
    model: str = ""


class Caller(Protocol):
    """Makes the calls of a stage: it looks them up in the call log, keeps limits and budget, and retries."""

    async def reply(self, teacher: "Teacher", messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The reply to one call; it is made only once for the same teacher, messages, sampling and sample."""


class Teacher(ABC):
    """A model that answers chat messages; with prompts, it also refines, plays the user, rates and judges.

    Only `reply` must be defined. The other methods call `reply` with the prompts of `templates/prompts`; override them
    if there is a better way (a reward model that rates, a rule that judges).
    """

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    is_rule_based: ClassVar[bool] = False
    """True if scores come from rules and not from a language model; reports say so beside every score."""
    is_free: ClassVar[bool] = False
    """True if a call costs no money, as on this machine; its replies are kept in the call log all the same."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.caller: Caller | None = None
        """Set by a stage; `ask` uses it."""

    @abstractmethod
    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Try once to answer a conversation that ends with a user turn. Raises CallFailed if there is no reply.

        Retries, limits, prices and the call log are the caller's: a teacher knows none of them.
        """

    async def close(self) -> None:
        """Close connections and end processes; called once, after the last call."""
        return

    @property
    def label(self) -> str:
        """The name under which this teacher's answers are stored."""
        return self.name

    @property
    def identity(self) -> dict[str, Any]:
        """The options that replies depend on: while they are the same, a paid call is not made again."""
        options: dict[str, Any] = self.options.model_dump(mode="json")
        return options

    @property
    def rest_seconds(self) -> float:
        """Seconds to wait before the next call, if the server needs a rest; otherwise 0."""
        return 0.0

    async def ask(self, messages: Sequence[Message], sampling: Sampling = GREEDY, sample: int = 0) -> Reply:
        """`reply`, through the stage's call log and limits if there are any; `sample` tells equal calls apart."""
        if self.caller is None:
            return await self.reply(messages, sampling)
        return await self.caller.reply(self, messages, sampling, sample)

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """A refined instruction, given an instruction and its answer (paper section 3, dSFT)."""
        text = templates.render("prompts/refine.md.jinja", instruction=instruction, answer=answer)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """The user's next turn in a dialogue that ends with an assistant turn (as in UltraChat)."""
        text = templates.render("prompts/user.md.jinja", messages=messages)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def propose_subtopics(self, topic: str, count: int, seed: int = 0) -> list[str]:
        """At most `count` different subtopics of a topic."""
        text = templates.render("prompts/subtopics.md.jinja", topic=topic, count=count)
        reply = await self._ask(text, Sampling(temperature=1.0, seed=seed, max_tokens=40 + 20 * count))
        return list(dict.fromkeys(verdicts.parse_list(reply.text)))[:count]

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """A user's first message about a subtopic."""
        text = templates.render("prompts/opening.md.jinja", topic=topic, subtopic=subtopic)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """One rating per answer, in order, from one call that shows them all; the value is None if none was given."""
        text = templates.render("prompts/rate.md.jinja", messages=messages, answers=answers, aspect=aspect)
        schema = verdicts.ratings_schema(len(answers))
        reply = await self._ask(text, Sampling(max_tokens=160 * len(answers), json_schema=schema), sample)
        marks, is_readable = verdicts.read_ratings(reply.text, len(answers), aspect)
        return Ratings(
            [mark.model_copy(update={"rater": reply.model}) for mark in marks], reply.text, reply.model, is_readable
        )

    async def critique(self, messages: Sequence[Message], answer: str, sample: int = 0) -> Critique:
        """A critique of one answer, and an overall score from 1 to 10 (as in UltraFeedback)."""
        text = templates.render("prompts/critique.md.jinja", messages=messages, answer=answer)
        reply = await self._ask(text, GREEDY, sample)
        return Critique(reply.text.strip(), verdicts.parse_verdict(reply.text).score, reply.model)

    async def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """A score from 1 to 10 for one answer to a conversation."""
        text = templates.render("prompts/judge.md.jinja", messages=messages, answer=answer)
        reply = await self._ask(text, GREEDY)
        return replace(verdicts.parse_verdict(reply.text), model=reply.model)

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float | None:
        """1.0 if the first answer is better, 0.0 if the second is, 0.5 for a tie, None if the reply is unreadable."""
        text = templates.render("prompts/compare.md.jinja", messages=messages, first=first, second=second)
        return verdicts.parse_preference((await self._ask(text, GREEDY)).text)

    async def _ask(self, text: str, sampling: Sampling, sample: int = 0) -> Reply:
        return await self.ask([Message(role="user", content=text)], sampling, sample)


@dataclass(frozen=True)
class NoPair:
    """Why a prompt yields no pair; prompts are counted by cause."""

    cause: str


class LazyPrompt:
    """A rated prompt that is read when it is first used: most strategies use scores alone."""

    def __init__(self, read: Callable[[], RatedPrompt]) -> None:
        self._read = read

    @cached_property
    def prompt(self) -> RatedPrompt:
        """The whole prompt, with the texts of judges."""
        return self._read()


class Answer(NamedTuple):
    """An answer as a strategy sees it: its position among the answers to its prompt, and its score."""

    place: int
    score: float
    lazy_prompt: LazyPrompt

    @property
    def completion(self) -> Completion:
        """The whole completion."""
        return self.lazy_prompt.prompt.completions[self.place]


@dataclass(frozen=True)
class Picked:
    """A chosen and a rejected answer."""

    chosen: Answer
    rejected: Answer


class Answers(NamedTuple):
    """The scored answers to a prompt, two or more, in the order of the prompt."""

    lazy_prompt: LazyPrompt
    scored: Sequence[Answer]
    best: Sequence[Answer]
    """Candidates for chosen. `ties` in the recipe decides: all of the highest score, the first, or none in a tie."""

    @property
    def prompt(self) -> RatedPrompt:
        """The whole prompt, answers without a score included."""
        return self.lazy_prompt.prompt

    def highest(self) -> float:
        """The highest score."""
        return max([answer.score for answer in self.scored])

    def by_score(self) -> list[Answer]:
        """The answers, best first; answers of equal score keep their order."""
        return sorted(self.scored, key=lambda answer: -answer.score)


class Binarizer(ABC):
    """A strategy that picks the chosen and the rejected answer of a rated prompt."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def pick(self, answers: Answers, rng: Random) -> Picked | Sequence[Picked] | NoPair | None:
        """Pair answers, or say why not. `rng` is seeded by the prompt's id, so order and workers change no pair."""


class Sizes(BaseModel):
    """A model's shape, which determines memory and time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int = Field(ge=1)
    width: int = Field(ge=1, description="hidden size")
    layers: int = Field(ge=1)
    feed_forward: int = Field(ge=1, description="intermediate size")
    key_value_width: int = Field(ge=1, description="number of key-value heads times head size")
    vocabulary: int = Field(ge=1)


class ModelBase(ABC):
    """A base model: its location, its chat template, and its size."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def location(self) -> str:
        """A folder, or a Hub id."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """The model's shape. Raises ZephyrError if it cannot be known without a download."""

    @property
    def revision(self) -> str | None:
        """The Hub revision to pin; None for a folder."""
        return None

    @property
    def license(self) -> str:
        """The license of the weights, as the Hub names it."""
        return "unknown"

    @property
    def trusts_code(self) -> bool:
        """Whether Python code in the model's repository may run; True only if the user has named the model for it."""
        return False

    def chat_template(self) -> str:
        """The Jinja chat template, with `{% generation %}` around assistant turns."""
        return templates.read("chat/zephyr.jinja")
