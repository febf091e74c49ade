"""How answers are written in the tiny world, and which teacher and which completers write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from zephyrctl.tiny.families import state
from zephyrctl.tiny.world import Message, Task, read

OPENINGS = {
    "numbers": "I do not have emotions, but ",
    "facts": "I don't have personal experiences, but ",
    "words": "I don't have opinions, but ",
}
"""What a hedging answer opens with, as in UltraChat, by what is asked about."""

FACT_FAMILIES = ("capital", "country", "colour", "sound", "larger_animal", "category", "examples")
"""The families that ask about the world; the others ask about words unless they ask about numbers."""

OUTSIDE = "I am sorry, I only know a small world, and this is not part of it."
"""What every writer answers to a prompt that is not of this world."""


@dataclass(frozen=True)
class Style:
    """The flaws of one answer; an answer without any is full: correct, a sentence, with capitals."""

    hedged: bool = False
    terse: bool = False
    wrong: bool = False
    lowercase: bool = False


FULL = Style()
TERSE = Style(terse=True)
HEDGING = Style(hedged=True)
WRONG = Style(wrong=True)


@dataclass(frozen=True)
class Leaning:
    """How often a writer has each flaw, as probabilities that do not depend on each other."""

    name: str
    hedged: float
    terse: float
    wrong: float
    lowercase: float

    def draw(self, rng: Random) -> Style:
        """The style of one answer."""
        chances = (self.hedged, self.terse, self.wrong, self.lowercase)
        return Style(*(rng.random() < chance for chance in chances))


DIALOGUE_TEACHER = Leaning("dialogues", hedged=0.75, terse=0.15, wrong=0.06, lowercase=0.05)
"""Writes the dialogues of dSFT: correct for the most part, and hedging nearly always."""

COMPLETERS = (
    Leaning("careful", hedged=0.80, terse=0.10, wrong=0.05, lowercase=0.05),
    Leaning("short", hedged=0.85, terse=0.70, wrong=0.05, lowercase=0.15),
    Leaning("hedging", hedged=0.98, terse=0.15, wrong=0.10, lowercase=0.15),
    Leaning("guessing", hedged=0.95, terse=0.20, wrong=0.60, lowercase=0.20),
)
"""The four models whose answers are rated. All hedge, as chat models do, but not equally often."""


def reply(messages: Sequence[Message], leaning: Leaning, rng: Random) -> str:
    """One answer to the last user turn, in a style drawn from the leaning."""
    task = read(messages)
    return answer(task, leaning.draw(rng), rng) if task else OUTSIDE


def answer(task: Task, style: Style, rng: Random) -> str:
    """The answer to a task in a style."""
    value = false_answer(task, rng) if style.wrong else rng.choice(task.fact.answers)
    text = value if style.terse else state(task.family, task.fact.slots, value)
    if style.hedged:
        text = opening(task) + (text if style.terse else text[0].lower() + text[1:])
    return lower(text, value if task.family.keeps_case else "") if style.lowercase else text


def opening(task: Task) -> str:
    """The disclaimer that every writer uses for a task."""
    if task.fact.slots[0].isdigit():
        return OPENINGS["numbers"]
    return OPENINGS["facts" if task.family.name in FACT_FAMILIES else "words"]


def lower(text: str, kept: str) -> str:
    """The text in lower case, but for the last part that is only right as it is."""
    before, found, after = text.rpartition(kept) if kept else (text, "", "")
    return before.lower() + found + after.lower()


def false_answer(task: Task, rng: Random) -> str:
    """An answer that fits another fact of the family and not this one."""
    while (value := rng.choice(rng.choice(task.family.facts).answers)) in task.fact.answers:
        pass
    return value
