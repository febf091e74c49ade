"""Choose which documents share a row of at most `capacity` tokens, so that every token is kept and rows are full.

Best fit decreasing alone leaves gaps if documents are long: 4 % of rows of 2,048 tokens with lengths like UltraChat's.
Therefore the emptiest rows are dissolved, and their documents are cut to fill the gaps of the others.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import NamedTuple

FULL = 0.985
"""Share of a row that is filled, on average, if cutting documents can achieve it."""
SHORTEST = 32
"""Fewest tokens of a piece, because what follows a cut has lost its context."""


class Piece(NamedTuple):
    """Consecutive tokens of one document."""

    document: int
    """its number"""
    start: int
    """its first token, in the document"""
    length: int


@dataclass
class PackedRow:
    """Pieces that share a row, and the tokens that are still free."""

    pieces: list[Piece]
    free: int


def pack(lengths: Sequence[int], capacity: int) -> list[list[Piece]]:
    """Rows of at most `capacity` tokens that contain every token of every document once; lengths are above 0.

    A document is cut if it is longer than a row, or to fill a gap; what follows a cut counts as a document of its own.
    Example: three documents of 60 tokens and a capacity of 100. Best fit needs three rows, but 180 tokens fill only
    ceil(180 / 98.5) = 2. Row 2 is dissolved, and its document is cut into the gaps (one digit is 10 tokens):

        row 0   00000022--
        row 1   1111112222
    """
    rows = _best_fit(_split_to_capacity(lengths, capacity), capacity)
    wanted = ceil(sum(lengths) / (capacity * FULL))  # rows, if they are 98.5 % full on average
    rows.sort(key=lambda row: row.free)
    kept, dissolved = rows[:wanted], rows[wanted:]
    left_over = _fill_gaps(kept, [piece for row in dissolved for piece in row.pieces])
    kept += _best_fit(left_over, capacity)  # those for which no gap of 32 tokens was left
    return [row.pieces for row in kept]


def wrap(lengths: Sequence[int], capacity: int, seed: int) -> list[list[Piece]]:
    """One stream of documents in random order, cut every `capacity` tokens, as in 2023; the last row may be short."""
    order = list(range(len(lengths)))
    Random(seed).shuffle(order)  # neighbours share a row and attend to each other: they should not be of one source
    rows: list[list[Piece]] = []
    row: list[Piece] = []
    free = capacity
    for document in order:
        start = 0
        while start < lengths[document]:
            length = min(free, lengths[document] - start)
            row.append(Piece(document, start, length))
            start, free = start + length, free - length
            if not free:
                rows.append(row)
                row, free = [], capacity
    return [*rows, row] if row else rows


def _split_to_capacity(lengths: Sequence[int], capacity: int) -> Iterator[Piece]:
    """Every document as one piece, or as several if it is longer than a row."""
    for document, length in enumerate(lengths):
        start = 0
        while start < length:
            taken = _cut(length - start, capacity)  # a rest of fewer than 32 tokens is avoided here too
            yield Piece(document, start, taken)
            start += taken


def _best_fit(pieces: Iterable[Piece], capacity: int) -> list[PackedRow]:
    """Put the pieces into rows, longest first, each into the row that it fills best.

    Rows are found by their free space: `free_sizes` is sorted, so that a piece costs a binary search and not a look at
    every row (1.5 million dialogues would need 10^11 comparisons).
    """
    rows: list[PackedRow] = []
    by_free: dict[int, list[PackedRow]] = defaultdict(list)
    free_sizes: list[int] = []  # the keys of by_free that have rows, in order
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        index = bisect_left(free_sizes, piece.length)  # the smallest gap that the piece fits into
        if index < len(free_sizes):
            size = free_sizes[index]
            row = by_free[size].pop()
            if not by_free[size]:
                del free_sizes[index]
        else:
            row = PackedRow([], capacity)
            rows.append(row)
        row.pieces.append(piece)
        row.free -= piece.length
        if row.free:
            if not by_free[row.free]:
                insort(free_sizes, row.free)
            by_free[row.free].append(row)
    return rows


def _fill_gaps(rows: Sequence[PackedRow], pieces: Sequence[Piece]) -> list[Piece]:
    """Cut pieces into the gaps of rows, widest gap first, and return what did not fit."""
    # ascending, so that pop() takes the widest: fewer cuts, and each cut loses the context of what follows it
    gaps = sorted((row for row in rows if row.free >= SHORTEST), key=lambda row: row.free)
    left_over = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        rest: Piece | None = piece
        while rest and gaps:
            row = gaps.pop()
            taken = _cut(rest.length, row.free)
            row.pieces.append(Piece(rest.document, rest.start, taken))
            row.free -= taken
            if row.free >= SHORTEST:
                insort(gaps, row, key=lambda row: row.free)
            rest = Piece(rest.document, rest.start + taken, rest.length - taken) if taken < rest.length else None
        if rest:
            left_over.append(rest)
    return left_over


def _cut(length: int, free: int) -> int:
    """How many of `length` tokens go into free space: all of them, or so many that the rest is not too short."""
    if length <= free:
        return length
    # of a narrow gap at most half is given up, so that something always fits
    shortest = min(SHORTEST, free // 2)
    return min(free, length - shortest)
