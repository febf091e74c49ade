"""Whether marks come back to their own answers, are asked for again only in vain, and are never made up."""

import asyncio
import json
from collections import deque
from collections.abc import Sequence
from statistics import stdev
from typing import Any

import pytest

from tests.data.rows_made import tiny
from zephyrctl.contracts import GREEDY, PluginOptions, Ratings, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback import ratings
from zephyrctl.feedback.ratings import MissingRatings, RatingCall, add_ratings, count_missing, shuffle_order
from zephyrctl.records import ASPECTS, Completion, Judgment, Message, RatedPrompt, Rating, prompt_id

ANSWERS = ("bad", "fair", "good", "best")
PROMPT = RatedPrompt(
    id=prompt_id("Why?"),
    messages=[Message(role="user", content="Why?")],
    completions=[Completion(model=f"model {text}", text=text) for text in ANSWERS],
    source="test",
)
WORTH = {"bad": 1.0, "fair": 2.5, "good": 4.0, "best": 5.0}


class Scripted(Teacher):
    """A rater that says what the test wants, and remembers what it was shown."""

    name = "scripted"

    def __init__(self, *script: str) -> None:
        super().__init__(PluginOptions())
        self.script = deque(script)
        self.asked: list[str] = []

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """The next line of the script, or marks by what each answer is worth."""
        text = messages[-1].content
        self.asked.append(text)
        return Reply(self.script.popleft() if self.script else honest(shown_in(text)), "rater-1")


def shown_in(text: str) -> list[str]:
    """The answers in the order in which a prompt shows them."""
    places = {answer: text.find(f"===\n{answer}\n") for answer in ANSWERS}
    return sorted((answer for answer, place in places.items() if place >= 0), key=lambda answer: places[answer])


def honest(answers: Sequence[str]) -> str:
    """A line for each answer with its worth."""
    return "\n".join(f"Answer {n}: {WORTH[answer]}. It is {answer}." for n, answer in enumerate(answers, 1))


def rate(rater: Teacher, repeat: int = 0, **values: Any) -> list[RatingCall]:
    """One repeat of one aspect."""
    recipe = tiny(**values)
    return asyncio.run(ratings.rate(PROMPT, rater, "honesty", repeat, recipe.feedback.asks, recipe.seed))


def test_marks_come_back_to_their_answers_whatever_the_order() -> None:
    orders = set()
    for repeat in range(8):
        (call,) = rate(Scripted(), repeat)
        assert [rating.value for rating in call.ratings] == list(WORTH.values()) == call.judgment.values
        assert [rating.rationale for rating in call.ratings] == [f"It is {answer}." for answer in ANSWERS]
        assert {rating.rater for rating in call.ratings} == {"rater-1"} == {call.judgment.rater}
        assert call.judgment.text == honest([ANSWERS[place] for place in call.judgment.order])
        orders.add(tuple(call.judgment.order))
    assert len(orders) > 3


def test_orders_hang_on_prompt_aspect_repeat_and_ask_and_show_every_answer_once() -> None:
    orders = [
        shuffle_order(4, prompt, aspect, repeat, ask, seed)
        for prompt in ("one", "two")
        for aspect in ASPECTS
        for repeat in range(3)
        for ask in range(3)
        for seed in range(2)
    ]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 20
    first = [sum(order[0] == place for order in orders) / len(orders) for place in range(4)]
    assert all(0.12 < share < 0.38 for share in first), first


@pytest.mark.parametrize(
    "nonsense",
    [
        "I would rather not.",
        "Answer 1: 4\nAnswer 2: 4\nAnswer 3: 4",
        "\n".join(f"Answer {n}: 4" for n in range(1, 6)),
        "\n".join(f"Answer {n}: 7.5" for n in range(1, 5)),
        json.dumps({f"answer_{n}": {"rating": 8, "rationale": ""} for n in range(1, 5)}),
        "",
    ],
)
def test_what_cannot_be_read_is_asked_again_in_another_order_and_then_missing(nonsense: str) -> None:
    rater = Scripted(nonsense)
    calls = rate(rater, feedback__asks=3)
    assert [call.is_readable for call in calls] == [False, True]
    assert [call.judgment.ask for call in calls] == [0, 1]
    assert calls[0].judgment.text == nonsense
    assert ratings.deciding_call(calls).judgment.values == list(WORTH.values())
    in_vain = rate(Scripted(*[nonsense] * 3), feedback__asks=3)
    assert len(in_vain) == 3
    assert len({tuple(call.judgment.order) for call in in_vain}) > 1, "a greedy rater would only say the same"
    values = ratings.deciding_call(in_vain).judgment.values
    assert all(value is None or value == 4 for value in values)
    assert count_missing([in_vain], 4) == MissingRatings(unreadable=values.count(None))
    assert values.count(None) == (1 if nonsense.endswith("Answer 3: 4") else 4)


