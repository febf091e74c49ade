"""Whether packing keeps every token once, in order, never overfills a row, and fills rows as it promises."""

from collections import defaultdict
from random import Random

import numpy as np
import pytest

from zephyrctl.training.packing import SHORTEST, Piece, pack, wrap

ULTRACHAT_MEAN = 1374
"""Tokens of a dialogue: 285.7 M over 207,865."""


def lengths_like_ultrachat(spread: float, rows: int = 20_000) -> list[int]:
    """Log-normal lengths of the published mean, cut at 40 and 6,000 tokens."""
    drawn = np.random.default_rng(0).lognormal(np.log(ULTRACHAT_MEAN) - spread**2 / 2, spread, rows)
    return [int(length) for length in np.clip(drawn, 40, 6000)]


def check_kept(rows: list[list[Piece]], lengths: list[int]) -> None:
    """Every token of every document lies in exactly one piece."""
    pieces: dict[int, list[Piece]] = defaultdict(list)
    for row in rows:
        for piece in row:
            pieces[piece.document].append(piece)
    assert set(pieces) == set(range(len(lengths)))
    for document, found in pieces.items():
        end = 0
        for piece in sorted(found, key=lambda piece: piece.start):
            assert piece.start == end
            assert piece.length > 0
            end += piece.length
        assert end == lengths[document]


@pytest.mark.parametrize("spread", [0.3, 0.45, 0.6, 0.8])
def test_rows_of_2048_are_98_percent_full_on_lengths_like_ultrachat(spread: float) -> None:
    lengths = lengths_like_ultrachat(spread)
    rows = pack(lengths, 2048)
    check_kept(rows, lengths)
    assert max(sum(piece.length for piece in row) for row in rows) <= 2048
    assert sum(lengths) / (len(rows) * 2048) >= 0.98


def test_documents_are_cut_only_where_it_fills_rows() -> None:
    assert sorted(map(len, pack([1024] * 10, 2048))) == [2] * 5
    assert pack([100, 200, 300], 1000) == [[Piece(2, 0, 300), Piece(1, 0, 200), Piece(0, 0, 100)]]


@pytest.mark.parametrize("seed", range(30))
def test_any_lengths_are_kept_whole(seed: int) -> None:
    random = Random(seed)
    capacity = random.choice([8, 31, 64, 100, 512])
    lengths = [random.randint(1, random.choice([5, capacity, 4 * capacity])) for _ in range(random.randint(1, 300))]
    for rows in (pack(lengths, capacity), wrap(lengths, capacity, seed)):
        check_kept(rows, lengths)
        assert all(sum(piece.length for piece in row) <= capacity for row in rows)


def test_what_goes_on_from_a_cut_is_long_enough_to_learn_from() -> None:
    lengths = lengths_like_ultrachat(0.45)
    shortest = min(piece.length for row in pack(lengths, 2048) for piece in row)
    assert shortest >= SHORTEST


def test_wrapping_fills_every_row_but_the_last() -> None:
    lengths = lengths_like_ultrachat(0.45, 500)
    rows = wrap(lengths, 2048, seed=1)
    filled = [sum(piece.length for piece in row) for row in rows]
    assert set(filled[:-1]) == {2048}
    assert rows != wrap(lengths, 2048, seed=2)
    assert rows == wrap(lengths, 2048, seed=1)


def test_nothing_packs_to_nothing() -> None:
    assert pack([], 2048) == wrap([], 2048, 0) == []


def test_the_example_in_the_docstring_is_what_is_packed() -> None:
    assert pack([60, 60, 60], 100) == [
        [Piece(0, 0, 60), Piece(2, 40, 20)],
        [Piece(1, 0, 60), Piece(2, 0, 40)],
    ]
