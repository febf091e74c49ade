"""Find the calls of a collection that are not in the call log yet, without making any."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zephyrctl import plugins, templates
from zephyrctl.contracts import Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed
from zephyrctl.feedback.annotators import ANSWERS, CRITIQUES, RATINGS, WORK, Annotators, FailedCall
from zephyrctl.feedback.prompts import SplitPrompt
from zephyrctl.feedback.ratings import MOST_ASKS
from zephyrctl.recipe.schema import TeacherChoice
from zephyrctl.records import Message, RatedPrompt
from zephyrctl.teachers.costs import CHARACTERS_PER_TOKEN, CallHistory, CallUsage

SHORTEST_REPLY_TOKENS = {ANSWERS: 16, RATINGS: 12, CRITIQUES: 40}
"""The shortest replies that are likely; of ratings, for each answer."""
MOST_SAMPLES = 2000
"""Prompts that are kept as a sample of what calls use."""


class WorkKey(NamedTuple):
    """A teacher's label and the work that it is asked to do."""

    teacher: str
    work: str


@dataclass
class PromptCalls:
    """The calls that one prompt still needs, and what its settled calls used."""

    due: Counter[WorkKey] = field(default_factory=Counter)
    low_tokens: Counter[WorkKey] = field(default_factory=Counter)
    """Prompt tokens of the calls that are due, by the low prior of `CHARACTERS_PER_TOKEN`."""
    high_tokens: Counter[WorkKey] = field(default_factory=Counter)
    used: dict[WorkKey, CallUsage] = field(default_factory=dict)

    def need(self, key: WorkKey, characters: tuple[float, float], calls: int = 1) -> None:
        """Add calls that are due; `characters` is the length of each prompt, low and high."""
        low, high = CHARACTERS_PER_TOKEN
        self.due[key] += calls
        self.low_tokens[key] += round(calls * characters[0] / low)
        self.high_tokens[key] += round(calls * characters[1] / high)


class DryRunCaller:
    """A caller that makes no call: it answers from the call log, and notes the calls that are not in it."""

    def __init__(self, history: CallHistory) -> None:
        self.calls = PromptCalls()
        """The calls of the prompt that is being looked at."""
        self.models: dict[str, str] = {}
        """The model that a server reported, by the label of its teacher."""
        self._history = history

    def make_teacher(self, choice: TeacherChoice) -> Teacher:
        """A teacher whose calls end here; rules work as usual."""
        teacher = plugins.load().teacher(choice.name, choice.options)
        if not teacher.is_rule_based:
            teacher.caller = self
        return teacher

    async def reply(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> Reply:
        """The settled reply. Raises CallFailed if there is none."""
        key = WorkKey(teacher.label, WORK.get())
        if past := self._history.find(teacher, messages, sampling, sample):
            # `sample` is repeat x MOST_ASKS + ask: a multiple of MOST_ASKS is the first ask of a repeat.
            self.calls.used.setdefault(key, CallUsage()).add(past, is_first=not sample % MOST_ASKS)
            self.models[teacher.label] = past.reply.model
            return past.reply
        length = float(sum(len(message.content) for message in messages))
        self.calls.need(key, (length, length))
        raise CallFailed("this call was not made", "make it", cause="not made")


def works_by_calls(teacher: Teacher, method: str) -> bool:
    """True if a teacher's method is the contract's own, which makes calls; false if the teacher overrides it."""
    return getattr(type(teacher), method) is getattr(Teacher, method)


async def find_calls(annotators: Annotators, prompt: RatedPrompt, caller: DryRunCaller) -> PromptCalls:
    """The calls that one prompt still needs.

    Rules do answer here if a rater is asked by calls: the length of its prompts depends on their answers.
    """
    caller.calls = calls = PromptCalls()
    methods = ("rate", "critique") if annotators.feedback.critique else ("rate",)
    rates_by_calls = all(works_by_calls(annotators.rater, method) for method in methods)
    slots = annotators.slots(prompt)
    for slot in slots:
        if slot.teacher.is_rule_based:
            calls.need(WorkKey(slot.teacher.label, ANSWERS), (0, 0))
    answered, failures = prompt, list[FailedCall]()
    if rates_by_calls or not all(slot.teacher.is_rule_based for slot in slots):
        answered, failures = await annotators.answer(prompt)
    if rates_by_calls and not failures:
        await annotators.rate(answered)
    else:
        _expect_ratings(annotators, prompt, len(slots) or len(prompt.completions), calls)
    return calls


def _expect_ratings(annotators: Annotators, prompt: RatedPrompt, answers: int, calls: PromptCalls) -> None:
    """Add the rating calls for answers that do not exist yet, or for a rater that makes no calls."""
    feedback, label = annotators.feedback, annotators.rater.label
    # Characters of a rating prompt: the template's own, the conversation, and the answers. Answers that do not exist
    # have from a few tokens (3 characters each) to the most allowed (5 characters each).
    conversation = sum(len(message.content) + len(message.role) + 4 for message in prompt.messages)
    existing = sum(len(completion.text) for completion in prompt.completions)
    low = existing or SHORTEST_REPLY_TOKENS[ANSWERS] * 3 * answers
    high = existing or feedback.max_tokens * 5 * answers
    template = len(templates.render("prompts/rate.md.jinja", messages=[], answers=[""] * answers, aspect="honesty"))
    fixed = template + conversation
    calls.need(WorkKey(label, RATINGS), (fixed + low, fixed + high), len(feedback.aspects) * feedback.repeats)
    if feedback.critique:
        fixed = len(templates.render("prompts/critique.md.jinja", messages=[], answer="")) + conversation
        calls.need(WorkKey(label, CRITIQUES), (fixed + low / answers, fixed + high / answers), answers)


@dataclass
class CallTotals:
    """The calls that all prompts still need, and what settled calls used."""

    prompts: int = 0
    complete: int = 0
    """Prompts whose calls are all settled."""
    due: Counter[WorkKey] = field(default_factory=Counter)
    low_tokens: Counter[WorkKey] = field(default_factory=Counter)
    high_tokens: Counter[WorkKey] = field(default_factory=Counter)
    prompts_due: Counter[WorkKey] = field(default_factory=Counter)
    """Prompts that need at least one such call."""
    settled: Counter[WorkKey] = field(default_factory=Counter)
    sample: dict[WorkKey, list[CallUsage]] = field(default_factory=lambda: defaultdict(list))

    def add(self, calls: PromptCalls) -> None:
        """Count another prompt."""
        self.prompts += 1
        self.complete += not calls.due
        self.due.update(calls.due)
        self.low_tokens.update(calls.low_tokens)
        self.high_tokens.update(calls.high_tokens)
        self.prompts_due.update(calls.due.keys())
        for key, used in calls.used.items():
            self.settled[key] += used.calls
            if used.first and len(self.sample[key]) < MOST_SAMPLES:
                self.sample[key].append(used)

    def works(self) -> list[WorkKey]:
        """All work that is due or settled, in the order in which it was found."""
        return list(dict.fromkeys((*self.due, *self.settled)))


async def survey(annotators: Annotators, rows: Iterable[SplitPrompt], caller: DryRunCaller) -> CallTotals:
    """The calls of all prompts."""
    totals = CallTotals()
    for row in rows:
        totals.add(await find_calls(annotators, row.prompt, caller))
    return totals
