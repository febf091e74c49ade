"""Whether the tiny world recognises every instruction that it can utter, from the text alone."""

from collections import Counter
from random import Random

import pytest

from zephyrctl.tiny.families import families
from zephyrctl.tiny.styles import FULL, answer
from zephyrctl.tiny.world import (
    ABOUT_THE_ANSWER,
    Instruction,
    Message,
    draw,
    draw_about,
    first_instructions,
    follow_up,
    read,
    read_first,
    refine,
    subjects,
)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def test_there_are_thousands_of_distinct_instructions_in_many_families() -> None:
    prompts = Counter(task.prompt.casefold() for task in first_instructions())
    assert len(prompts) >= 6000
    assert max(prompts.values()) == 1
    assert len(families()) >= 12
    assert all(len(family.phrasings) >= 5 for family in families().values())


def test_every_first_instruction_is_read_back() -> None:
    for task in first_instructions():
        assert read([user(task.prompt)]) == task


def test_reading_ignores_case_and_blanks() -> None:
    task = read_first("  what is the CAPITAL of france? ")
    assert task is not None
    assert task.answer == "Paris"
    assert task.sentence == "The capital of France is Paris."


def test_every_subject_is_a_family_and_brings_its_instructions() -> None:
    found = subjects(Random(1))
    assert {subject.replace(" ", "_") for subject in found} == set(families())
    assert found != subjects(Random(2))
    for subject in found:
        task = draw_about(subject.title(), Random(3))
        assert task.family.name.replace("_", " ") == subject
        assert read_first(task.prompt) == task
    assert read_first(draw_about("tax law", Random(4)).prompt)


@pytest.mark.parametrize("family_name", sorted(families()))
def test_a_second_turn_of_the_same_family_means_one_fact_and_needs_the_first_turn(family_name: str) -> None:
    family = families()[family_name]
    opening = user(family.phrasings[0].format(*family.facts[0].slots))
    for again in family.again:
        for fact in family.facts:
            second = again.format(*fact.slots)
            task = read([opening, assistant("Anything."), user(second)])
            assert task is not None
            assert (task.family, task.fact) == (family, fact)
            assert read([user(second)]) is None


def test_a_second_turn_about_the_answer() -> None:
    opening = [user("What is the opposite of hot?"), assistant("The opposite of hot is cold.")]
    for family_name, phrasings in ABOUT_THE_ANSWER.items():
        for phrasing in phrasings:
            task = read([*opening, user(phrasing)])
            assert task is not None
            assert task.family.name == family_name
            assert task.fact.slots == ("cold",)


def test_a_simulated_user_is_always_understood() -> None:
    for number in range(500):
        rng = Random(number)
        messages = [user(draw(rng).prompt)]
        for _ in range(3):
            task = read(messages)
            assert task is not None
            messages += [assistant(answer(task, FULL, rng)), user(follow_up(messages, rng))]


def test_a_refined_instruction_stands_alone_and_differs() -> None:
    for number in range(500):
        rng = Random(number)
        task = draw(rng)
        refined = read_first(refine(task.prompt, task.sentence, rng))
        assert refined is not None
        assert (refined.family, refined.fact) != (task.family, task.fact)


def test_refining_what_is_not_of_this_world_draws_a_new_instruction() -> None:
    assert read_first(refine("Write a poem.", "Roses are violet, violets too!", Random(1))) is not None


def test_outside_prompts_are_not_read() -> None:
    assert read([user("Explain the French Revolution.")]) is None
    assert read([]) is None
    assert read([user("Write a poem."), assistant("No."), user("And for Spain?")]) is None


def test_a_system_turn_changes_nothing() -> None:
    asked = user("Sort 7, 3 and 5.")
    system = {"role": "system", "content": "Be honest."}
    assert read([system, asked]) == read([asked])


def test_drawing_depends_on_the_seed_alone() -> None:
    assert [draw(Random(f"0:{row}")) for row in range(20)] == [draw(Random(f"0:{row}")) for row in range(20)]


def test_every_family_is_drawn() -> None:
    rng = Random(0)
    drawn: list[Instruction] = [draw(rng) for _ in range(1000)]
    assert {task.family.name for task in drawn} == set(families())
