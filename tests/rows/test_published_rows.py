"""Whether every published row form is read as it was meant, and whether a row that cannot be used says why."""

import hashlib
from typing import Any

import pytest

from tests.data.rows_made import ultrafeedback_row
from zephyrctl.builtin.row_formats import rating_value
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.records import ASPECTS
from zephyrctl.rows.published_rows import find_match, row_formats

FORMATS = row_formats()
dialogue, prompt = FORMATS.dialogue, FORMATS.prompt
rated_prompt, preference_pair = FORMATS.rated_prompt, FORMATS.preference_pair
TURNS = [("user", "Hi?"), ("assistant", "Hello."), ("user", "And?"), ("assistant", "Bye.")]
HUMAN = {"user": "human", "assistant": "gpt", "system": "system"}


def as_messages(turns: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `messages` form."""
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def as_sharegpt(turns: list[tuple[str, Any]]) -> dict[str, Any]:
    """The `conversations` form."""
    return {"conversations": [{"from": HUMAN.get(role, role), "value": content} for role, content in turns]}


def as_ultrachat(turns: list[tuple[str, Any]]) -> dict[str, Any]:
    """UltraChat's form."""
    return {"id": "0", "data": [content for _, content in turns]}


def spoken(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The turns of a dialogue."""
    return [(message.role, message.content) for message in dialogue(row, "here", "test").messages]


def cause(row: dict[str, Any]) -> str:
    """Why a row makes no dialogue."""
    with pytest.raises(BadRow) as caught:
        dialogue(row, "rows.jsonl:3", "test")
    assert caught.value.problem == f"rows.jsonl:3: {caught.value.cause}"
    return caught.value.cause


FORMS = [as_messages, as_sharegpt, as_ultrachat]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_dialogue_is_read_alike(form: Any) -> None:
    made = dialogue(form(TURNS), "here", "test")
    assert [(message.role, message.content) for message in made.messages] == TURNS
    assert made.id == hashlib.sha256(b"Hi?").hexdigest()
    assert made.source == "test"


def test_instruction_rows_are_read() -> None:
    assert spoken({"instruction": "Add.", "input": "1, 2", "output": "3"}) == [
        ("user", "Add.\n\n1, 2"),
        ("assistant", "3"),
    ]
    for nothing in ("", None):
        assert spoken({"instruction": "Add.", "input": nothing, "output": "3"})[0] == ("user", "Add.")
    assert spoken({"instruction": "Add.", "output": "3"})[0] == ("user", "Add.")


@pytest.mark.parametrize("form", [as_messages, as_sharegpt])
def test_a_system_turn_may_open(form: Any) -> None:
    turns = [("system", "Be brief."), *TURNS]
    assert spoken(form(turns)) == turns
    assert dialogue(form(turns), "here", "test").id == hashlib.sha256(b"Hi?").hexdigest()
    assert cause(form([*TURNS[:2], ("system", "Be brief."), *TURNS[2:]])) == "a system turn after the first"
    assert cause(form([("system", "Be brief.")])) == "no turns"


@pytest.mark.parametrize("form", FORMS)
def test_what_makes_no_dialogue_says_why(form: Any) -> None:
    assert cause(form([])) == "no turns"
    assert cause(form(TURNS[:3])) == "no answer to the last user turn"
    assert cause(form(TURNS[:1])) == "no answer to the last user turn"
    assert cause(form([("user", " \n"), ("assistant", "a")])) == "an empty user turn"
    assert cause(form([("user", "a"), ("assistant", "")])) == "an empty assistant turn"
    assert cause(form([("user", "a"), ("assistant", None)])) == "turns that are not role and text"
    assert cause(form([("user", 3), ("assistant", "a")])) == "turns that are not role and text"
    assert cause(form([("user", "a"), ("assistant", "half a \ud83d")])) == "turns that are not role and text"


@pytest.mark.parametrize("form", [as_messages, as_sharegpt])
def test_roles_out_of_order_are_refused(form: Any) -> None:
    for turns in (TURNS[1:], [TURNS[0], *TURNS], [*TURNS[:2], TURNS[1]], TURNS[::-1]):
        assert cause(form(turns)) == "roles out of order"
    assert cause(form([("tool", "a"), ("assistant", "b")])) == "unknown role 'tool'"


def test_a_row_without_an_answer_is_refused() -> None:
    assert cause({"instruction": "Add."}) == "no answer to the last user turn"
    assert cause({"instruction": "Add.", "output": None}) == "no answer to the last user turn"
    assert cause({"instruction": "Add.", "output": ""}) == "an empty assistant turn"
    assert cause({"instruction": None, "output": "a"}) == "turns that are not role and text"
    assert cause({"messages": ["text"]}) == "turns that are not role and text"
    assert cause({"messages": [{"content": "no role"}]}) == "turns that are not role and text"
    assert cause({"messages": [{"role": ["user"], "content": "a"}]}) == "turns that are not role and text"


def test_an_unknown_form_names_its_keys_and_the_known_forms() -> None:
    with pytest.raises(ZephyrError) as caught:
        dialogue({"question": "a", "answer": "b"}, "rows.jsonl:1", "test")
    assert "keys: question, answer" in caught.value.problem
    assert "conversations" in caught.value.remedy


def test_prompts_are_read_from_every_form() -> None:
    assert prompt({"prompt": "Hi?"}, "here", "test").user_turns() == ["Hi?"]
    assert prompt({"instruction": "Add.", "input": "1"}, "here", "test").user_turns() == ["Add.\n\n1"]
    for form in FORMS:
        asked = prompt(form(TURNS), "here", "test")
        assert [(message.role, message.content) for message in asked.messages] == TURNS[:3]
        assert asked.id == hashlib.sha256(b"Hi?").hexdigest()


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": " "},
        {"instruction": ""},
        {"prompt": "half a \ud83d"},
        {"messages": []},
        as_messages([("assistant", "a")]),
        as_messages([("system", "a")]),
        as_messages([("user", "")]),
        as_messages([("user", "a"), ("user", "b")]),
        as_messages([("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d")]),
    ],
)
def test_a_prompt_without_a_sound_user_turn_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(BadRow):
        prompt(row, "here", "test")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("1", 1.0),
        ("5", 5.0),
        (3, 3.0),
        ("4.5", 4.5),
        (" 2 ", 2.0),
        ("N/A", None),
        ("7.5", None),
        ("0", None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("four", None),
        ("", None),
        (None, None),
        ([], None),
        ({"Rating": "3"}, None),
        (10**400, None),
    ],
)
def test_a_published_rating_is_a_number_from_1_to_5_or_missing(raw: Any, value: float | None) -> None:
    assert rating_value(raw) == value


@pytest.mark.parametrize("as_list", [False, True], ids=["object", "list"])
def test_ultrafeedback_rows_are_read_with_aspects_as_object_or_list(as_list: bool) -> None:
    row = ultrafeedback_row("Why?", {"Because.": "5", "Who knows": "N/A", "Half": "4.5", "Odd": "best"}, as_list)
    read = rated_prompt(row, "here")
    assert read.id == hashlib.sha256(b"Why?").hexdigest()
    assert read.source == "evol_instruct"
    assert [completion.text for completion in read.completions] == ["Because.", "Who knows", "Half", "Odd"]
    assert [completion.mean_rating() for completion in read.completions] == [5.0, None, 4.5, None]
    for completion in read.completions:
        assert tuple(rating.aspect for rating in completion.ratings) == ASPECTS
        assert completion.overall == 7.0
    assert read.completions[0].ratings[0].rationale == "because"


def test_the_rationale_is_that_of_the_rating() -> None:
    row = ultrafeedback_row("Why?", {"Because.": "5"})
    marked = {"Type": "None", "Rationale": "of the type", "Rating": "5", "Rationale For Rating": "of the rating"}
    row["completions"][0]["annotations"]["truthfulness"] = marked
    assert [rating.rationale for rating in rated_prompt(row, "here").completions[0].ratings] == [
        "because",
        "because",
        "of the rating",
        "because",
    ]


@pytest.mark.parametrize("annotations", [None, {}, [], "honesty", {"honesty": None}, {"honesty": []}, {"other": 1}])
def test_missing_annotations_are_missing_ratings(annotations: Any) -> None:
    row = ultrafeedback_row("Why?", {"Because.": "5"})
    row["completions"][0]["annotations"] = annotations
    assert rated_prompt(row, "here").completions[0].mean_rating() is None
    del row["completions"][0]["annotations"]
    assert rated_prompt(row, "here").completions[0].ratings == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"instruction": ""}, "an empty instruction"),
        ({"instruction": None}, "an empty instruction"),
        ({"instruction": "half a \ud83d"}, "not role and text"),
        ({"completions": "none"}, "no known form of rated prompt"),
        ({"completions": ["text"]}, "a completion without a `response`"),
        ({"completions": [{"response": None}]}, "a completion without a `response`"),
        ({"completions": [{"response": "half a \ud83d"}]}, "not made of text"),
    ],
)
def test_rows_not_in_ultrafeedbacks_form_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        rated_prompt({**ultrafeedback_row("Why?", {"Because.": "5"}), **change}, "here")


SAID = [{"role": "user", "content": "Hi?"}]
PAIRS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Hi?", "chosen": "good", "rejected": "bad"},
    "messages": {
        "prompt": "Hi?",
        "chosen": [*SAID, {"role": "assistant", "content": "good"}],
        "rejected": [*SAID, {"role": "assistant", "content": "bad"}],
    },
    "messages without prompt": {
        "chosen": [*SAID, {"role": "assistant", "content": "good"}],
        "rejected": [*SAID, {"role": "assistant", "content": "bad"}],
    },
    "prompt as messages": {
        "prompt": SAID,
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    },
    "conversations": {
        "conversations": [{"from": "human", "value": "Hi?"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
def test_every_form_of_pair_is_read_alike(row: dict[str, Any]) -> None:
    pair = preference_pair(row, "here")
    assert [(message.role, message.content) for message in pair.messages] == [("user", "Hi?")]
    assert (pair.id, pair.chosen, pair.rejected) == (hashlib.sha256(b"Hi?").hexdigest(), "good", "bad")
    assert (pair.score_chosen, pair.score_rejected) == (None, None)


def test_scores_are_read_from_the_row_or_its_metadata() -> None:
    for row in (
        {**PAIRS["texts"], "score_chosen": 8.5, "score_rejected": "3"},
        {**PAIRS["texts"], "metadata": {"score_chosen": 8.5, "score_rejected": 3}},
    ):
        pair = preference_pair(row, "here")
        assert (pair.score_chosen, pair.score_rejected) == (8.5, 3.0)
    assert preference_pair({**PAIRS["texts"], "metadata": "none"}, "here").score_chosen is None


def test_no_turn_of_a_long_conversation_is_lost_beside_a_prompt_text() -> None:
    turns = [{"role": role, "content": content} for role, content in [("system", "Be brief."), *TURNS[:3]]]
    row = {
        "prompt": "Hi?",
        "chosen": [*turns, {"role": "assistant", "content": "good"}],
        "rejected": [*turns, {"role": "assistant", "content": "bad"}],
    }
    assert [message.content for message in preference_pair(row, "here").messages] == [
        "Be brief.",
        "Hi?",
        "Hello.",
        "And?",
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi?", "chosen": "good"}, "no known form of preference pair"),
        ({"chosen": "good", "rejected": "bad"}, "no `prompt`"),
        ({"prompt": "Hi?", "chosen": "good", "rejected": None}, "not text"),
        ({"prompt": "Hi?", "chosen": [], "rejected": "bad"}, "not text"),
        ({"prompt": "Hi?", "chosen": "good", "rejected": "half a \ud83d"}, "not made of text"),
        ({"prompt": [], "chosen": "good", "rejected": "bad"}, "does not end on the user"),
        (
            {"conversations": [{"from": "gpt", "value": "Hi."}], "chosen": "a", "rejected": "b"},
            "does not end on the user",
        ),
        ({"conversations": [{"from": "dog", "value": "Hi."}], "chosen": "a", "rejected": "b"}, "unknown role 'dog'"),
        ({"prompt": "half a \ud83d", "chosen": "a", "rejected": "b"}, "not role and text"),
    ],
)
def test_what_makes_no_pair_says_why(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRow, match=problem):
        preference_pair(row, "here")


def test_rated_rows_are_told_from_prompts() -> None:
    assert find_match(FORMATS.rated, ultrafeedback_row("Why?", {}))
    assert not find_match(FORMATS.rated, {"instruction": "Why?", "output": "Because."})
    assert not find_match(FORMATS.rated, {"prompt": "Why?"})
