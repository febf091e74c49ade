"""Whether a number that cannot be laid beside the paper's says why, and one that can says nothing."""

from zephyrctl.builtin.openai import OpenAITeacher
from zephyrctl.evaluation import comparability
from zephyrctl.evaluation.assets import protocols
from zephyrctl.evaluation.judged_rows import JudgmentRow
from zephyrctl.tiny.teacher import OfflineTeacher

PROTOCOL = protocols()["mt-bench"]


def judged(by: str) -> JudgmentRow:
    """A judgment by that model."""
    return JudgmentRow(model="m", question="81", category="", turn=1, score=5, judge=by)


def test_the_published_judge_under_its_dated_id_is_comparable() -> None:
    teacher = OpenAITeacher(OpenAITeacher.Options(model="gpt-4-0613"))
    assert not list(comparability.of_judge(teacher, [judged("gpt-4-0613")], PROTOCOL))
    assert not list(comparability.of_questions(80, PROTOCOL))
    assert not list(comparability.of_limit(1024, 1024))


def test_another_judge_an_alias_and_rules_are_not() -> None:
    teacher = OpenAITeacher(OpenAITeacher.Options(model="gpt-4o"))
    (other,) = comparability.of_judge(teacher, [judged("gpt-4o-2024-08-06")], PROTOCOL)
    assert "gpt-4o-2024-08-06" in other
    (alias,) = comparability.of_judges({"gpt-4"}, PROTOCOL)
    assert "alias" in alias
    (rules,) = comparability.of_judge(OfflineTeacher(OfflineTeacher.Options()), [judged("offline")], PROTOCOL)
    assert "not by a language model" in rules


def test_what_the_server_reported_counts_and_not_what_was_asked_for() -> None:
    teacher = OpenAITeacher(OpenAITeacher.Options(model="gpt-4-0613"))
    (found,) = comparability.of_judge(teacher, [judged("another-model")], PROTOCOL)
    assert "another-model" in found


def test_fewer_questions_another_length_and_another_template_are_said() -> None:
    assert list(comparability.of_questions(17, PROTOCOL)) == ["17 of 80 questions"]
    assert "64 tokens" in next(iter(comparability.of_limit(64, 1024)))
    assert list(comparability.of_template("{{ messages }}"))
