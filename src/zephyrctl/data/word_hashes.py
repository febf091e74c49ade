"""Hash the words, and the runs of words, of many texts at once; every process gives the same hashes."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

# An odd base has an inverse modulo 2^64, so that dividing by base^i is multiplying by inverse^i. Arrays of uint64 wrap
# around by themselves. 0x9E37... is 2^64 over the golden ratio, rounded to an odd number (Knuth's multiplicative
# hashing); 0xD6E8... is the multiplier of degski's 64-bit mixer.
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_IS_SPACE = np.zeros(256, np.bool_)
_IS_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
"""The bytes at which `str.split` splits ASCII text."""


def hash_words(texts: Sequence[bytes]) -> tuple[Hashes, Positions]:
    """The hash of every word, text after text, and the number of words in each text.

    The hash of a word with bytes b is the sum of b[i] x base^i modulo 2^64. It is the difference of two entries of one
    running sum over all texts, divided by a power of the base: a tenth of the time of one call for each word. It needs
    some 40 bytes of memory for each byte of text.
    """
    joined = b"\n".join([*texts, b""])  # a newline after each text, so that no word crosses the end of one
    letters = np.frombuffer(joined, np.uint8)
    is_space = _IS_SPACE[letters]
    begins = np.flatnonzero(~is_space & np.concatenate([[True], is_space[:-1]]))
    ends = np.flatnonzero(is_space & np.concatenate([[False], ~is_space[:-1]]))
    # sums[k] is the sum of letter[j] x base^j for j < k. For a word at [b, e), sums[e] - sums[b] is its hash x base^b:
    # dividing by base^b gives the same hash wherever the word is.
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum(letters * _powers(_BASE, len(letters)), out=sums[1:])
    hashes = (sums[ends] - sums[begins]) * _powers(_INVERSE, len(letters))[begins]
    bounds = np.cumsum([len(text) + 1 for text in texts])  # where each text ends, its newline included
    counts = np.diff(np.searchsorted(begins, bounds), prepend=0) if texts else np.zeros(0, np.int64)
    return hashes, counts.astype(np.int64)


def hash_runs(texts: Sequence[bytes], length: int) -> tuple[Hashes, Positions, Positions]:
    """The hash of every run of `length` words, the number of its text, and the number of its first word in the text."""
    words, counts = hash_words(texts)
    if not length or len(words) < length:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    # One pass over the array for each of the `length` words of a run, and no Python work per run. Runs that cross from
    # one text into the next are computed too, and removed below.
    runs = np.zeros(len(words) - length + 1, np.uint64)
    for offset in range(length):
        runs = runs * MULTIPLIER + mixed(words[offset : offset + len(runs)])
    of_text = np.repeat(np.arange(len(counts)), counts)  # the text of each word
    starts = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)  # its number in that text
    # A run is whole if its last word is in the text of its first.
    is_whole = (starts <= counts[of_text] - length)[: len(runs)]
    return runs[is_whole], of_text[: len(runs)][is_whole], starts[: len(runs)][is_whole]


def mixed(hashes: Hashes) -> Hashes:
    """The hashes with every input bit mixed into the high bits."""
    spread: Hashes = (hashes ^ (hashes >> np.uint64(29))) * MULTIPLIER
    return spread


def _powers(base: int, count: int) -> Hashes:
    """base^0, base^1, ... modulo 2^64, at least `count` of them: one cached table for each power of two."""
    return _table(base, max(16, (count - 1).bit_length()))[:count]


@cache
def _table(base: int, bits: int) -> Hashes:
    # Doubling: base^(size + i) = base^size x base^i, so that 2^23 powers take 23 multiplications of arrays.
    table = np.ones(2**bits, np.uint64)
    size = 1
    while size < len(table):
        table[size : 2 * size] = table[:size] * np.uint64(pow(base, size, 2**64))
        size *= 2
    return table
