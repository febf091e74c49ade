"""Write answers in the tiny world, with the flaws of the dialogue teacher and of the four completers."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from zephyrctl.tiny.families import state
from zephyrctl.tiny.world import Instruction, Message, read

OPENINGS = {
    "numbers": "I do not have emotions, but ",
    "facts": "I don't have personal experiences, but ",
    "words": "I don't have opinions, but ",
}
"""The opening of a hedging answer, as in UltraChat, by subject."""

FACT_FAMILIES = ("capital", "country", "colour", "sound", "larger_animal", "category", "examples")
"""The families that ask about the world. The others ask about words or numbers."""

OUTSIDE = "I am sorry, I only know a small world, and this is not part of it."
"""The answer to a prompt that is not from this world."""


@dataclass(frozen=True)
class Style:
    """The flaws of one answer. An answer without flaws is correct, a full sentence, and has its capital letters."""

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
    """How often a writer has each flaw, as independent probabilities."""

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
"""Writes the dialogues of dSFT: mostly correct, and nearly always hedging."""

COMPLETERS = (
    Leaning("careful", hedged=0.80, terse=0.10, wrong=0.05, lowercase=0.05),
    Leaning("short", hedged=0.85, terse=0.70, wrong=0.05, lowercase=0.15),
    Leaning("hedging", hedged=0.98, terse=0.15, wrong=0.10, lowercase=0.15),
    Leaning("guessing", hedged=0.95, terse=0.20, wrong=0.60, lowercase=0.20),
)
"""The four models whose answers are rated. All hedge, but not equally often."""


def reply(messages: Sequence[Message], leaning: Leaning, rng: Random) -> str:
    """One answer to the last user turn, in a style drawn from the leaning."""
    instruction = read(messages)
    return answer(instruction, leaning.draw(rng), rng) if instruction else OUTSIDE


def answer(instruction: Instruction, style: Style, rng: Random) -> str:
    """The answer to an instruction in a style."""
    value = false_answer(instruction, rng) if style.wrong else rng.choice(instruction.fact.answers)
    text = value if style.terse else state(instruction.family, instruction.fact.slots, value)
    if style.hedged:
        if not style.terse:
            text = text[0].lower() + text[1:]
        text = opening(instruction) + text
    if not style.lowercase:
        return text
    return lower(text, kept=value if instruction.family.keeps_case else "")


def opening(instruction: Instruction) -> str:
    """The disclaimer that opens a hedging answer."""
    if instruction.fact.slots[0].isdigit():
        return OPENINGS["numbers"]
    return OPENINGS["facts" if instruction.family.name in FACT_FAMILIES else "words"]


def lower(text: str, kept: str) -> str:
    """The text in lower case, except for `kept`, whose case is part of the answer."""
    before, unchanged, after = text.rpartition(kept) if kept else (text, "", "")
    return before.lower() + unchanged + after.lower()


def false_answer(instruction: Instruction, rng: Random) -> str:
    """A wrong answer: one that is right for another fact of the family."""
    while (value := rng.choice(rng.choice(instruction.family.facts).answers)) in instruction.fact.answers:
        pass
    return value
