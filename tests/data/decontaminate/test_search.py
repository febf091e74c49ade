"""Whether what a benchmark asks is found in a text, in every form that it may have, and nothing else."""

import json
from pathlib import Path
from random import Random

import pytest

from tests.data.rows_made import write_jsonl
from zephyrctl.data.decontaminate.search import BenchmarkPrompt, BenchmarkSearch, Match, benchmark_prompts, normalize
from zephyrctl.errors import ZephyrError

ASKED = "Name the three tallest towers that were built of wood before steel, and say why."


def search(*texts: str, ngram: int = 8) -> BenchmarkSearch:
    """A search for these prompts."""
    return BenchmarkSearch([BenchmarkPrompt("bench", text) for text in texts], ngram)


def test_the_same_text_is_exact_and_the_same_words_are_normalised() -> None:
    towers = search("Why?", ASKED)
    assert towers.matches(ASKED) == [Match("exact", "bench", ASKED)]
    for text in (ASKED.upper(), ASKED.replace(" ", "\n ") + "!", f"“{ASKED}”", ASKED.replace("wood", "ｗｏｏｄ")):
        assert towers.matches(text) == [Match("normalised", "bench", ASKED)]


def test_eight_words_in_a_row_are_a_hit_and_seven_are_none() -> None:
    towers = search(ASKED)
    words = "tallest towers that were built of wood before"
    assert towers.matches("Tell me: (TALLEST towers, that were built of wood before?) and so on") == [
        Match("ngram", "bench", ASKED, words)
    ]
    assert towers.matches(f"Tell me: {words.removesuffix(' before')} and so on") == []
    assert search(ASKED, ngram=7).matches(f"Tell me: {words.removesuffix(' before')} and so on")
    assert search(ASKED, ngram=0).matches(f"Tell me: {words}") == []
    assert search(ASKED, ngram=0).matches(ASKED.lower())


def test_a_short_prompt_is_found_as_a_whole_text_only() -> None:
    short = search("Who was first?")
    assert short.matches("who was FIRST")
    assert short.matches("Tell me who was first? Please do, and soon, for I ask.") == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3 - 4", "3 + 4"),
        ("-4", "4"),
        ("5!", "5"),
        (".5", "5"),
        ("3-4", "3+4"),
        ("$5", "5"),
        ("a b", "ab"),
        ("5%", "5"),
    ],
)
def test_signs_that_change_what_is_asked_are_not_lost(one: str, other: str) -> None:
    assert normalize(f"What is {one}") != normalize(f"What is {other}")
    assert not search(f"What is {one}").matches(f"What is {other}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(yes)", "Yes!"),
        ("it, is", "it  is"),
        ("so... then", "so then"),
        ("STRASSE", "straße"),
        ("5.", "5"),
        ("*so*", "so"),
    ],
)
def test_marks_case_and_space_are(one: str, other: str) -> None:
    assert normalize(one) == normalize(other)
    assert normalize(normalize(one)) == normalize(one)


def test_many_texts_at_once_are_as_one_by_one_and_after_a_save(tmp_path: Path) -> None:
    rng = Random(0)
    words = [f"w{number}" for number in range(40)]
    prompts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(60)]
    texts = [" ".join(rng.choices(words, k=rng.randint(0, 40))) for _ in range(120)]
    texts += [f"x {prompt} y" for prompt in prompts] + prompts
    whole = search(*prompts, ngram=3)
    whole.save(tmp_path / "search")
    loaded = BenchmarkSearch.load(tmp_path / "search")
    found = list(whole.find(texts))
    assert found == list(loaded.find(texts))
    assert found == [(place, match) for place, text in enumerate(texts) for match in whole.matches(text)]
    hit = {place for place, _ in found}
    for place, text in enumerate(texts):
        spoken = text.split()
        runs = {tuple(spoken[start : start + 3]) for start in range(len(spoken) - 2)}
        expected = any(
            prompt == text or runs & {tuple(prompt.split()[n : n + 3]) for n in range(len(prompt.split()) - 2)}
            for prompt in prompts
        )
        assert (place in hit) == expected


def test_nothing_is_found_by_no_prompts() -> None:
    assert len(search()) == 0
    assert search().matches(ASKED) == []


def test_benchmarks_are_read_in_the_forms_they_have(tmp_path: Path) -> None:
    turns = write_jsonl(tmp_path / "question.jsonl", [{"question_id": 1, "turns": ["One?", "Two?"]}])
    rows = [
        {"instruction": "Three?", "output": "Yes."},
        {"prompt": "Four?"},
        {"messages": [{"role": "user", "content": "Five?"}, {"role": "assistant", "content": "Yes."}]},
        {"question": "Six?"},
    ]
    several = tmp_path / "eval.json"
    several.write_text(json.dumps(rows))
    prompts = [*benchmark_prompts(turns), *benchmark_prompts(several)]
    assert [prompt.text for prompt in prompts] == ["One?", "Two?", "Three?", "Four?", "Five?", "Six?"]
    assert prompts[0].benchmark.endswith("/question.jsonl")
    with pytest.raises(ZephyrError, match=r"bad\.jsonl:1: no prompt"):
        list(benchmark_prompts(write_jsonl(tmp_path / "bad.jsonl", [{"turns": []}])))


def test_a_prompt_may_be_looked_for_as_a_whole_only() -> None:
    """As the held-out prompts that eval does not ask: a phrase of theirs is no hit, their text is."""
    words = "how do you write a letter to nine old friends at once"
    whole, both = BenchmarkPrompt("a", words, by_words=False), BenchmarkPrompt("b", words)
    search = BenchmarkSearch([whole, both], 8)
    assert [match.benchmark for match in search.matches(f"Tell me, {words}?")] == ["b"]
    assert {match.benchmark for match in search.matches(f"{words.upper()} ?")} == {"a", "b"}
