"""Which calls of a collection are settled in the ledger, and which are still to be made; none is made to find out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zephyrctl import plugins, templates
from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed
from zephyrctl.feedback.annotators import ANSWERS, CRITIQUES, RATINGS, WORK, Crew, Failed
from zephyrctl.feedback.completions import Asked
from zephyrctl.feedback.ratings import MOST_ASKS
from zephyrctl.recipe.schema import Recipe, TeacherChoice
from zephyrctl.records import Message, RatedPrompt
from zephyrctl.teachers.call_log import FILE, CallLog
from zephyrctl.teachers.client import identify_call, reply_of

CHARACTERS_A_TOKEN = (5.0, 3.0)
"""About four in English, more in plain prose and fewer in code: the prior for prompts, low and high."""
FEWEST_TOKENS = {ANSWERS: 16, RATINGS: 12, CRITIQUES: 40}
"""The shortest replies that are likely; of ratings, for each answer."""
MOST_ROWS = 2000
"""Prompts that are kept as a sample of what calls take."""


class Key(NamedTuple):
    """A teacher's label and what it is asked for."""

    teacher: str
    work: str


@dataclass
class Used:
    """Settled calls for one prompt; `first` leaves out those that were asked again."""

    first: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def add(self, reply: Reply, seconds: float, is_first: bool) -> None:
        """Count one more."""
        self.first += is_first
        self.calls += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        self.seconds += seconds


@dataclass
class Row:
    """What one prompt still needs, and what it used."""

    due: Counter[Key] = field(default_factory=Counter)
    low_tokens: Counter[Key] = field(default_factory=Counter)
    high_tokens: Counter[Key] = field(default_factory=Counter)
    used: dict[Key, Used] = field(default_factory=dict)

    def need(self, key: Key, characters: tuple[float, float], calls: int = 1) -> None:
        """Note calls that are to be made, with the length of each prompt, low and high."""
        self.due[key] += calls
        self.low_tokens[key] += round(calls * characters[0] / CHARACTERS_A_TOKEN[0])
        self.high_tokens[key] += round(calls * characters[1] / CHARACTERS_A_TOKEN[1])


Settled = tuple[Reply, float]
Known = Callable[[Teacher, Sequence[Message], Sampling, int], Settled | None]
"""The ledger's reply to a call and the seconds that it took, or None."""
Past = Callable[[Teacher], Sequence[tuple[int, float]]]
"""Completion tokens and seconds of every settled call of a teacher, whatever it was for."""


@dataclass(frozen=True)
class Books:
    """What a ledger tells a forecast; the default is one without a call."""

    known: Known = lambda teacher, messages, sampling, sample: None
    past: Past = lambda teacher: ()


