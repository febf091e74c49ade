"""What a plugin promises: the contracts of teachers, binarizers and model bases.

A plugin package returns classes that fulfil one of them from a hook (see `zephyrctl.hooks`). Every class has a
`name`, by which recipes choose it, and a pydantic model `Options`, which the recipe's options are checked against.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import templates
from zephyrctl.records import Completion, Message, PreferencePair, RatedPrompt, Rating


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
class Verdict:
    """A judge's score of one answer from 1 to 10 (None where it gave none), its reason, and who really judged."""

    score: float | None
    reason: str
    model: str = ""
    """The model id that the server reported: an alias such as `gpt-4` moves."""


class Teacher(ABC):
    """A model that answers chat messages; by default it also refines, plays the user, rates and judges by prompt.

    Only `reply` must be written. The other methods ask `reply` with the prompts of `templates/prompts`; override
    them where a better way exists (a reward model that rates, a rule that judges).
    """

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    is_rule_based: ClassVar[bool] = False
    """True where scores come from rules and not from a language model; reports say so beside every score."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Answer a conversation that ends on the user. Raises ZephyrError where the service refuses."""

    async def close(self) -> None:
        """Give back connections and processes; called once, after the last call."""
        return

    @property
    def label(self) -> str:
        """The name under which this teacher's answers are stored."""
        return self.name

    async def refine(self, instruction: str, answer: str, seed: int = 0) -> str:
        """A refined instruction, given an instruction and its answer (paper section 3, dSFT)."""
        text = templates.render("prompts/refine.md.jinja", instruction=instruction, answer=answer)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).strip()

    async def speak_as_user(self, messages: Sequence[Message], seed: int = 0) -> str:
        """The user's next turn in a dialogue that ends on the assistant (as in UltraChat)."""
        text = templates.render("prompts/user.md.jinja", messages=messages)
        return (await self._ask(text, Sampling(temperature=1.0, seed=seed))).strip()

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str) -> list[Rating]:
        """One rating per answer, in order, from one call that shows them all; a value None where none was given."""
        text = templates.render("prompts/rate.md.jinja", messages=messages, answers=answers, aspect=aspect)
        return parse_ratings(await self._ask(text, GREEDY), len(answers), aspect)

    async def judge(self, messages: Sequence[Message], answer: str) -> Verdict:
        """A score from 1 to 10 for one answer to a conversation."""
        text = templates.render("prompts/judge.md.jinja", messages=messages, answer=answer)
        reply = await self.reply([Message(role="user", content=text)], GREEDY)
        return replace(parse_verdict(reply.text), model=reply.model)

    async def compare(self, messages: Sequence[Message], first: str, second: str) -> float | None:
        """1.0 where the first answer is better, 0.0 where the second is, 0.5 for a draw, None where unparsed."""
        text = templates.render("prompts/compare.md.jinja", messages=messages, first=first, second=second)
        return parse_preference(await self._ask(text, GREEDY))

    async def _ask(self, text: str, sampling: Sampling) -> str:
        return (await self.reply([Message(role="user", content=text)], sampling)).text


@dataclass(frozen=True)
class NoPair:
    """Why a prompt yields no pair; the cause is counted under these words."""

    cause: str


class Binarizer(ABC):
    """A strategy that picks the chosen and the rejected answer of a rated prompt."""

    name: ClassVar[str]
    Options: ClassVar[type[PluginOptions]] = PluginOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def pick(self, rated: RatedPrompt, rng: Random) -> PreferencePair | NoPair | None:
        """Pair two answers, or say why not. `rng` is seeded by the prompt's id: position and worker change nothing."""


def pair(rated: RatedPrompt, chosen: Completion, rejected: Completion) -> PreferencePair:
    """The pair of two answers to one prompt, scored by their mean ratings."""
    return PreferencePair(
        id=rated.id,
        messages=rated.messages,
        chosen=chosen.text,
        rejected=rejected.text,
        score_chosen=chosen.mean_rating(),
        score_rejected=rejected.mean_rating(),
        chosen_model=chosen.model,
        rejected_model=rejected.model,
    )


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

    def chat_template(self) -> str:
        """The Jinja chat template, with `{% generation %}` marks around what the assistant says."""
        return templates.read("chat/zephyr.jinja")


_NUMBER = r"(\d+(?:\.\d+)?)"
_RATED = re.compile(r"[\W_]*answer\s*#?\s*(\d+)[\s*_)\]#]*[:=\u2013\u2014-](.*)", re.IGNORECASE)
_RATING = re.compile(
    rf"[\s*_\[(]*(?:rating\s*[:=]?[\s*_\[(]*)?{_NUMBER}"  # not a minus sign
    r"(?:\s*(?:/|out\s+of)\s*5(?![\d.,]*\d))?"
    r"[\s*_\])]*"
    r"(?:$|[.:;](?:\s|$)|[,\u2013\u2014-]\s+(?!\d)|(?<=\s)(?=\())(.*)",  # alone: no 4-5, 4,5 or 4 of them
    re.IGNORECASE,
)
_SCORE = re.compile(rf"\s*{_NUMBER}(?:\s*/\s*10)?\s*")
_SINGLE = re.compile(
    r"^[^\w\n]*(?:(?:rating|score|verdict)(?:\s+is)?\s*[:=]?)?[\s*_]*\[([^\[\]]+)\][\s*_.]*$", re.I | re.M
)


def parse_ratings(text: str, count: int, aspect: str) -> list[Rating]:
    """Ratings from lines `Answer K: VALUE. Rationale`; what is not plainly one number from 1 to 5 is missing.

    `4.5` stays 4.5, and `4/5` is 4, as 5 is the end of the scale; `4/10`, `4-5`, `-4`, `4 of them` and `10` are
    missing, and so is `7.5`. The last line for an answer counts, also where it has no rating.
    """
    found: dict[int, Rating] = {}
    for line in text.splitlines():
        if match := _RATED.match(line.strip()):
            found[int(match[1])] = _rating(match[2], aspect)
    return [found.get(position, Rating(aspect=aspect, value=None)) for position in range(1, count + 1)]


def _rating(text: str, aspect: str) -> Rating:
    match = _RATING.match(text)
    if match and 1 <= float(match[1]) <= 5:
        return Rating(aspect=aspect, value=float(match[1]), rationale=match[2].strip())
    return Rating(aspect=aspect, value=None, rationale=text.strip())


def parse_verdict(text: str) -> Verdict:
    """The score in the last `[[8]]`, from 1 to 10, else in a `[8]` that has its line to itself; None otherwise.

    `[[7.5]]` stays 7.5 and `[[8/10]]` is 8; `[[11]]`, `[[N/A]]` and a `[1]` within a sentence are no score. (MT-Bench's
    own rule is another one: it takes the first.)
    """
    stated = _last_bracket(text) or next(iter(_SINGLE.findall(text)[-1:]), "")
    match = _SCORE.fullmatch(stated)
    score = float(match[1]) if match else None
    return Verdict(score if score is not None and 1 <= score <= 10 else None, text.strip())


def parse_preference(text: str) -> float | None:
    """1.0 for a last `[[A]]`, 0.0 for `[[B]]`, 0.5 for `[[C]]` (a draw), None otherwise."""
    return {"A": 1.0, "B": 0.0, "C": 0.5}.get(_last_bracket(text).strip().upper())


def _last_bracket(text: str) -> str:
    """What stands in the last double brackets: reasons come first and may quote others, the verdict ends a reply."""
    return next(iter(re.findall(r"\[\[([^\[\]]*)\]\]", text)[-1:]), "")