def test_a_plain_n_a_is_missing_and_not_asked_again() -> None:
    rater = Scripted("\n".join(["Answer 1: N/A", "Answer 2: 4", "Answer 3: n/a. No facts.", "Answer 4: 4"]))
    calls = rate(rater, feedback__asks=5)
    assert len(calls) == len(rater.asked) == 1
    assert sorted(calls[0].judgment.values, key=str) == [4, 4, None, None]
    assert count_missing([calls], 4) == MissingRatings(not_applicable=2)


def test_every_call_has_a_sample_of_its_own_that_other_settings_do_not_move() -> None:
    """The call log finds a call by it: more asks or more repeats must not repay what is there."""

    def samples(**values: Any) -> list[int]:
        seen: list[int] = []

        class Noting(Scripted):
            async def rate(
                self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0
            ) -> Ratings:
                seen.append(sample)
                return Ratings([Rating(aspect=aspect, value=None)] * len(answers), is_readable=False)

        for repeat in range(3):
            rate(Noting(), repeat, **values)
        return seen

    assert samples(feedback__asks=2) == [0, 1, 10, 11, 20, 21]
    assert samples(feedback__asks=3) == [0, 1, 2, 10, 11, 12, 20, 21, 22]


def call(aspect: str, repeat: int, values: Sequence[float | None], is_readable: bool = True) -> RatingCall:
    """A call that gave these marks."""
    marks = [Rating(aspect=aspect, value=value, rationale=f"{value}", rater="rater-1") for value in values]
    order = list(range(len(values)))
    judgment = Judgment(
        prompt_id="x", aspect=aspect, repeat=repeat, ask=0, order=order, values=list(values), text="", rater="rater-1"
    )
    return RatingCall(judgment, marks, is_readable)


def test_repeats_become_their_mean_with_their_spread_and_missing_ones_are_left_out() -> None:
    repeats = [
        [call("honesty", 0, [1, None, None, 5])],
        [call("honesty", 1, [2, 3, None, 5])],
        [call("honesty", 2, [4.5, None, None, 5])],
        [call("truthfulness", 0, [1, 1, 1, 1])],
    ]
    made = add_ratings(PROMPT.completions, repeats)
    first = [answer.ratings[0] for answer in made]
    assert [rating.value for rating in first] == [2.5, 3, None, 5]
    assert [rating.spread for rating in first] == [pytest.approx(stdev([1, 2, 4.5])), None, None, 0]
    assert [rating.rationale for rating in first] == ["1", "3", "None", "5"]
    assert [[rating.aspect for rating in answer.ratings] for answer in made] == [["honesty", "truthfulness"]] * 4
    assert count_missing(repeats, 4) == MissingRatings(not_applicable=1)


def test_one_unreadable_repeat_beside_others_makes_a_missing_rating_unreadable() -> None:
    repeats = [[call("honesty", 0, [1, None])], [call("honesty", 1, [None, None], is_readable=False)]]
    assert count_missing(repeats, 2) == MissingRatings(unreadable=1)


def test_a_rater_with_more_or_fewer_marks_than_answers_stops_the_stage() -> None:
    class Short(Scripted):
        async def rate(
            self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0
        ) -> Ratings:
            return Ratings([Rating(aspect=aspect, value=4)])

    with pytest.raises(ZephyrError, match="gave 1 ratings for 4 answers"):
        rate(Short())


@pytest.mark.parametrize(
    ("script", "overall", "asked"),
    [
        (["Good. [[7.5]]"], 7.5, 1),
        (["Good.", "Good. [[8]]"], 8, 2),
        (["Good. [[11]]", "Good. [[0]]"], None, 2),
        (["Nothing to review. [[N/A]]", "[[8]]"], None, 1),
    ],
)
def test_a_critique_has_an_overall_score_or_none(script: list[str], overall: float | None, asked: int) -> None:
    rater = Scripted(*script)
    calls = asyncio.run(ratings.criticise(PROMPT, rater, 2, tiny().feedback.asks))
    assert len(rater.asked) == asked
    assert "===\ngood\n" in rater.asked[0]
    made = add_ratings(PROMPT.completions, [calls])
    assert [answer.overall for answer in made] == [None, None, overall, None]
    assert made[2].critique == ratings.deciding_call(calls).judgment.text
    assert [made[place].critique for place in (0, 1, 3)] == ["", "", ""]
    assert (calls[0].judgment.aspect, calls[0].judgment.order) == ("critique", [2])
    assert count_missing([calls], 4) == MissingRatings()


def test_half_numbers_stay_and_a_rater_that_speaks_json_is_read() -> None:
    def in_json(answers: Sequence[str]) -> str:
        return json.dumps(
            {f"answer_{n}": {"rationale": "so", "rating": WORTH[text]} for n, text in enumerate(answers, 1)}
        )

    class Structured(Scripted):
        schema: str | None = None

        async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
            self.schema = sampling.json_schema
            return Reply(in_json(shown_in(messages[-1].content)), "rater-2")

    rater = Structured()
    (rating_call,) = rate(rater)
    assert rating_call.judgment.values == [1, 2.5, 4, 5]
    assert len(json.loads(rater.schema or "{}")["required"]) == 4
