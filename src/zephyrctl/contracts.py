"""What a plugin promises: the contracts of teachers, binarizers and model bases.

A plugin package returns classes that fulfil one of them from a hook (see `zephyrctl.hooks`). Every class has a
`name`, by which recipes choose it, and a pydantic model `Options`, which the recipe's options are checked against.
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
    """Options of a plugin; this class itself is for one that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sampling(BaseModel):
    """How a teacher draws its reply."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.0, ge=0, le=2, description="0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus share")
    max_tokens: int = Field(default=512, ge=1, description="longest reply, in tokens")
    seed: int = Field(default=0, ge=0, description="seed of the draw, where the server honours one")
    json_schema: str | None = Field(
        default=None, description="form of the reply, for servers that can hold a model to one; others may ignore it"
    )


GREEDY = Sampling()


@dataclass(frozen=True)
class Reply:
    """A teacher's answer and what the server said of it."""

    text: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = "stop"


@dataclass(frozen=True)
class Ratings:
    """What one rating call brought: a mark for each answer in the order shown, the raw words, and who really rated."""

    marks: list[Rating]
    text: str = ""
    model: str = ""
    is_readable: bool = True
    """False where an answer's mark is missing without a plain N/A: the call is worth another try."""


@dataclass(frozen=True)
class Critique:
    """A critique of one answer with its overall score from 1 to 10 (None where it gave none)."""

    text: str
    overall: float | None
    model: str = ""


class Caller(Protocol):
    """Who makes a stage's calls: it looks them up in the ledger, keeps limits and budget, and tries again."""

    async def reply(self, teacher: "Teacher", messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The reply to one call, asked for at most once for the same teacher, messages, sampling and sample."""


class Teacher(ABC):
    """A model that answers chat messages; by default it also refines, plays the user, rates and judges by prompt.

    Only `reply` must be written. The other methods ask `reply` with the prompts of `templates/prompts`; override
    them where a better way exists (a reward model that rates, a rule that judges).
    """

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    is_rule_based: ClassVar[bool] = False
    """True where scores come from rules and not from a language model; reports say so beside every score."""
    is_free: ClassVar[bool] = False
    """True where a call costs no money, as on this machine; what it says is kept in the ledger all the same."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.caller: Caller | None = None
        """Set by a stage; `ask` goes through it."""

    @abstractmethod
    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Try once to answer a conversation that ends on the user. Raises CallFailed where that brings no reply.

        Retries, limits, prices and the ledger are the caller's: a teacher knows none of them.
        """

    async def close(self) -> None:
        """Give back connections and processes; called once, after the last call."""
        return

    @property
    def label(self) -> str:
        """The name under which this teacher's answers are stored."""
        return self.name

    @property
    def identity(self) -> dict[str, Any]:
        """The options on which replies depend: a paid call is found again as long as these are the same."""
        options: dict[str, Any] = self.options.model_dump(mode="json")
        return options

    @property
    def rest_seconds(self) -> float:
        """How long no call should be begun, as whoever answers them needs a rest; 0 where one may be begun now."""
        return 0.0

    async def ask(self, messages: Sequence[Message], sampling: Sampling = GREEDY, sample: int = 0) -> Reply:
        """`reply`, through the stage's ledger and limits where there are some; `sample` tells equal calls apart."""
        if self.caller is None:
            return await self.reply(messages, sampling)
        return await self.caller.reply(self, messages, sampling, sample)

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """A refined instruction, given an instruction and its answer (paper section 3, dSFT)."""
        text = templates.render("prompts/refine.md.jinja", instruction=instruction, answer=answer)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """The user's next turn in a dialogue that ends on the assistant (as in UltraChat)."""
        text = templates.render("prompts/user.md.jinja", messages=messages)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def propose_subtopics(self, topic: str, count: int, seed: int = 0) -> list[str]:
        """At most `count` subjects within a topic, all different."""
        text = templates.render("prompts/subtopics.md.jinja", topic=topic, count=count)
        reply = await self._ask(text, Sampling(temperature=1.0, seed=seed, max_tokens=40 + 20 * count))
        return list(dict.fromkeys(verdicts.parse_list(reply.text)))[:count]

    async def open_dialogue(self, topic: str, subtopic: str, seed: int = 0) -> str:
        """A user's first message about a subject."""
        text = templates.render("prompts/opening.md.jinja", topic=topic, subtopic=subtopic)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).text.strip()

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """One mark per answer, in order, from one call that shows them all; a value None where none was given."""
        text = templates.render("prompts/rate.md.jinja", messages=messages, answers=answers, aspect=aspect)
        schema = verdicts.ratings_schema(len(answers))
        reply = await self._ask(text, Sampling(max_tokens=160 * len(answers), json_schema=schema), sample)
        marks, is_readable = verdicts.read_ratings(reply.text, len(answers), aspect)
        return Ratings(
            [mark.model_copy(update={"rater": reply.model}) for mark in marks], reply.text, reply.model, is_readable
        )

    async def critique(self, messages: Sequence[Message], answer: str, sample: int = 0) -> Critique:
        """What is good and bad in one answer, and an overall score from 1 to 10 (as in UltraFeedback)."""
        text = templates.render("prompts/critique.md.jinja", messages=messages, answer=answer)
        reply = await self._ask(text, GREEDY, sample)
        return Critique(reply.text.strip(), verdicts.parse_verdict(reply.text).score, reply.model)

    async def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """A score from 1 to 10 for one answer to a conversation."""
        text = templates.render("prompts/judge.md.jinja", messages=messages, answer=answer)
        reply = await self._ask(text, GREEDY)
        return replace(verdicts.parse_verdict(reply.text), model=reply.model)

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float | None:
        """1.0 where the first answer is better, 0.0 where the second is, 0.5 for a draw, None where unparsed."""
        text = templates.render("prompts/compare.md.jinja", messages=messages, first=first, second=second)
        return verdicts.parse_preference((await self._ask(text, GREEDY)).text)

    async def _ask(self, text: str, sampling: Sampling, sample: int = 0) -> Reply:
        return await self.ask([Message(role="user", content=text)], sampling, sample)


