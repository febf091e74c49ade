"""The rules that change turns and drop rows, and the ledger rows that record what they did."""

import re
from collections.abc import Iterator, Mapping, Sequence
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
DUPLICATE_PROMPT = "duplicates.prompts"
"""The names of the rules in ledgers and metrics. The name of an opening follows `openings.`, as in the recipe."""

FORMER_NAMES: Mapping[str, str] = {"asked-before": DUPLICATE_PROMPT}
"""Rules that older runs call by another name."""

CAUSES: Mapping[str, str] = {
    EXACT: "exact duplicates",
    NEAR: "near duplicates",
    HELD_OUT: "training dialogues whose prompt is held out",
    CONTAMINATED: "training rows that contain a benchmark prompt",
    DUPLICATE_PROMPT: "duplicate prompts",
}
"""The cause under which the manifest counts the rows that a rule dropped."""
CUT = "last user turns without an answer, cut"
APOSTROPHES = "'’ʼ`´"


class TurnChange(Record):
    """What a rule changed in one turn; `after` is None if it removed the turn."""

    kind: Kind
    id: str
    row: int
    turn: int
    rule: str
    before: str
    after: str | None


class DroppedRow(Record):
    """A row that a rule dropped, with its content at that moment and the reason."""

    kind: Kind
    id: str
    row: int
    rule: str
    content: str
    like: str = ""
    similarity: float | None = None
    details: str = ""


class InputRow(Record):
    """The number that a row of the artifact had in the input: counted over all files, from 0."""

    row: int


@dataclass(frozen=True)
class Opening:
    """Words with which no sentence of the assistant may begin."""

    rule: str
    longest_word: str
    pattern: "re.Pattern[str]"


class CleaningRules:
    """The rules of `build.clean`, compiled once for any number of rows."""

    def __init__(self, clean: Clean) -> None:
        self.is_truecasing = clean.truecase
        self.openings = [_opening(name, words) for name, words in clean.openings.items() if words.strip()]

    def repair(self, texts: Sequence[str]) -> Sequence[str]:
        """The turns of a row after truecasing; the same object if the recipe asks for none."""
        return truecase(texts) if self.is_truecasing else texts

    def find_opening(self, roles: Sequence[str], texts: Sequence[str]) -> tuple[str, str] | None:
        """(rule, the words as they were written) if a sentence of the assistant has a forbidden opening.

        The first rule of the recipe that matches wins.
        """
        if not self.openings:
            return None
        answers = [text for role, text in zip(roles, texts, strict=True) if role == "assistant"]
        lowered = "\n".join(answers).lower()
        for opening in self.openings:
            if opening.longest_word in lowered:
                for text in answers:
                    if match := opening.pattern.search(text):
                        return opening.rule, match["words"]
        return None


def list_changes(rule: str, before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[int, str, str, str]]:
    """(turn, rule, before, after) for every turn that a rule changed."""
    for turn, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is not new and old != new:
            yield turn, rule, old, new


def _opening(name: str, words: str) -> Opening:
    """Compile the words of a rule: any apostrophe, any white space, at the start of a sentence or of a line.

    A plain search for the longest word comes before the pattern: it is a hundred times faster, and few turns have it.
    """
    escaped = [re.escape(word) for word in re.sub(f"[{APOSTROPHES}]", "'", words).split()]
    pattern = r"\s+".join(escaped).replace("'", f"[{APOSTROPHES}]")
    sentence_start = r"(?:\A|[.!?…:][\"'”’)\]*_]*\s+|\n)[\s\"'“‘(\[*_>#•-]*"
    parts = re.split(rf"[{APOSTROPHES}\s]", words.lower())
    compiled = re.compile(rf"{sentence_start}(?P<words>{pattern})(?!\w)", re.I)
    return Opening(OPENINGS + name, max(parts, key=len), compiled)
