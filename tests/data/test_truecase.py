"""Whether lower-cased turns get the capitals that they should have, and nothing else ever changes."""

import string
from random import Random

import pytest

from zephyrctl.data.truecase import is_lower_cased, names_of, truecase

CASED = "Well, she flew from Paris to New York with NASA and Dr. O'Brien. The Louvre stays. Python is what she wrote."


def capitals(text: str, *others: str) -> str:
    """The turn beside some others of its dialogue."""
    return truecase([text, *others])[0]


@pytest.mark.parametrize(
    ("small", "cased"),
    [
        ("hello. how are you? fine!", "Hello. How are you? Fine!"),
        ("i think i'm late, and i’ve said so.", "I think I'm late, and I’ve said so."),
        ("what a day.\n\nthen it rained", "What a day.\n\nThen it rained"),
        ("some steps:\n- the first one\n2. the second one", "Some steps:\n- The first one\n2. The second one"),
        ('"is it?" she asked. (it was.)', '"Is it?" she asked. (It was.)'),
        ("it is e.g. this, vs. that, by j. smith", "It is e.g. this, vs. that, by j. smith"),
        ("well... so it goes on", "Well... so it goes on"),
        ("über das haus. ça va bien", "Über das haus. Ça va bien"),
        ("see below:\n```\nx = i\n```\nthat is it", "See below:\n```\nx = i\n```\nThat is it"),
    ],
)
def test_sentences_and_the_pronoun_get_their_capitals(small: str, cased: str) -> None:
    assert capitals(small) == cased


def test_names_are_written_as_elsewhere_in_the_dialogue_in_mid_sentence() -> None:
    small = "she likes paris, new york's parks and nasa. the louvre and python too"
    assert capitals(small, CASED) == "She likes Paris, New York's parks and NASA. The louvre and python too"
    assert capitals(small) == "She likes paris, new york's parks and nasa. The louvre and python too"


def test_a_word_that_is_written_small_too_is_no_name() -> None:
    assert names_of(["They march in March. It may be May."]) == {}
    assert names_of([CASED]).keys() >= {"paris", "new", "york", "nasa"}
    assert "the" not in names_of([CASED]) and "louvre" not in names_of([CASED])


@pytest.mark.parametrize(
    "kept",
    [
        "http://example.com/a?b=i",
        "www.example.com.",
        "me@example.com",
        "/usr/lib/paris",
        "snake_case",
        "foo.bar()",
        "x1",
        "2nd",
        "i.e.",
        "--flag",
        "`paris i`",
        "i/o",
        "#paris",
    ],
)
def test_addresses_code_and_identifiers_stay(kept: str) -> None:
    for text in (f"{kept} is what you see here", f"so it is. {kept} is what you see here"):
        changed = capitals(text, CASED)
        assert kept in changed
        assert changed.lower() == text


@pytest.mark.parametrize(
    "text",
    [
        "    for i in range(3): print(i) to the paris\n\tthe i is it",
        "привет. как дела? хорошо",
        "γεια σου. τι κάνεις εσύ",
        "你好。今天天气怎么样",
        "ok then",
        "",
        "...",
        "This is cased already. but not here, i think",
        "this has one Capital. and i see it",
    ],
)
def test_what_is_not_a_lower_cased_latin_turn_stays_as_it_is(text: str) -> None:
    assert capitals(text, CASED) == text


def test_a_small_i_of_another_language_or_of_a_formula_stays() -> None:
    assert capitals("lubie koty i psy. mam dwa koty i psa") == "Lubie koty i psy. Mam dwa koty i psa"
    assert capitals("the sum over i = 1 and i + 2, with the x").count("I") == 0


def test_a_turn_is_lower_cased_where_only_protected_words_have_capitals() -> None:
    assert is_lower_cased("please open README.md and see `Foo` for me")
    assert not is_lower_cased("please open Paris and see it for me")


def test_only_the_case_ever_changes_and_twice_is_once() -> None:
    pieces = [*string.ascii_lowercase, *" \n.!?'\"`()[]{}-_/\\@#=0123\t", "i ", "the ", ". ", "\n\n", "```", "paris "]
    pieces += ["ß", "ǆ", "ŉ", "ı", "é", "я", "你", "ﬁ", "𝒶", "\u0307", "…", "’"]
    rng = Random(4)
    changed = 0
    for _ in range(3000):
        turns = ["".join(rng.choices(pieces, k=rng.randint(0, 60))) for _ in range(2)]
        after = truecase([*turns, CASED])
        assert [text.lower() for text in after[:2]] == [text.lower() for text in turns]
        assert [len(text) for text in after[:2]] == [len(text) for text in turns]
        assert after[2] == CASED
        changed += after[:2] != turns
    assert changed > 300
