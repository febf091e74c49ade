"""Whether an instruction is refused exactly where a rule says so: length, keywords, ROUGE-L against the whole pool."""

import json
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

from zephyrctl.data.novelty import EXCLUDED, TOO_LONG, TOO_SHORT, TOO_SIMILAR, Pool, rejection, words
from zephyrctl.recipe.schema import Novelty


def longest_common(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence, by the textbook's table."""
    row = [0] * (len(second) + 1)
    for left in first:
        above = row
        row = [0]
        for place, right in enumerate(second):
            row.append(above[place] + 1 if left == right else max(above[place + 1], row[place]))
    return row[-1]


def rouge_l(first: str, second: str) -> Fraction:
    """ROUGE-L F1 on words, by its definition: the harmonic mean of LCS / m and LCS / n."""
    left, right = words(first), words(second)
    if not left or not right:
        return Fraction(0)
    common = longest_common(left, right)
    precision, recall = Fraction(common, len(left)), Fraction(common, len(right))
    return 2 * precision * recall / (precision + recall) if common else Fraction(0)


def made(rng: Random) -> str:
    """A text of few different words, so that texts are often alike."""
    return " ".join(rng.choices("abcdefgh", [8, 6, 4, 3, 2, 1, 1, 1], k=rng.randint(1, 14)))


@pytest.mark.parametrize("threshold", ["0.05", "0.3", "0.5", "0.7", "0.9", "1"])
def test_near_is_what_the_definition_says(threshold: str) -> None:
    rng = Random(threshold)
    found = []
    for _ in range(60):
        others = [made(rng) for _ in range(rng.randint(1, 8))]
        pool = Pool(others)
        for text in (made(rng) for _ in range(8)):
            nearest = max(rouge_l(text, other) for other in others)
            assert pool.is_near(text, float(threshold)) == (nearest >= Fraction(threshold)), (text, others)
            found.append(nearest >= Fraction(threshold))
    assert set(found) == {True, False}


@pytest.mark.parametrize("hundredths", range(1, 101))
def test_the_threshold_itself_is_near_and_no_rounding_moves_it(hundredths: int) -> None:
    common = [f"w{place}" for place in range(hundredths)]
    first = " ".join([*common, *(f"a{place}" for place in range(100 - hundredths))])
    second = " ".join([*common, *(f"b{place}" for place in range(100 - hundredths))])
    assert rouge_l(first, second) == Fraction(hundredths, 100)
    assert Pool([first]).is_near(second, hundredths / 100)
    assert hundredths == 100 or not Pool([first]).is_near(second, hundredths / 100 + 1e-6)


def test_an_instruction_of_the_pool_is_refused_wherever_it_stands_in_it() -> None:
    rng = Random(4)
    texts = [f"{made(rng)} number {place}" for place in range(200)]
    pool = Pool(texts)
    assert len(pool) == 200
    assert all(pool.is_near(text, 1.0) for text in texts)
    assert not pool.is_near("something that no text of the pool says", 0.2)


def test_what_is_taken_counts_from_then_on() -> None:
    pool, rules = Pool(["Name a river in Africa."]), Novelty()
    text = "Explain how bees find their way home."
    assert rejection(text, rules, pool) is None
    pool.add(text)
    assert rejection(text.upper(), rules, pool) == TOO_SIMILAR
    assert rejection("Explain how ants find their way home.", rules, pool) == TOO_SIMILAR  # 6 of 7 words: 0.857
    assert rejection("Explain how ants find their way home.", Novelty(rouge_l=0.9), pool) is None
    assert rejection(text, Novelty(rouge_l=None), pool) is None


def test_the_first_rule_that_is_broken_is_the_one_that_counts() -> None:
    rules, pool = Novelty(shortest=3, longest=6, keywords=["map", "go to"], rouge_l=0.5), Pool(["Draw me a map."])
    assert rejection("A map", rules, pool) == TOO_SHORT
    assert rejection("!!! ...", rules, pool) == TOO_SHORT
    assert rejection("Draw me a map of the seven seas", rules, pool) == TOO_LONG
    assert rejection("Draw me a Map!", rules, pool) == EXCLUDED
    assert rejection("Then go to Rome.", rules, pool) == EXCLUDED
    assert rejection("Draw me a mapmaker.", rules, pool) == TOO_SIMILAR
    assert rejection("Tell maps from charts", rules, pool) is None


def test_words_are_without_case_and_punctuation_in_any_script() -> None:
    assert words("Don’t SHOUT, O'Neill: 3.5 times!") == ["don't", "shout", "o'neill", "3", "5", "times"]
    assert words("Straße") == words("STRASSE")
    assert words("说中文 OK") == ["说", "中", "文", "ok"]
    assert words("हिन्दी में लिखो") == ["हिन्दी", "में", "लिखो"]
    assert words(" \n!? ") == []


def test_texts_without_common_words_or_without_any_are_not_near() -> None:
    assert not Pool().is_near("Anything at all", 0.01)
    pool = Pool(["", "?!"])
    assert not pool.is_near("?!", 0.01)
    assert not pool.is_near("unknown words only", 0.01)
    assert not Pool(["one two three"]).is_near("four five six", 0.01)


def test_the_real_seeds_are_compared_as_the_definition_says(real_data: Path) -> None:
    lines = (real_data / "self_instruct" / "seed_tasks.jsonl").read_text().splitlines()
    texts = [json.loads(line)["instruction"] for line in lines]
    others = (real_data / "self_instruct" / "user_oriented_instructions.jsonl").read_text().splitlines()
    pool = Pool(texts)
    near = 0
    for text in (json.loads(line)["instruction"] for line in others[:60]):
        expected = max(rouge_l(text, seed) for seed in texts)
        assert pool.is_near(text, 0.4) == (expected >= Fraction("0.4"))
        near += expected >= Fraction("0.4")
    assert 0 < near < 60
