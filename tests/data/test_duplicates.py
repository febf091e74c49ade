"""Whether rows that repeat earlier ones are found, all of them, each with the row that it repeats."""

from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest

from zephyrctl.data import duplicates
from zephyrctl.data.word_hashes import hash_runs, hash_words

WORDS = [f"word{number}" for number in range(3000)]


def dialogue(rng: Random, words: int = 120) -> list[str]:
    """Two turns of random words."""
    return [" ".join(rng.choices(WORDS, k=words // 4)), " ".join(rng.choices(WORDS, k=words * 3 // 4))]


def changed(texts: list[str], rng: Random, words: int) -> list[str]:
    """The dialogue with some words of its last turn replaced."""
    last = texts[-1].split()
    for place in rng.sample(range(len(last)), words):
        last[place] = "another"
    return [*texts[:-1], " ".join(last)]


def shingle_sets(dialogues: list[list[str]]) -> list[set[str]]:
    """The word 5-grams of each dialogue, by themselves and not by what is tested."""
    words = [" ".join(texts).lower().split() for texts in dialogues]
    return [{" ".join(some[start : start + 5]) for start in range(max(1, len(some) - 4))} for some in words]


def found(dialogues: list[list[str]], threshold: float) -> dict[int, tuple[int, float]]:
    """{row: (the row that it repeats, similarity)}."""
    bands = duplicates.sketch(dialogues, threshold)
    hashes, offsets = duplicates.shingles(dialogues)
    sets = [np.unique(hashes[offsets[row] : offsets[row + 1]]) for row in range(len(dialogues))]
    groups = duplicates.candidates(bands, np.ones(len(dialogues), np.bool_))
    repeated = (hit for group in groups for hit in duplicates.repeats(group, bands, threshold, lambda row: sets[row]))
    return {row: (other, similarity) for row, other, similarity in repeated}


def test_words_and_runs_have_numbers_of_their_own_wherever_they_stand() -> None:
    texts = [b"one two  two", b"", b"\tthree\n", b"two three one two"]
    hashes, counts = hash_words(texts)
    assert counts.tolist() == [3, 0, 1, 4]
    said = [word for text in texts for word in text.split()]
    assert len(set(zip(said, hashes.tolist(), strict=True))) == len(set(said)) == len(set(hashes.tolist()))
    runs, places, starts = hash_runs(texts, 2)
    assert list(zip(places.tolist(), starts.tolist(), strict=True)) == [(0, 0), (0, 1), (3, 0), (3, 1), (3, 2)]
    assert runs[0] == runs[4] and len(set(runs.tolist())) == 4


def test_the_similarity_is_that_of_the_sets_of_word_5_grams() -> None:
    rng = Random(1)
    rows = [dialogue(rng) for _ in range(20)]
    rows += [changed(row, rng, words) for row, words in zip(rows, range(20), strict=True)] + [["A b"], ["a B"], ["a"]]
    hashes, offsets = duplicates.shingles(rows)
    mine = [np.unique(hashes[start:end]) for start, end in pairwise(offsets)]
    sets = shingle_sets(rows)
    for left, right in combinations(range(len(rows)), 2):
        expected = len(sets[left] & sets[right]) / len(sets[left] | sets[right])
        assert duplicates.jaccard(mine[left], mine[right]) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_pairs_above_the_threshold_are_found_and_no_others(threshold: float) -> None:
    rng = Random(2)
    rows = [dialogue(rng) for _ in range(150)]
    rows += [changed(row, rng, number % 8) for number, row in enumerate(rows)]
    sets = shingle_sets(rows)
    above = {
        place + 150: len(sets[place] & sets[place + 150]) / len(sets[place] | sets[place + 150]) for place in range(150)
    }
    expected = {row for row, similarity in above.items() if similarity >= threshold}
    hits = found(rows, threshold)
    assert hits.keys() <= expected
    assert len(hits) >= 0.97 * len(expected) > 10
    assert all(other == row - 150 for row, (other, _) in hits.items())
    assert all(similarity == pytest.approx(above[row]) for row, (_, similarity) in hits.items())


def test_the_first_of_a_group_stays_and_a_chain_keeps_its_far_end() -> None:
    rng = Random(3)
    chain = [dialogue(rng)]
    while len(chain) < 12:
        chain.append(changed(chain[-1], rng, 1))
    hits = found(chain, 0.8)
    kept = [row for row in range(len(chain)) if row not in hits]
    sets = shingle_sets(chain)
    assert kept[0] == 0 and 1 < len(kept) < 8
    for row, (other, _) in hits.items():
        assert other in kept and other < row
        assert len(sets[row] & sets[other]) / len(sets[row] | sets[other]) >= 0.8


def test_scripts_without_spaces_are_compared_by_their_characters() -> None:
    text = "".join(Random(5).choices([chr(0x4E00 + place) for place in range(500)], k=300))
    assert found([[text], [text[:150] + "中" + text[151:]]], 0.8).keys() == {1}


def test_the_layout_finds_99_of_100_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        bands, rows = duplicates.layout(threshold)
        assert bands * rows <= duplicates.PERMUTATIONS
        assert 1 - (1 - threshold**rows) ** bands >= 0.99
    assert duplicates.layout(0.9)[1] > duplicates.layout(0.5)[1]


def test_the_first_of_equal_keys_is_named() -> None:
    keys = np.array([b"b", b"a", b"b", b"c", b"a"], "S16")
    assert duplicates.firsts(keys).tolist() == [0, 1, 0, 3, 1]
    assert duplicates.content_key(["user"], ["a"]) != duplicates.content_key(["assistant"], ["a"])
    assert duplicates.content_key(["user", "user"], ["a", "b"]) != duplicates.content_key(["user"], ["a\0b"])
