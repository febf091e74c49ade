"""Decide whether an instruction of the teacher is accepted: its length, its keywords, and its novelty (ROUGE-L)."""

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from rapidfuzz import process
from rapidfuzz.distance import Indel

from zephyrctl.recipe.schema import Novelty

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese write no spaces between words: each character counts as a word."""
JOINED = "\u0300-\u036f\u0900-\u0dff"
"""Combining accents, and the scripts of India, whose vowel signs are not word characters for Python."""
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{JOINED}])+(?:['’](?:(?![{UNSPACED}])[\w{JOINED}])+)*")
ROUNDING = 1e-9
MARGIN = 1e-6
"""How far the library's cutoff is below the threshold, as it misses texts within 1e-9. Its best match is recounted."""

TOO_SHORT = "instructions of the teacher that are too short"
TOO_LONG = "instructions of the teacher that are too long"
EXCLUDED = "instructions of the teacher with an excluded keyword"
TOO_SIMILAR = "instructions of the teacher that are too similar to an earlier one"


def words(text: str) -> list[str]:
    """The words of a text for comparing and counting: case-folded and without punctuation."""
    return [word.replace("’", "'") for word in WORD.findall(text.casefold())]


class Pool:
    """The accepted instructions, to which a new one is compared by ROUGE-L F1 on words.

    ROUGE-L F1 is 2 LCS / (m + n) for texts of m and n words with a longest common subsequence of LCS words (Lin 2004).
    That is the Indel similarity. Each word becomes one character, so that instructions are compared as short strings.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._characters: dict[str, str] = {}
        self._instructions: list[str] = []
        self._lengths = array("l")
        self._positions: dict[tuple[str, int], array[int]] = defaultdict(lambda: array("l"))
        """(word, k): the positions of the instructions that contain the word at least k times."""
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._instructions)

    def add(self, text: str) -> None:
        """Add an instruction. A text without any word is similar to no other."""
        # One character for each different word: rapidfuzz compares strings four times as fast as lists of words.
        spelled = "".join(self._characters.setdefault(word, _character(len(self._characters))) for word in words(text))
        for times in _counted(spelled):
            self._positions[times].append(len(self._instructions))
        self._instructions.append(spelled)
        self._lengths.append(len(spelled))

    def is_near(self, text: str, threshold: float) -> bool:
        """True if an instruction of the pool has a ROUGE-L F1 of at least the threshold with the text."""
        spelled = "".join(self._characters.get(word, "\0") for word in words(text))
        near = self._candidates(spelled, threshold)
        score = Indel.normalized_similarity
        if not (best := process.extractOne(spelled, near, scorer=score, score_cutoff=max(threshold - MARGIN, 0))):
            return False
        # Indel distance = m + n - 2 LCS, so F1 >= t is the same as (m + n) - distance >= t (m + n), without a division.
        both = len(spelled) + len(best[0])
        return both - Indel.distance(spelled, best[0]) >= threshold * both - ROUNDING

    def _candidates(self, spelled: str, threshold: float) -> list[str]:
        """The few instructions that share enough words with the text, in any order, to reach the threshold.

        A common subsequence is at most as long as the number of words that two texts share.
        """
        import numpy as np  # takes 0.1 s, which only builds with a novelty rule need

        # 2 x shared words / (m + n) is never below the F1: what stays below the threshold here need not be compared.
        lists = [self._positions[times] for times in _counted(spelled) if times in self._positions]
        if not lists:
            return []
        # How often each instruction is listed is the number of words that it shares with the text.
        shared = np.bincount(np.concatenate([np.frombuffer(positions, dtype="l") for positions in lists]))
        # `bincount` ends at the highest position that is listed, so the lengths are cut there.
        both = len(spelled) + np.frombuffer(self._lengths, dtype="l")[: len(shared)]
        enough = np.flatnonzero((shared > 0) & (2 * shared >= threshold * both - ROUNDING))
        return [self._instructions[place] for place in enough]


def _counted(spelled: str) -> Iterator[tuple[str, int]]:
    """(word, its number of occurrences so far): two texts share as many of these as they share words."""
    seen: Counter[str] = Counter()
    for character in spelled:
        seen[character] += 1
        yield character, seen[character]


def rejection(text: str, rules: Novelty, pool: Pool) -> str | None:
    """The cause under which an instruction is rejected, or None if it is accepted.

    The rules, in order: length in words, excluded keywords, novelty compared with the whole pool.
    """
    text_words = words(text)
    if len(text_words) < rules.shortest:
        return TOO_SHORT
    if len(text_words) > rules.longest:
        return TOO_LONG
    if _contains_keyword(text_words, rules.keywords):
        return EXCLUDED
    if rules.rouge_l is not None and pool.is_near(text, rules.rouge_l):
        return TOO_SIMILAR
    return None


def _contains_keyword(text_words: list[str], keywords: Iterable[str]) -> bool:
    """True if a keyword, of one word or several, is in the text."""
    text = f" {' '.join(text_words)} "
    return any(f" {' '.join(words(keyword))} " in text for keyword in keywords)


def _character(number: int) -> str:
    """The character for the word of this number: 0 is for words outside the pool, and lone surrogates are skipped.

    Raises ValueError after 1,112,063 different words.
    """
    return chr(number + 1 if number + 1 < 0xD800 else number + 1 + 0x800)
