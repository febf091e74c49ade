"""Which instructions of a teacher are new enough, and otherwise fit, to be taken into the pool?"""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from rapidfuzz import process
from rapidfuzz.distance import Indel

from zephyrctl.recipe.schema import Novelty

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese: no blanks stand between words, and each character counts as one."""
JOINED = "\u0300-\u036f\u0900-\u0dff"
"""Accents that stand alone, and the scripts of India, whose vowel signs Python does not count among word characters."""
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{JOINED}])+(?:['’](?:(?![{UNSPACED}])[\w{JOINED}])+)*")
ROUNDING = 1e-9
MARGIN = 1e-6
"""How much lower the library is asked, as it misses texts within some 1e-9 of its cutoff; its best is counted out."""

TOO_SHORT = "instructions of the teacher that are too short"
TOO_LONG = "instructions of the teacher that are too long"
UNSERVED = "instructions of the teacher with a keyword that is left out"
TOO_LIKE = "instructions of the teacher that are too like one of the pool"


def words(text: str) -> list[str]:
    """The words of a text as they are compared and counted: without letter case and punctuation."""
    return [word.replace("’", "'") for word in WORD.findall(text.casefold())]


class Pool:
    """Instructions to be new against, by ROUGE-L F1 on words; nothing leaves it.

    ROUGE-L F1 is 2 LCS / (m + n) for texts of m and n words (Lin 2004), which is the Indel similarity. Each word of the
    pool becomes one character, so that whole instructions are compared as short strings.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._characters: dict[str, str] = {}
        self._instructions: list[str] = []
        self._lengths = array("l")
        self._places: dict[tuple[str, int], array[int]] = defaultdict(lambda: array("l"))
        """For each word, and its how-manieth time in a text, the places of the instructions that have it so often."""
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._instructions)

    def add(self, text: str) -> None:
        """Take an instruction in; a text without any word is like no other."""
        spelled = "".join(self._characters.setdefault(word, _character(len(self._characters))) for word in words(text))
        for times in _counted(spelled):
            self._places[times].append(len(self._instructions))
        self._instructions.append(spelled)
        self._lengths.append(len(spelled))

    def is_near(self, text: str, threshold: float) -> bool:
        """True where some instruction of the pool has a ROUGE-L F1 with the text of at least the threshold."""
        spelled = "".join(self._characters.get(word, "\0") for word in words(text))
        near = self._possible(spelled, threshold)
        score = Indel.normalized_similarity
        if not (best := process.extractOne(spelled, near, scorer=score, score_cutoff=max(threshold - MARGIN, 0))):
            return False
        both = len(spelled) + len(best[0])
        return both - Indel.distance(spelled, best[0]) >= threshold * both - ROUNDING

    def _possible(self, spelled: str, threshold: float) -> list[str]:
        """The instructions that share enough words with the text, in whatever order, to reach the threshold: few.

        No common subsequence is longer than the number of words that two texts share.
        """
        import numpy as np  # 0.1 s that only a build with a novelty rule pays

        found = [self._places[times] for times in _counted(spelled) if times in self._places]
        if not found:
            return []
        shared = np.bincount(np.concatenate([np.frombuffer(places, dtype="l") for places in found]))
        both = len(spelled) + np.frombuffer(self._lengths, dtype="l")[: len(shared)]
        enough = np.flatnonzero((shared > 0) & (2 * shared >= threshold * both - ROUNDING))
        return [self._instructions[place] for place in enough]


def _counted(spelled: str) -> Iterator[tuple[str, int]]:
    """Each word with how often it has come by then: what two texts share of these is what they share of words."""
    met: Counter[str] = Counter()
    for character in spelled:
        met[character] += 1
        yield character, met[character]


def refusal(text: str, rules: Novelty, pool: Pool) -> str | None:
    """The first rule that an instruction breaks, in the words it is counted under; None where it is taken.

    The rules, in order: length in words, keywords, novelty against the whole pool.
    """
    said = words(text)
    if len(said) < rules.shortest:
        return TOO_SHORT
    if len(said) > rules.longest:
        return TOO_LONG
    if _holds(said, rules.keywords):
        return UNSERVED
    if rules.rouge_l is not None and pool.is_near(text, rules.rouge_l):
        return TOO_LIKE
    return None


def _holds(said: list[str], keywords: Iterable[str]) -> bool:
    """True where a keyword, of one word or several, stands in the text as it is."""
    text = f" {' '.join(said)} "
    return any(f" {' '.join(words(keyword))} " in text for keyword in keywords)


def _character(number: int) -> str:
    """A character of its own for each word; 0 is for words that the pool does not have, half characters are left out.

    Raises ValueError after 1,112,063 different words.
    """
    return chr(number + 1 if number + 1 < 0xD800 else number + 1 + 0x800)
