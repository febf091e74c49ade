"""The instructions of the tiny world, and which of them a conversation asks for."""

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
"""Second turns that ask something about the answer just given, by the family that answers them."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text and the fact that it asks for."""

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


def draw(rng: Random) -> Instruction:
    """A random first instruction: first the family, then the fact, then the phrasing, each uniformly."""
    family = rng.choice(list(families().values()))
    return ask(family, rng.choice(family.facts), family.phrasings, rng)


def subjects(rng: Random) -> list[str]:
    """The kinds of instruction, in words and in random order."""
    names = [name.replace("_", " ") for name in families()]
    return rng.sample(names, len(names))


def draw_about(subject: str, rng: Random) -> Instruction:
    """A random first instruction of a subject; of any subject if this one is unknown."""
    family = families().get("_".join(subject.casefold().split()))
    return ask(family, rng.choice(family.facts), family.phrasings, rng) if family else draw(rng)


def ask(family: Family, fact: Fact, phrasings: Sequence[str], rng: Random) -> Instruction:
    """An instruction that asks for the fact in a random phrasing."""
    return Instruction(rng.choice(phrasings).format(*fact.slots), family, fact)


def first_instructions() -> Iterator[Instruction]:
    """Every instruction that opens a conversation."""
    for family in families().values():
        for fact in family.facts:
            for phrasing in family.phrasings:
                yield Instruction(phrasing.format(*fact.slots), family, fact)


def read(messages: Sequence[Message]) -> Instruction | None:
    """The instruction of the last user turn, given the turns before it; None if it is not from this world."""
    prompts = [message["content"] for message in messages if message["role"] == "user"]
    instruction = None
    for prompt in prompts:
        instruction = read_first(prompt) or (read_second(prompt, instruction) if instruction else None)
    return instruction


def read_first(prompt: str) -> Instruction | None:
    """The instruction of a first prompt; letter case and spacing do not matter."""
    return _first_by_text().get(_key(prompt))


def read_second(prompt: str, before: Instruction) -> Instruction | None:
    """The instruction of a prompt that refers to the instruction before it."""
    key = _key(prompt)
    for family_name, phrasings in ABOUT_THE_ANSWER.items():
        if key in map(_key, phrasings) and (fact := _fact_about(family_name, before.answer)):
            return Instruction(prompt, families()[family_name], fact)
    fact = _again_by_text(before.family.name).get(key)
    return Instruction(prompt, before.family, fact) if fact else None


def follow_up(messages: Sequence[Message], rng: Random) -> str:
    """What a user asks next: something about the answer, or the same question about something else."""
    before = read(messages)
    if before is None:
        return draw(rng).prompt
    about_answer = [name for name in ABOUT_THE_ANSWER if _fact_about(name, before.answer)]
    if about_answer and rng.random() < 0.5:
        return rng.choice(ABOUT_THE_ANSWER[rng.choice(about_answer)])
    fact = _another(before, rng)
    return ask(before.family, fact, before.family.again, rng).prompt


def refine(prompt: str, answer: str, rng: Random) -> str:
    """A new instruction after an answer: about its last word, or the same question about something else."""
    before = read_first(prompt)
    instructions = list(_tasks_about(answer, rng))
    if before:
        instructions.append(ask(before.family, _another(before, rng), before.family.phrasings, rng))
    return rng.choice(instructions).prompt if instructions else draw(rng).prompt


def _another(instruction: Instruction, rng: Random) -> Fact:
    """A different fact of the same family."""
    return rng.choice([fact for fact in instruction.family.facts if fact.slots != instruction.fact.slots])


def _tasks_about(answer: str, rng: Random) -> Iterator[Instruction]:
    """One instruction of each family that has a fact about the last word of an answer."""
    last_word = answer.rstrip(" .!\n").rpartition(" ")[2]
    for family in families().values():
        if fact := _fact_about(family.name, last_word):
            yield ask(family, fact, family.phrasings, rng)


def _fact_about(family_name: str, word: str) -> Fact | None:
    """The fact of a family about a single word; None if there is none."""
    return _fact_by_slots(family_name).get((word,))


@cache
def _fact_by_slots(family_name: str) -> dict[tuple[str, ...], Fact]:
    return {fact.slots: fact for fact in families()[family_name].facts}


@cache
def _again_by_text(family_name: str) -> dict[str, Fact]:
    family = families()[family_name]
    return {_key(again.format(*fact.slots)): fact for fact in family.facts for again in family.again}


@cache
def _first_by_text() -> dict[str, Instruction]:
    return {_key(instruction.prompt): instruction for instruction in first_instructions()}


def _key(prompt: str) -> str:
    """The text by which a prompt is looked up."""
    return " ".join(prompt.casefold().split())
