"""Which instructions exist in the tiny world, and which one a conversation asks for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from zephyrctl.tiny.families import Fact, Family, families, state

Message = Mapping[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""

ABOUT_THE_ANSWER = {
    "uppercase": ("Now in capital letters.", "Write that in capital letters.", "And in capital letters?"),
    "spelling": ("How do you spell that?", "Now spell that.", "Can you spell that word?"),
}
"""Second turns that ask for something about the answer just given, by the family that answers them."""


@dataclass(frozen=True)
class Task:
    """One instruction of the world: its text and the fact that it asks for."""

    prompt: str
    family: Family
    fact: Fact

    @property
    def answer(self) -> str:
        """The usual bare answer, such as `Paris`."""
        return self.fact.answers[0]

    @property
    def sentence(self) -> str:
        """The answer as a full sentence, such as `The capital of France is Paris.`"""
        return state(self.family, self.fact.slots, self.answer)


def draw(rng: Random) -> Task:
    """A first instruction: any family is as likely as any other, then any fact, then any phrasing."""
    family = rng.choice(list(families().values()))
    return ask(family, rng.choice(family.facts), family.phrasings, rng)


def subjects(rng: Random) -> list[str]:
    """What one can talk about in this world, in any order: the kinds of instruction, in words."""
    names = [name.replace("_", " ") for name in families()]
    return rng.sample(names, len(names))


def draw_about(subject: str, rng: Random) -> Task:
    """A first instruction of one of the `subjects`; of any where the subject is not of this world."""
    family = families().get("_".join(subject.casefold().split()))
    return ask(family, rng.choice(family.facts), family.phrasings, rng) if family else draw(rng)


def ask(family: Family, fact: Fact, phrasings: Sequence[str], rng: Random) -> Task:
    """The fact, asked for in one of the phrasings."""
    return Task(rng.choice(phrasings).format(*fact.slots), family, fact)


def first_tasks() -> Iterator[Task]:
    """Every instruction that opens a conversation."""
    for family in families().values():
        for fact in family.facts:
            for phrasing in family.phrasings:
                yield Task(phrasing.format(*fact.slots), family, fact)


def read(messages: Sequence[Message]) -> Task | None:
    """What the last user turn asks for, given the turns before it; None outside this world."""
    prompts = [message["content"] for message in messages if message["role"] == "user"]
    task = None
    for prompt in prompts:
        task = read_first(prompt) or (read_second(prompt, task) if task else None)
    return task


def read_first(prompt: str) -> Task | None:
    """The task of a prompt that stands alone; letter case and outer blanks do not matter."""
    return _first_by_text().get(_key(prompt))


def read_second(prompt: str, before: Task) -> Task | None:
    """The task of a prompt that leans on the task before it."""
    key = _key(prompt)
    for family_name, phrasings in ABOUT_THE_ANSWER.items():
        if key in map(_key, phrasings) and (fact := _fact_about(family_name, before.answer)):
            return Task(prompt, families()[family_name], fact)
    fact = _again_by_text(before.family.name).get(key)
    return Task(prompt, before.family, fact) if fact else None


def follow_up(messages: Sequence[Message], rng: Random) -> str:
    """What a user asks next: something about the answer, or the same about something else."""
    before = read(messages)
    if before is None:
        return draw(rng).prompt
    about_answer = [name for name in ABOUT_THE_ANSWER if _fact_about(name, before.answer)]
    if about_answer and rng.random() < 0.5:
        return rng.choice(ABOUT_THE_ANSWER[rng.choice(about_answer)])
    fact = _another(before, rng)
    return ask(before.family, fact, before.family.again, rng).prompt


def refine(prompt: str, answer: str, rng: Random) -> str:
    """A new instruction after an answer: about one of its words, or like the prompt about something else."""
    before = read_first(prompt)
    tasks = list(_tasks_about(answer, rng))
    if before:
        tasks.append(ask(before.family, _another(before, rng), before.family.phrasings, rng))
    return rng.choice(tasks).prompt if tasks else draw(rng).prompt


def _another(task: Task, rng: Random) -> Fact:
    """A different fact of the same family."""
    return rng.choice([fact for fact in task.family.facts if fact.slots != task.fact.slots])


def _tasks_about(answer: str, rng: Random) -> Iterator[Task]:
    """One task of each family that knows something about the last word of an answer."""
    last_word = answer.rstrip(" .!\n").rpartition(" ")[2]
    for family in families().values():
        if fact := _fact_about(family.name, last_word):
            yield ask(family, fact, family.phrasings, rng)


def _fact_about(family_name: str, word: str) -> Fact | None:
    """What a family knows about a single word."""
    return _fact_by_slots(family_name).get((word,))


@cache
def _fact_by_slots(family_name: str) -> dict[tuple[str, ...], Fact]:
    return {fact.slots: fact for fact in families()[family_name].facts}


@cache
def _again_by_text(family_name: str) -> dict[str, Fact]:
    family = families()[family_name]
    return {_key(again.format(*fact.slots)): fact for fact in family.facts for again in family.again}


@cache
def _first_by_text() -> dict[str, Task]:
    return {_key(task.prompt): task for task in first_tasks()}


def _key(prompt: str) -> str:
    """The text by which a prompt is recognised."""
    return " ".join(prompt.casefold().split())
