"""Whether the offline teacher proposes and opens what its world knows, the same for the same seed."""

import asyncio

from zephyrctl.tiny import world
from zephyrctl.tiny.teacher import OfflineTeacher


def test_subtopics_are_kinds_of_instruction_and_no_more_than_there_are() -> None:
    teacher = OfflineTeacher(OfflineTeacher.Options())
    some, again, other, every = (
        asyncio.run(teacher.propose_subtopics(topic, count, seed))
        for topic, count, seed in (("Music", 5, 1), ("Music", 5, 1), ("Music", 5, 2), ("Music", 1000, 1))
    )
    assert some == again != other
    assert len(some) == len(set(some)) == 5
    assert len(every) == len(set(every)) > 12
    assert every[:5] == some


def test_an_opening_is_of_the_kind_that_is_asked_for() -> None:
    teacher = OfflineTeacher(OfflineTeacher.Options())
    for seed in range(30):
        text = asyncio.run(teacher.open_dialogue("Music", "first letter", seed))
        task = world.read_first(text)
        assert task is not None
        assert task.family.name == "first_letter"
        assert text == asyncio.run(teacher.open_dialogue("Music", "first letter", seed))
    openings = {asyncio.run(teacher.open_dialogue("Music", "first letter", seed)) for seed in range(30)}
    assert len(openings) > 10