@dataclass(frozen=True)
class NoPair:
    """Why a prompt yields no pair; the cause is counted under these words."""

    cause: str


class Asked:
    """A rated prompt that is read once somebody looks at it: most strategies look at scores alone."""

    def __init__(self, read: Callable[[], RatedPrompt]) -> None:
        self._read = read

    @cached_property
    def prompt(self) -> RatedPrompt:
        """The whole prompt, with what judges wrote."""
        return self._read()


class Answer(NamedTuple):
    """One answer as a strategy sees it: its place among those of its prompt, and its score."""

    place: int
    score: float
    asked: Asked

    @property
    def completion(self) -> Completion:
        """The whole completion."""
        return self.asked.prompt.completions[self.place]


@dataclass(frozen=True)
class Picked:
    """A chosen and a rejected answer."""

    chosen: Answer
    rejected: Answer


class Answers(NamedTuple):
    """The answers to one prompt that have a score by the recipe's rules, two or more, in the order of the prompt."""

    asked: Asked
    scored: Sequence[Answer]
    best: Sequence[Answer]
    """Those that may be chosen, as the recipe's `ties` says: all of the highest score, the first, or none in a tie."""

    @property
    def prompt(self) -> RatedPrompt:
        """The whole prompt, answers without a score included."""
        return self.asked.prompt

    def highest(self) -> float:
        """The highest score."""
        return max([answer.score for answer in self.scored])

    def by_score(self) -> list[Answer]:
        """Best first; answers of equal score keep their order."""
        return sorted(self.scored, key=lambda answer: -answer.score)


class Binarizer(ABC):
    """A strategy that picks the chosen and the rejected answer of a rated prompt."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def pick(self, answers: Answers, rng: Random) -> Picked | Sequence[Picked] | NoPair | None:
        """Pair answers, or say why not. `rng` is seeded by the prompt's id: position and worker change nothing."""


class Sizes(BaseModel):
    """A model's shape, from which memory and time follow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int = Field(ge=1)
    width: int = Field(ge=1, description="hidden size")
    layers: int = Field(ge=1)
    feed_forward: int = Field(ge=1, description="intermediate size")
    key_value_width: int = Field(ge=1, description="key-value heads times head size")
    vocabulary: int = Field(ge=1)


class ModelBase(ABC):
    """A base model: where it lies, which chat template it is trained with, and how large it is."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def location(self) -> str:
        """A folder, or a Hub id."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """The model's shape. Raises ZephyrError where it cannot be known without a download."""

    @property
    def revision(self) -> str | None:
        """The Hub revision to pin; None for a folder."""
        return None

    @property
    def license(self) -> str:
        """The licence of the weights, in the Hub's words."""
        return "unknown"

    @property
    def trusts_code(self) -> bool:
        """Whether Python code that comes with the model may run; only what the user named may say so."""
        return False

    def chat_template(self) -> str:
        """The Jinja chat template, with `{% generation %}` marks around what the assistant says."""
        return templates.read("chat/zephyr.jinja")
