"""Whether a forecast makes no calls, counts what is settled, and its intervals hold what the rest really takes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.data.rows_made import offered, tiny, write_jsonl
from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback.forecast import forecast
from zephyrctl.feedback.prompts import PromptSource
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Message
from zephyrctl.teachers import costs
from zephyrctl.teachers.costs import CallHistory, CallUsage, Forecast, PastReply, estimate_from_sample


class Priced(Teacher):
    """A teacher that must not be asked."""

    class Options(PluginOptions):
        """Options of `priced`."""

        model: str = "model-1"

    name = "priced"

    @property
    def label(self) -> str:
        """The model."""
        label: str = self.options.model
        return label

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """Nothing: a forecast makes no calls."""
        raise AssertionError("a forecast asked a teacher")


class RewardModel(Priced):
    """A teacher that rates by itself."""

    name = "reward-model"

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Any:
        """Nothing: a forecast rates nothing."""
        raise AssertionError("a forecast asked a rater")


@pytest.fixture(autouse=True)
def teachers() -> Iterator[None]:
    """The teachers of these tests are offered."""
    with offered(Priced, RewardModel):
        yield


def recipe(folder: Path, **values: Any) -> Recipe:
    """Two completers and a rater, model-1 for a dollar a million tokens in and two out."""
    prices = folder / "prices.yaml"
    prices.write_text("models: {model-1: {input: 1.0, output: 2.0}, model-2: {input: 1.0, output: 2.0}}\n")
    completers = [{"name": "priced", "options": {"model": f"model-{n}"}} for n in (1, 2)]
    given = {"feedback__completers": completers, "feedback__rater": {"name": "priced"}, "prices": str(prices)}
    return tiny(**(given | values))


def prompts(folder: Path, count: int = 40) -> Path:
    """A file of prompts."""
    return write_jsonl(
        folder / "prompts.jsonl", [{"prompt": f"Question {n}? " + "word " * (n % 7)} for n in range(count)]
    )


Find = Callable[[Teacher, Sequence[Message], Sampling, int], PastReply | None]


class MadeHistory(CallHistory):
    """A history that the test makes up."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def find(self, teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        """What the test says."""
        return self._find(teacher, messages, sampling, sample)


def settled_for(is_settled: Callable[[str], bool]) -> Find:
    """A log that holds every call whose prompt the test names: answers of varied length, ratings of all answers."""

    def known(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        text = messages[-1].content
        if not is_settled(text):
            return None
        rng = Random(f"{text}:{sampling.seed}")
        words = rng.randint(20, 60)
        said = "Answer 1: 4\nAnswer 2: 3" if sampling.json_schema else "word " * words
        return PastReply(Reply(said, "model-1", len(text.split()), len(said.split())), rng.uniform(1.0, 3.0))

    return known


def told(made: Recipe, file: Path, find: Find | None = None) -> Forecast:
    """The forecast for a file of prompts."""
    return forecast(PromptSource(made, file), {"prompts": file}, MadeHistory(find) if find else CallHistory())


def number(text: str) -> int:
    """Which question a prompt of any kind asks."""
    return int(text.split("Question ")[1].split("?")[0])


def test_without_history_every_call_is_counted_and_priors_are_stated(tmp_path: Path) -> None:
    found = told(recipe(tmp_path, feedback__repeats=3, feedback__critique=True), prompts(tmp_path))
    due = {(part.teacher, part.work): part.due for part in found.parts}
    assert due == {
        ("model-1", "answers"): 40,
        ("model-2", "answers"): 40,
        ("model-1", "ratings"): 40 * 4 * 3,
        ("model-1", "critiques"): 40 * 2,
    }
    assert all(part.settled == 0 and part.basis.startswith("priors") for part in found.parts)
    assert found.prompts_settled == 0
    assert found.calls.low == sum(due.values()) <= found.calls.high
    assert found.usd and 0 < found.usd.low < found.usd.high
    assert 0 < found.seconds.low < found.seconds.high
    assert 0 < found.tokens.low < found.tokens.high


def test_a_teacher_without_a_price_has_none_and_not_zero(tmp_path: Path) -> None:
    made = recipe(tmp_path, feedback__rater={"name": "priced", "options": {"model": "unheard-of"}})
    found = told(made, prompts(tmp_path))
    assert found.no_price == ["unheard-of"]
    assert {part.usd is None for part in found.parts if part.teacher == "unheard-of"} == {True}
    assert found.usd and found.usd.low > 0
    (last,) = (line for line in costs.lines(found.model_dump()) if "total for" in line)
    assert "without unheard-of, which has no price" in last
    alone = told(recipe(tmp_path, feedback__completers=[], feedback__rater=made.feedback.rater), answered(tmp_path))
    assert alone.usd is None
    assert "no price" in "\n".join(costs.lines(alone.model_dump()))
    assert "$" not in "\n".join(costs.lines(alone.model_dump()))


def answered(folder: Path) -> Path:
    """Rows that bring their answers."""
    rows = [
        {"instruction": f"Question {n}?", "completions": [{"response": text, "model": text} for text in ("one", "two")]}
        for n in range(10)
    ]
    return write_jsonl(folder / "answered.jsonl", rows)


def test_rules_cost_nothing_and_are_counted_all_the_same(tmp_path: Path) -> None:
    found = told(tiny(), prompts(tmp_path))
    assert {(part.due, part.basis) for part in found.parts} == {(40, "rules: free"), (160, "rules: free")}
    assert found.usd and found.usd.high == 0
    assert found.no_price == []


def test_a_rater_that_works_without_calls_is_not_set_to_work(tmp_path: Path) -> None:
    made = recipe(tmp_path, feedback__rater={"name": "reward-model", "options": {"model": "reward"}})
    found = told(made, prompts(tmp_path), settled_for(lambda text: True))
    due = {(part.teacher, part.work): part.due for part in found.parts}
    assert due == {("model-1", "answers"): 0, ("model-2", "answers"): 0, ("reward", "ratings"): 160}


def test_settled_calls_are_free_and_a_settled_collection_has_nothing_left(tmp_path: Path) -> None:
    made, file = recipe(tmp_path), prompts(tmp_path)
    half = told(made, file, settled_for(lambda text: number(text) < 20))
    assert half.prompts_settled == 20
    assert {(part.work, part.settled, part.due) for part in half.parts} == {("answers", 20, 20), ("ratings", 80, 80)}
    whole = told(made, file, settled_for(lambda text: True))
    assert whole.prompts_settled == 40
    assert whole.calls.high == whole.tokens.high == whole.seconds.high == 0
    assert whole.usd and whole.usd.high == 0
    assert "nothing left to pay for" in "\n".join(costs.lines(whole.model_dump()))


def test_answers_that_are_settled_without_their_ratings_leave_the_ratings(tmp_path: Path) -> None:
    def known(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        found = settled_for(lambda text: True)(teacher, messages, sampling, sample)
        return None if sampling.json_schema else found

    found = told(recipe(tmp_path), prompts(tmp_path), known)
    assert {(part.work, part.settled, part.due) for part in found.parts} == {("answers", 40, 0), ("ratings", 0, 160)}


def test_a_reply_that_could_not_be_read_leaves_the_next_ask(tmp_path: Path) -> None:
    def known(teacher: Teacher, messages: Sequence[Message], sampling: Sampling, sample: int) -> PastReply | None:
        found = settled_for(lambda text: True)(teacher, messages, sampling, sample)
        assert found
        return PastReply(Reply("no idea", "model-1", 5, 2), 1.0) if sampling.json_schema and not sample % 10 else found

    found = told(recipe(tmp_path), prompts(tmp_path), known)
    (rated,) = (part for part in found.parts if part.work == "ratings")
    assert (rated.settled, rated.due) == (320, 0)


def test_the_interval_from_a_pilot_holds_what_the_rest_takes_about_19_times_in_20() -> None:
    """200 worlds of long-tailed lengths: 30 prompts are known, and what 300 others take is held against it."""
    held = 0
    for world in range(200):
        rng = Random(world)

        def prompt(rng: Random = rng) -> CallUsage:
            return CallUsage(4, 4, rng.randint(800, 1600), round(rng.lognormvariate(5, 0.5)), rng.uniform(2, 9))

        known = [prompt() for _ in range(30)]
        estimate = estimate_from_sample(known, 1200, 300, "model-1:ratings")
        rest = [prompt() for _ in range(300)]
        held += (
            estimate.completion_tokens.low
            <= sum(used.completion_tokens for used in rest)
            <= estimate.completion_tokens.high
        )
        held += estimate.prompt_tokens.low <= sum(used.prompt_tokens for used in rest) <= estimate.prompt_tokens.high
        held += (
            estimate.seconds_per_call.low <= sum(used.seconds for used in rest) / 1200 <= estimate.seconds_per_call.high
        )
        assert (estimate.calls.low, estimate.calls.high) == (1200, 1200)
        assert estimate.basis == "30 settled prompts"
        completion = estimate.completion_tokens
        assert completion.high < 2.5 * completion.low, "an interval that holds everything says nothing"
    assert 0.89 * 600 < held < 0.99 * 600


def test_calls_that_were_asked_again_in_the_pilot_are_expected_in_the_rest() -> None:
    sample = [CallUsage(4, 4 + (number % 4 == 0), 1000, 100, 8.0) for number in range(40)]
    calls = estimate_from_sample(sample, 4000, 1000, "model-1:ratings").calls
    assert 4000 < calls.low < 4250 < calls.high < 4500


def test_every_kind_of_call_has_its_own_history(tmp_path: Path) -> None:
    made, file = recipe(tmp_path), prompts(tmp_path, 100)
    found = told(made, file, settled_for(lambda text: number(text) < 15))
    assert {part.basis for part in found.parts} == {"15 settled prompts"}
    rated = next(part for part in found.parts if part.work == "ratings")
    assert rated.completion_tokens.low == rated.completion_tokens.high == 85 * 4 * 6
    written = next(part for part in found.parts if part.work == "answers")
    assert 20 * 85 < written.completion_tokens.low < written.completion_tokens.high < 60 * 85
    assert 1 < written.seconds_per_call.low < written.seconds_per_call.high < 3


def test_time_respects_limits(tmp_path: Path) -> None:
    file = prompts(tmp_path)

    def least(**limits: int) -> float:
        rater = {"name": "priced", "options": {"model": "model-1"}, "limits": limits}
        return told(recipe(tmp_path, feedback__rater=rater, feedback__completers=[rater, rater]), file).seconds.low

    free = least()
    assert least(concurrency=1) > 10 * free
    assert least(requests_per_minute=24) == pytest.approx((40 * 2 + 160) * 60 / 24)
    assert least(tokens_per_minute=100) > 10 * free


def test_a_recipe_that_cannot_start_has_no_forecast(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError, match="there is no teacher 'nobody'"):
        told(recipe(tmp_path, feedback__rater={"name": "nobody"}), prompts(tmp_path))


def test_other_calls_of_the_same_teacher_are_a_better_prior_than_none(tmp_path: Path) -> None:
    made, file = recipe(tmp_path), prompts(tmp_path)
    blind = told(made, file)

    class Sized(CallHistory):
        def sizes(self, teacher: Teacher) -> Sequence[tuple[int, float]]:
            return [(100 + n, 2.0 + n / 100) for n in range(50)] if teacher.label == "model-2" else []

    found = forecast(PromptSource(made, file), {"prompts": file}, Sized())
    before, after = ({part.teacher: part for part in made.parts if part.work == "answers"} for made in (blind, found))
    assert after["model-1"] == before["model-1"]
    assert after["model-2"].completion_tokens.low == 40 * 105
    assert after["model-2"].completion_tokens.high == 40 * 144
    assert (after["model-2"].seconds_per_call.low, after["model-2"].seconds_per_call.high) == (2.05, 2.44)
    assert "50 settled calls of this teacher" in after["model-2"].basis
