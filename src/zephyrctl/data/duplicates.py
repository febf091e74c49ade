"""Find rows that repeat an earlier row: the same turns, or nearly the same words.

Near duplicates have sets of word 5-grams with at least a given Jaccard similarity. Candidates are found by MinHash
signatures cut into bands (locality-sensitive hashing); each candidate is then verified on the n-grams themselves.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from zephyrctl.data.word_hashes import Hashes, Positions, hash_runs, mixed

Mask = npt.NDArray[np.bool_]

WORDS = 5
"""Words of a shingle: shorter ones are shared by chance, longer ones only by copies."""
PERMUTATIONS = 128
RECALL = 0.99
"""The share of pairs at the threshold that must become candidates."""
KEY_BYTES = 16
SHORT = 1000
"""A dialogue of so many characters is assumed to have the words of a shingle, without counting them."""
LONGEST = 2**20
GROUP = 2**17
"""Bytes of text that are hashed at once, so that the arrays stay in the processor's cache."""

_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
"""Scripts without spaces between words: each character counts as a word."""


def content_key(roles: Sequence[str], texts: Sequence[str]) -> bytes:
    """16 bytes that are equal for equal turns (XXH3: a tenth of the time of a cryptographic hash)."""
    return xxh3_128_digest("\0".join(chain(roles, texts)).encode())


def firsts(keys: "npt.NDArray[np.bytes_]") -> Positions:
    """For every key, the position of its first occurrence."""
    if not len(keys):
        return np.zeros(0, np.int64)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def layout(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the narrowest that make candidates of 99 of 100 pairs at the threshold.

    A pair of similarity s becomes a candidate with probability 1 - (1 - s^rows)^bands.
    """
    # More rows per band make fewer false candidates, so the search begins with the most. For 0.8 it ends at 21 bands of
    # 6: candidates are 99.8 % of the pairs at 0.8, 28 % at 0.5 and 1.5 % at 0.3.
    for rows in range(PERMUTATIONS // 2, 0, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return PERMUTATIONS, 1


def shingles(dialogues: Sequence[Sequence[str]]) -> tuple[Hashes, Positions]:
    """The hashes of the word 5-grams of all dialogues in one array, and the offsets of each dialogue in it.

    A dialogue of fewer words has one shingle. Of a dialogue beyond a megabyte, the first megabyte counts.
    """
    parts: list[Hashes] = []
    counts: list[Positions] = []
    for texts in _by_size([_spaced(" ".join(dialogue)) for dialogue in dialogues]):
        hashes, of_text, _ = hash_runs(texts, WORDS)
        parts.append(hashes)
        counts.append(np.bincount(of_text, minlength=len(texts)))  # at least 1 each: `_spaced` pads short texts
    if not parts:
        return np.zeros(0, np.uint64), np.zeros(1, np.int64)
    return np.concatenate(parts), np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)


def sketch(dialogues: Sequence[Sequence[str]], threshold: float) -> Hashes:
    """(dialogues, bands): one number for each band of the MinHash signature. Rows that share a number are candidates.

    A signature of 128 minima is cut into bands of `rows` minima, and each band is hashed into one number.
    """
    from rensa import RMinHash  # type: ignore[import-untyped]

    hashes, offsets = shingles(dialogues)
    bands, rows = layout(threshold)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), PERMUTATIONS, 0)
    matrix = np.array(digests.to_rows(), np.uint64).reshape(len(dialogues), PERMUTATIONS)[:, : bands * rows]
    in_bands = matrix.reshape(len(dialogues), bands, rows)
    # Two sets have the same minimum under a random permutation with the probability of their Jaccard similarity
    # (Broder 1997). All minima of a band are mixed into one 8-byte number: 168 bytes for each dialogue, not 1 kB.
    numbers = np.zeros(in_bands.shape[:2], np.uint64)
    for row in range(rows):
        numbers = mixed(numbers) + in_bands[:, :, row]
    return numbers


def candidates(bands: Hashes, is_kept: Mask) -> Iterator[list[int]]:
    """Groups of rows that share a band, directly or through other rows (union-find), each in the order of the input."""
    parents: dict[int, int] = {}  # only of rows that share a band with another row
    for column in range(bands.shape[1]):
        for first, other in _shared(bands[:, column], is_kept):
            left, right = _root(parents, first), _root(parents, other)
            parents[max(left, right)] = min(left, right)  # a root is the earliest row of its group
    rooted = sorted((_root(parents, row), row) for row in parents)
    for _, group in groupby(rooted, key=itemgetter(0)):
        yield [row for _, row in group]


def repeats(
    group: Sequence[int], bands: Hashes, threshold: float, shingles_of: Callable[[int], Hashes]
) -> Iterator[tuple[int, int, float]]:
    """(row, the earlier row that it repeats, their similarity) for the rows of a group that repeat another.

    Rows are compared with kept rows only, so that of a chain of small changes the far end is kept.
    """
    kept: dict[tuple[int, int], list[int]] = {}  # (band, its number): the kept rows that have it
    for row in group:
        keys = list(enumerate(bands[row].tolist()))
        shingles = shingles_of(row)
        # Rows of a group that share no band themselves are not compared: they met through a third row.
        for other in sorted({other for key in keys for other in kept.get(key, ())}):
            if (similarity := jaccard(shingles, shingles_of(other))) >= threshold:
                yield row, other, similarity
                break
        else:
            for key in keys:
                kept.setdefault(key, []).append(row)


def jaccard(left: Hashes, right: Hashes) -> float:
    """The size of the intersection over the size of the union of two sets of distinct hashes."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - shared
    return shared / union if union else 1.0


def _spaced(text: str) -> bytes:
    """The lower-cased text with spaces between words, padded to the words of one shingle."""
    if not text.isascii():
        text = _SPACELESS.sub(r" \g<0> ", text)
    if len(text) < SHORT and (missing := WORDS - len(text.split())) > 0:
        text += " ~" * missing
    return text.lower().encode()[:LONGEST]


def _by_size(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The texts in groups of at most GROUP bytes: hashing takes 40 times as much memory."""
    group: list[bytes] = []
    size = 0
    for text in texts:
        if group and size + len(text) > GROUP:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _shared(values: Hashes, is_kept: Mask) -> Iterator[tuple[int, int]]:
    """(first row, another row) for every kept row that has the same number as an earlier kept row."""
    rows = np.flatnonzero(is_kept)
    order = rows[np.argsort(values[rows], kind="stable")]
    ordered = values[order]
    is_new = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if len(order) else np.zeros(0, bool)
    # Sorted by value: each run of equal values begins where is_new, and its first row is the earliest.
    first = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))] if len(order) else order
    yield from zip(first[~is_new].tolist(), order[~is_new].tolist(), strict=True)


def _root(parents: dict[int, int], row: int) -> int:
    while (parent := parents.setdefault(row, row)) != row:
        parents[row] = row = parents.setdefault(parent, parent)
    return row
