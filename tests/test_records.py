"""Whether a prompt has one key and one side for good, and whether a mean takes missing ratings for missing."""

import hashlib

import pytest
from pydantic import ValidationError

from tests.data.rows_made import prompt, rated
from zephyrctl.records import Completion, Message, Prompt, Rating, first_user_turn, prompt_id, split_of

IDS = [prompt_id(str(number)) for number in range(4000)]


def test_a_prompts_key_is_that_of_the_published_sets() -> None:
    for text in ("", "What is 2+2?", "é “\n”", "日本"):
        assert prompt_id(text) == hashlib.sha256(text.encode("utf-8")).hexdigest()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.15, 0.5])
def test_the_test_side_has_its_share(share: float) -> None:
    held_out = sum(split_of(id, share) == "test" for id in IDS)
    assert abs(held_out - share * len(IDS)) <= 4 * (share * (1 - share) * len(IDS)) ** 0.5


def test_a_larger_share_only_adds_to_the_test_side() -> None:
    small, large = ({id for id in IDS if split_of(id, share) == "test"} for share in (0.1, 0.3))
    assert small < large


def test_the_side_does_not_follow_the_key_itself() -> None:
    """Shards and published splits often cut by the first digits of a hash."""
    first = [id for id in IDS if id < "8"]
    held_out = sum(split_of(id, 0.5) == "test" for id in first)
    assert 0.4 < held_out / len(first) < 0.6


def test_a_mean_rating_leaves_out_what_is_missing() -> None:
    def completion(*values: float | None) -> Completion:
        return Completion(model="m", text="t", ratings=[Rating(aspect="a", value=value) for value in values])

    assert completion(1, 2, None).mean_rating() == 1.5
    assert completion(5).mean_rating() == 5
    assert completion(None, None).mean_rating() is None
    assert completion().mean_rating() is None


@pytest.mark.parametrize("value", [0, 0.99, 5.01, 7.5, -1, 10])
def test_a_rating_out_of_range_cannot_be(value: float) -> None:
    with pytest.raises(ValidationError):
        Rating(aspect="honesty", value=value)


def test_rows_cannot_be_changed_and_take_no_other_fields() -> None:
    with pytest.raises(ValidationError):
        setattr(prompt("a"), "source", "b")  # noqa: B010
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "user", "content": "a", "name": "b"})
    with pytest.raises(ValidationError):
        Message.model_validate({"role": "tool", "content": "a"})


def test_user_turns_are_what_the_user_says() -> None:
    assert prompt("a", "b", "c").user_turns() == ["a", "b", "c"]
    assert first_user_turn(rated("a").messages) == "a"
    system = Message(role="system", content="s")
    assert first_user_turn([system]) == ""
    assert Prompt(id="x", messages=[system], source="s").user_turns() == []
