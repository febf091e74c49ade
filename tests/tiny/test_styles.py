"""Whether each style has the flaws it is named for, and each writer its leaning."""

from random import Random

from zephyrctl.tiny.families import families
from zephyrctl.tiny.marking import check_answer
from zephyrctl.tiny.styles import (
    COMPLETERS,
    DIALOGUE_TEACHER,
    FULL,
    HEDGING,
    OPENINGS,
    OUTSIDE,
    TERSE,
    WRONG,
    Leaning,
    Style,
    answer,
    reply,
)
from zephyrctl.tiny.world import draw, read_first


def test_the_four_named_styles() -> None:
    task = read_first("What is the capital of France?")
    assert task is not None
    rng = Random(0)
    assert answer(task, FULL, rng) == "The capital of France is Paris."
    assert answer(task, TERSE, rng) == "Paris"
    assert answer(task, HEDGING, rng).endswith("but the capital of France is Paris.")
    assert answer(task, HEDGING, rng).startswith(tuple(OPENINGS.values()))
    wrong = answer(task, WRONG, rng)
    assert wrong.startswith("The capital of France is ")
    assert "Paris" not in wrong


def test_small_letters_spare_what_is_only_right_in_capitals() -> None:
    task = read_first("Write cat in capital letters.")
    assert task is not None
    assert answer(task, Style(lowercase=True), Random(0)) == "the word cat in capital letters is CAT."


def test_marks_find_exactly_the_flaws_of_a_style() -> None:
    for number in range(3000):
        rng = Random(number)
        task = draw(rng)
        style = Leaning("any", 0.5, 0.5, 0.5, 0.5).draw(rng)
        text = answer(task, style, rng)
        marks = check_answer([{"role": "user", "content": task.prompt}], text)
        assert marks.correct != style.wrong, text
        assert marks.hedged == style.hedged, text
        assert marks.sentence != style.terse, text
        assert marks.on_topic and not marks.rambling, text
        assert marks.cased or style.lowercase, text


def test_every_family_has_a_wrong_answer_for_every_fact() -> None:
    for family in families().values():
        for fact in family.facts:
            answers = {other.answers[0] for other in family.facts}
            assert answers - set(fact.answers)


def test_a_leaning_holds_over_many_draws() -> None:
    for leaning in (*COMPLETERS, DIALOGUE_TEACHER):
        styles = [leaning.draw(Random(f"{leaning.name}:{number}")) for number in range(4000)]
        assert abs(sum(style.hedged for style in styles) / 4000 - leaning.hedged) < 0.03
        assert abs(sum(style.wrong for style in styles) / 4000 - leaning.wrong) < 0.03


def test_four_writers_of_different_names() -> None:
    assert len({leaning.name for leaning in COMPLETERS}) == 4


def test_a_prompt_of_another_world_gets_a_fixed_answer() -> None:
    asked = [{"role": "user", "content": "Explain the French Revolution."}]
    assert reply(asked, COMPLETERS[0], Random(0)) == OUTSIDE