@contextmanager
def books_of(run_path: Path) -> Iterator[Books]:
    """The books of a run; where it has no ledger, none is made."""
    if not (run_path / FILE).is_file():
        yield Books()
        return
    with CallLog(run_path) as ledger:

        def known(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Settled | None:
            found = ledger.reply(identify_call(teacher, messages, sampling, sample).key)
            return (reply_of(found), found.seconds) if found else None

        def past(teacher: Teacher) -> list[tuple[int, float]]:
            return [(said, seconds) for _, said, seconds, _ in ledger.history(teacher.name, teacher.identity)]

        yield Books(known, past)


class Looker:
    """A caller that makes no call: it answers from the ledger, and notes what is not there."""

    def __init__(self, known: Known) -> None:
        self.row = Row()
        self.models: dict[str, str] = {}
        self._known = known

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The settled reply. Raises CallFailed where there is none."""
        key = Key(teacher.label, WORK.get())
        if settled := self._known(teacher, messages, sampling, sample):
            reply, seconds = settled
            self.row.used.setdefault(key, Used()).add(reply, seconds, is_first=not sample % MOST_ASKS)
            self.models[teacher.label] = reply.model
            return reply
        length = float(sum(len(message.content) for message in messages))
        self.row.need(key, (length, length))
        raise CallFailed("this call was not made", "make it", cause="not made")


def asks_by_prompt(teacher: Teacher, method: str) -> bool:
    """True where a teacher's method is the contract's own, which makes calls; false where it does the work itself."""
    return getattr(type(teacher), method) is getattr(Teacher, method)


async def look(crew: Crew, prompt: RatedPrompt, looker: Looker) -> Row:
    """What one prompt still needs. Rules answer where their answers are to be shown to a rater that is asked."""
    looker.row = row = Row()
    rater = crew.rater
    methods = ("rate", "critique") if crew.recipe.feedback.critique else ("rate",)
    is_asked = all(asks_by_prompt(rater, method) for method in methods)
    places = crew.places(prompt)
    for place in places:
        if place.teacher.is_rule_based:
            row.need(Key(place.teacher.label, ANSWERS), (0, 0))
    answered, failures = prompt, list[Failed]()
    if is_asked or not all(place.teacher.is_rule_based for place in places):
        answered, failures = await crew.answer(prompt)
    if is_asked and not failures:
        await crew.rate(answered)
    else:
        _expect_ratings(crew, prompt, len(places) or len(prompt.completions), row)
    return row


def _expect_ratings(crew: Crew, prompt: RatedPrompt, count: int, row: Row) -> None:
    """The rating calls for answers that are not there yet, or of a rater that makes no calls for them."""
    feedback, label = crew.recipe.feedback, crew.rater.label
    asked = sum(len(message.content) + len(message.role) + 4 for message in prompt.messages)
    shown = sum(len(completion.text) for completion in prompt.completions)
    least, most = (shown, shown) if shown else (FEWEST_TOKENS[ANSWERS] * 3 * count, feedback.max_tokens * 5 * count)
    calls = len(feedback.aspects) * feedback.repeats
    overhead = len(templates.render("prompts/rate.md.jinja", messages=[], answers=[""] * count, aspect="honesty"))
    row.need(Key(label, RATINGS), (overhead + asked + least, overhead + asked + most), calls)
    if feedback.critique:
        overhead = len(templates.render("prompts/critique.md.jinja", messages=[], answer=""))
        row.need(Key(label, CRITIQUES), (overhead + asked + least / count, overhead + asked + most / count), count)


@dataclass
class Sums:
    """What all prompts still need, and what those with settled calls used."""

    prompts: int = 0
    complete: int = 0
    due: Counter[Key] = field(default_factory=Counter)
    low_tokens: Counter[Key] = field(default_factory=Counter)
    high_tokens: Counter[Key] = field(default_factory=Counter)
    rows_due: Counter[Key] = field(default_factory=Counter)
    settled: Counter[Key] = field(default_factory=Counter)
    sample: dict[Key, list[Used]] = field(default_factory=lambda: defaultdict(list))

    def add(self, row: Row) -> None:
        """Count one more prompt."""
        self.prompts += 1
        self.complete += not row.due
        self.due.update(row.due)
        self.low_tokens.update(row.low_tokens)
        self.high_tokens.update(row.high_tokens)
        self.rows_due.update(row.due.keys())
        for key, used in row.used.items():
            self.settled[key] += used.calls
            if used.first and len(self.sample[key]) < MOST_ROWS:
                self.sample[key].append(used)

    def met(self) -> list[Key]:
        """Everything that is asked of anybody, in the order in which it was met."""
        return list(dict.fromkeys((*self.due, *self.settled)))


async def look_at_all(crew: Crew, asked: Iterable[Asked], looker: Looker) -> Sums:
    """Go through all prompts."""
    sums = Sums()
    for one in asked:
        sums.add(await look(crew, one.prompt, looker))
    return sums


def idle_crew(recipe: Recipe, looker: Looker) -> Crew:
    """The teachers of a recipe, whose calls end at the looker."""

    def hire(choice: TeacherChoice) -> Teacher:
        teacher = plugins.load().teacher(choice.name, choice.options)
        if not teacher.is_rule_based:
            teacher.caller = looker
        return teacher

    return Crew.of(recipe, hire)
