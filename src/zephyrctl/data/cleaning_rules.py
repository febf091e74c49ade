"""What is mended in a row and which openings leave it out; every change and every drop is a row of a ledger."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from zephyrctl.data.truecase import truecase
from zephyrctl.recipe.schema import Clean
from zephyrctl.records import Record

Kind = Literal["dialogues", "prompts"]

TRUECASE = "truecase"
UNANSWERED = "unanswered"
BAD_ROW = "bad-row"
OPENINGS = "openings."
EXACT = "duplicates.exact"
NEAR = "duplicates.near"
HELD_OUT = "held-out"
CONTAMINATED = "decontaminate"
ASKED_BEFORE = "asked-before"
"""The names of the rules in ledgers and tables; that of an opening follows its key in the recipe."""

LOSSES = {
    EXACT: "exact duplicates",
    NEAR: "near duplicates",
    HELD_OUT: "training dialogues whose prompt is held out",
    CONTAMINATED: "training rows that hold what eval asks",
    ASKED_BEFORE: "prompts asked before",
}
"""What the rows that a rule leaves out are counted under."""
CUT = "last user turns without an answer, cut"
APOSTROPHES = "'’ʼ`´"


class Change(Record):
    """What one rule made of one turn; `after` is None where it cut the turn off."""

    kind: Kind
    id: str
    row: int
    turn: int
    rule: str
    before: str
    after: str | None


class Dropped(Record):
    """A row that a rule left out, as it was at that moment, and why."""

    kind: Kind
    id: str
    row: int
    rule: str
    content: str
    like: str = ""
    similarity: float | None = None
    details: str = ""


class Place(Record):
    """Where in the input a row of the artifact stood: its number over all files, from 0."""

    row: int


@dataclass(frozen=True)
class Opening:
    """A sentence opening that no assistant turn may hold."""

    rule: str
    rarest: str
    pattern: "re.Pattern[str]"


class Rules:
    """The rules of a recipe, ready to be applied to any number of rows."""

    def __init__(self, clean: Clean) -> None:
        self.truecase = clean.truecase
        self.openings = [_opening(name, words) for name, words in clean.openings.items() if words.strip()]

    def mend(self, texts: Sequence[str]) -> Sequence[str]:
        """The turns of a row with what the rules change in them."""
        return truecase(texts) if self.truecase else texts

    def opening(self, roles: Sequence[str], texts: Sequence[str]) -> tuple[str, str] | None:
        """(rule, its words as they were found) where a sentence of an assistant turn opens so; the first rule wins."""
        if not self.openings:
            return None
        spoken = [text for role, text in zip(roles, texts, strict=True) if role == "assistant"]
        small = "\n".join(spoken).lower()
        for opening in self.openings:
            if opening.rarest in small:
                for text in spoken:
                    if found := opening.pattern.search(text):
                        return opening.rule, found["words"]
        return None


def changes(rule: str, before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    """(turn, rule, before, after) for every turn that a rule changed."""
    for turn, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is not new and old != new:
            yield turn, rule, old, new


def _opening(name: str, words: str) -> Opening:
    """Its longest word is looked for first: that is a hundred times faster, and few turns have it."""
    spelled = [re.escape(word) for word in re.sub(f"[{APOSTROPHES}]", "'", words).split()]
    pattern = r"\s+".join(spelled).replace("'", f"[{APOSTROPHES}]")
    start = r"(?:\A|[.!?…:][\"'”’)\]*_]*\s+|\n)[\s\"'“‘(\[*_>#•-]*"
    parts = re.split(rf"[{APOSTROPHES}\s]", words.lower())
    return Opening(OPENINGS + name, max(parts, key=len), re.compile(rf"{start}(?P<words>{pattern})(?!\w)", re.I))
