"""Whether every prompt gets its answers and its own ratings, and whether nothing finished is asked for twice."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.chat_server import REPORTED, Call, ChatServer, by_rules, serve
from tests.conftest import Command
from tests.data.rows_made import Stop, offered, prompt, tiny, ultrafeedback_row, write_jsonl
from zephyrctl.contracts import GREEDY, PluginOptions, Ratings, Reply, Sampling, Teacher
from zephyrctl.errors import CallFailed, ZephyrError
from zephyrctl.feedback import collect, pilot
from zephyrctl.feedback.annotators import FailedCall
from zephyrctl.progress import Silence
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import ASPECTS, Judgment, Message, Prompt, RatedPrompt, Rating, prompt_id
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run
from zephyrctl.stages import forecast, perform
from zephyrctl.teachers.call_log import CallLog


class ByLength(Teacher):
    """A teacher that answers with as many words as it is told, and rates an answer by its words."""

    class Options(PluginOptions):
        """Options of `by-length`."""

        words: int = 1
        fails_after: int | None = None
        fails_on: str | None = None

    name = "by-length"
    asked: ClassVar[list[str]] = []
    shown: ClassVar[list[tuple[str, ...]]] = []
    closed: ClassVar[list[str]] = []
    systems: ClassVar[list[str]] = []

    @property
    def label(self) -> str:
        """The name and the words; the model that answered is told by the reply."""
        return f"{self.name}:{self.options.words}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """So many words."""
        if self.options.fails_after is not None and len(self.asked) >= self.options.fails_after:
            raise ZephyrError("the server refuses", "pay")
        if self.options.fails_on and self.options.fails_on in messages[-1].content:
            raise CallFailed("it refuses this prompt", "ask something else", cause="refused")
        await asyncio.sleep(0)
        self.asked.append(messages[-1].content)
        ByLength.systems += [turn.content for turn in messages if turn.role == "system"]
        return Reply(" ".join(["word"] * self.options.words), self.label, 10, self.options.words, "length")

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str, sample: int = 0) -> Ratings:
        """As many points as words, at most five; nothing for an empty answer."""
        self.shown.append(tuple(answers))
        counts = [len(answer.split()) for answer in answers]
        marks = [Rating(aspect=aspect, value=min(count, 5) or None, rationale=f"{count} words") for count in counts]
        return Ratings(marks, f"{aspect} {sample}", self.label)

    async def close(self) -> None:
        """Remember it."""
        self.closed.append(self.label)


@pytest.fixture(autouse=True)
def by_length() -> Any:
    """The teacher of these tests is offered, and remembers nothing of earlier ones."""
    for memory in (ByLength.asked, ByLength.shown, ByLength.closed, ByLength.systems):
        memory.clear()
    with offered(ByLength):
        yield


def asking(*words: int, fails_after: int | None = None, fails_on: str | None = None, **values: Any) -> Recipe:
    """A recipe of completers with so many words each."""
    fails = {"fails_after": fails_after, "fails_on": fails_on}
    completers = [{"name": "by-length", "options": {"words": count, **fails}} for count in words]
    return tiny(**({"feedback__completers": completers, "feedback__rater": {"name": "by-length"}} | values))


def built(run: Run, prompts: Sequence[Prompt]) -> None:
    """A finished build of these prompts, every third on the test side."""
    with run.draft(Plan(name="build", stage="build", settings={}, inputs={}), {}, {}) as draft:
        draft.write("prompts", "test", prompts[::3], Prompt)
        draft.write("prompts", "train", [row for place, row in enumerate(prompts) if place % 3], Prompt)
        draft.finish()


def rated_rows(artifact: Artifact) -> list[RatedPrompt]:
    """All rated prompts."""
    return [row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)]


PROMPTS = [prompt(f"Question {number}?") for number in range(20)]


def test_every_prompt_is_answered_by_every_completer_and_rated_in_every_aspect(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    artifact = perform(run, collect.FeedbackStage(asking(1, 3, 5, 2))).artifact
    rows = rated_rows(artifact)
    assert {row.id for row in rows} == {row.id for row in PROMPTS}
    for row in rows:
        assert [answer.model for answer in row.completions] == [f"by-length:{words}" for words in (1, 3, 5, 2)]
        assert all(tuple(mark.aspect for mark in answer.ratings) == ASPECTS for answer in row.completions)
    assert artifact.count("rated", "test") == len(PROMPTS[::3])
    assert artifact.manifest.metrics == {
        "prompts": 20,
        "completions": 80,
        "ratings": 320,
        "ratings_missing": 0,
        "answers_cut": 80,
        "calls": 80,
        "calls_from_log": 0,
        "tokens": {"prompt_tokens": 800, "completion_tokens": 220},
    }
    assert len(ByLength.asked) == 80
    assert len(ByLength.shown) == 80
    assert len(ByLength.closed) == 5


def test_ratings_come_back_to_their_own_answers_whatever_order_was_shown(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    artifact = perform(run, collect.FeedbackStage(asking(1, 2, 3, 4))).artifact
    for row in rated_rows(artifact):
        for answer in row.completions:
            assert {mark.value for mark in answer.ratings} == {len(answer.text.split())}
            assert {mark.rationale for mark in answer.ratings} == {f"{len(answer.text.split())} words"}
    assert len(set(ByLength.shown)) > 12, "answers are shown in one order again and again"


def test_the_order_shown_hangs_on_the_prompt_and_not_on_its_place(tmp_path: Path) -> None:
    orders = []
    for name, prompts in (("forth", PROMPTS), ("back", PROMPTS[::-1])):
        ByLength.shown.clear()
        run = Run(tmp_path / name)
        built(run, prompts)
        perform(run, collect.FeedbackStage(asking(1, 2, 3, 4, feedback__concurrency=1)))
        orders.append(sorted(ByLength.shown))
    assert orders[0] == orders[1]


def test_an_answer_without_a_rating_is_missing_and_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:3])
    artifact = perform(run, collect.FeedbackStage(asking(0, 2))).artifact
    assert {answer.mean_rating() for row in rated_rows(artifact) for answer in row.completions} == {None, 2.0}
    assert artifact.manifest.metrics["ratings_missing"] == 3 * 4


def test_answers_that_are_there_are_kept_and_only_rated(tmp_path: Path) -> None:
    rows = [ultrafeedback_row(f"Why {n}?", {"one": "N/A", "one two three": "1"}) for n in range(6)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    artifact = perform(Run(tmp_path / "run"), collect.FeedbackStage(asking(5), file)).artifact
    read = rated_rows(artifact)
    assert {row.id for row in read} == {prompt_id(f"Why {n}?") for n in range(6)}
    for row in read:
        assert [(answer.model, answer.text) for answer in row.completions] == [
            ("model-0", "one"),
            ("model-1", "one two three"),
        ]
        assert [answer.mean_rating() for answer in row.completions] == [1.0, 3.0]
    assert ByLength.asked == []


def test_a_file_may_mix_prompts_and_answered_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "Who?"}, ultrafeedback_row("Why?", {"one": "5"}), {"instruction": "Add.", "input": "1"}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    read = rated_rows(perform(Run(tmp_path / "run"), collect.FeedbackStage(asking(2, 3), file)).artifact)
    assert {row.messages[0].content: len(row.completions) for row in read} == {"Who?": 2, "Why?": 1, "Add.\n\n1": 2}


def test_rows_that_cannot_be_used_stop_or_are_counted_and_repeated_prompts_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "Who?"}, {"prompt": " "}, {"prompt": "Who?"}, {"instruction": "", "completions": []}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ZephyrError, match=r"rows\.jsonl:2: an empty prompt"):
        perform(Run(tmp_path / "run"), collect.FeedbackStage(asking(1), file))
    artifact = perform(Run(tmp_path / "run"), collect.FeedbackStage(asking(1, skip_bad_rows=True), file)).artifact
    assert artifact.manifest.dropped == {
        "an empty prompt": 1,
        "an empty instruction": 1,
        "prompts given more than once": 1,
    }
    assert len(rated_rows(artifact)) + sum(artifact.manifest.dropped.values()) == len(rows)


def test_an_interrupted_collection_goes_on_asks_nothing_twice_and_comes_to_the_same(tmp_path: Path) -> None:
    unbroken, broken = Run(tmp_path / "unbroken"), Run(tmp_path / "broken")
    for run in (unbroken, broken):
        built(run, PROMPTS)
    recipe = asking(1, 2, feedback__concurrency=1)
    whole = perform(unbroken, collect.FeedbackStage(recipe)).artifact
    ByLength.asked.clear()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            perform(broken, collect.FeedbackStage(recipe), Stop(after=4))
    assert perform(broken, collect.FeedbackStage(recipe)).artifact.content_hash == whole.content_hash
    assert sorted(ByLength.asked) == sorted(2 * [row.messages[0].content for row in PROMPTS])


def test_more_calls_at_once_neither_change_nor_discard_what_was_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with pytest.raises(KeyboardInterrupt):
        perform(run, collect.FeedbackStage(asking(1, feedback__concurrency=1)), Stop(after=9))
    done = len(ByLength.asked)
    artifact = perform(run, collect.FeedbackStage(asking(1, feedback__concurrency=8))).artifact
    assert len(ByLength.asked) == 20
    assert done == 10
    assert not perform(run, collect.FeedbackStage(asking(1, feedback__concurrency=2))).is_new
    assert len(rated_rows(artifact)) == 20


def test_a_teacher_that_cannot_be_used_stops_the_stage_and_costs_nothing_that_was_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with pytest.raises(ZephyrError, match="the server refuses"):
        perform(run, collect.FeedbackStage(asking(1, fails_after=12, feedback__concurrency=1)))
    assert len(ByLength.closed) == 2
    assert run.artifact("feedback") is None
    with CallLog(run.path) as ledger:
        assert [row["calls"] for row in ledger.totals()] == [12]


def test_a_prompt_whose_call_fails_for_good_is_listed_with_its_cause_and_the_rest_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    recipe = asking(1, 2, fails_on="Question 7?", feedback__failed_share=0.1)
    artifact = perform(run, collect.FeedbackStage(recipe)).artifact
    failed = [row for split in SPLITS for row in artifact.read("failed", split, FailedCall)]
    assert {(row.id, row.what, row.cause) for row in failed} == {
        (prompt_id("Question 7?"), f"answer of by-length:{words}", "refused") for words in (1, 2)
    }
    assert all("it refuses this prompt" in row.problem for row in failed)
    rows = rated_rows(artifact)
    assert {row.id for row in rows} == {row.id for row in PROMPTS} - {prompt_id("Question 7?")}
    assert artifact.manifest.dropped == {"prompts failed: refused": 1}
    assert (artifact.manifest.metrics["prompts"], artifact.manifest.metrics["failed"]) == (19, 1)


def test_more_failures_than_the_recipe_allows_stop_the_stage_and_nothing_is_repaid(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    values: dict[str, Any] = {"feedback__concurrency": 1}
    with pytest.raises(ZephyrError) as caught:
        perform(run, collect.FeedbackStage(asking(1, fails_on="Question 1", feedback__failed_share=0.5, **values)))
    assert "11 of 20 prompts failed (11 x refused; the first, answer of by-length:1" in caught.value.problem
    assert "feedback.failed_share" in caught.value.remedy
    assert run.artifact("feedback") is None
    answered = len(ByLength.asked)
    assert answered == 9
    with pytest.raises(ZephyrError, match="failed"):
        perform(run, collect.FeedbackStage(asking(1, fails_on="Question 1", feedback__failed_share=0.5, **values)))
    assert len(ByLength.asked) == answered, "what was answered is not asked again"


def test_once_too_many_have_failed_no_other_prompt_is_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with pytest.raises(ZephyrError, match="1 of 20 prompts failed"):
        perform(
            run,
            collect.FeedbackStage(asking(1, fails_on="Question", feedback__failed_share=0, feedback__concurrency=1)),
        )


def test_more_repeats_ask_only_for_the_new_ones_and_keep_the_old(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with serve() as chat:
        recipe: dict[str, Any] = {"feedback__rater": rater(chat), "feedback__asks": 1}
        once = perform(run, collect.FeedbackStage(asking(1, 2, **recipe))).artifact
        first = {call.aspect + call.prompt_id: call for call in judgments(once)}
        assert len(chat.calls) == len(first) == 20 * 4
        twice = perform(run, collect.FeedbackStage(asking(1, 2, **recipe, feedback__repeats=2))).artifact
        assert len(chat.calls) == 20 * 8
        assert len(ByLength.asked) == 40
        assert twice.manifest.metrics["calls_from_log"] == 40 + 80
        assert {call.aspect + call.prompt_id: call for call in judgments(twice) if not call.repeat} == first
        assert {call.repeat for call in judgments(twice)} == {0, 1}


def rater(chat: ChatServer, **limits: Any) -> dict[str, Any]:
    """The server as a rater."""
    return {"name": "openai", "options": {"model": "asked-for", "base_url": chat.base_url}, "limits": limits}


def judgments(artifact: Artifact) -> list[Judgment]:
    """All raw judgments."""
    return [row for split in SPLITS for row in artifact.read("judgments", split, Judgment)]


def test_every_rating_call_is_kept_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    artifact = perform(run, collect.FeedbackStage(asking(1, 2, 3, feedback__repeats=2))).artifact
    calls = judgments(artifact)
    assert len(calls) == 20 * 4 * 2
    assert {(call.text, call.rater) for call in calls} == {
        (f"{aspect} {sample}", "by-length:1") for aspect in ASPECTS for sample in (0, 10)
    }
    for call in calls:
        assert call.values == [1, 2, 3]
        assert sorted(call.order) == [0, 1, 2]
    for row in rated_rows(artifact):
        assert all(
            mark.spread == 0 and mark.rater == "by-length:1" for made in row.completions for mark in made.ratings
        )


def test_answers_of_a_server_are_rated_by_a_server_and_each_reports_its_model(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:6])
    with serve() as chat:
        values = {"feedback__completers": [rater(chat), rater(chat, concurrency=2)], "feedback__rater": rater(chat)}
        artifact = perform(run, collect.FeedbackStage(tiny(**values, feedback__critique=True))).artifact
    for row in rated_rows(artifact):
        for made in row.completions:
            assert (made.model, made.finish_reason) == (REPORTED, "stop")
            assert {mark.rater for mark in made.ratings} == {REPORTED}
            assert made.overall and 1 <= made.overall <= 10 and f"[[{made.overall:g}]]" in made.critique
    calls = judgments(artifact)
    assert Counter(call.aspect for call in calls) == Counter({**dict.fromkeys(ASPECTS, 6), "critique": 12})
    equal = sum(len({made.text for made in row.completions}) == 1 for row in rated_rows(artifact))
    assert artifact.manifest.metrics["calls"] == len(chat.calls) == 6 * (2 + 4 + 2) - equal, "one critique for one text"


def test_nonsense_of_a_server_is_asked_again_and_then_missing_and_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:5])
    with serve() as chat:
        chat.answer = lambda call: (
            "Answer 1: N/A\nAnswer 2: 4" if "Aspect: honesty" in call.text else "Seven and a half."
        )
        artifact = perform(
            run, collect.FeedbackStage(asking(1, 2, feedback__rater=rater(chat), feedback__asks=3))
        ).artifact
    assert artifact.manifest.dropped == {
        "ratings missing: said not to apply (N/A)": 5,
        "ratings missing: could not be read": 5 * 2 * 3,
    }
    assert artifact.manifest.metrics["asked_again"] == 5 * 3 * 2
    assert artifact.manifest.metrics["ratings_missing"] == 35
    assert len(chat.calls) == 5 * (1 + 3 * 3)


def test_answers_under_principles_are_asked_for_with_them_and_name_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    own = tmp_path / "own.yaml"
    own.write_text("brevity: Be brief.\nwit: Be witty.\n")
    artifact = perform(run, collect.FeedbackStage(asking(1, 2, feedback__principles=str(own)))).artifact
    named = Counter(made.principle for row in rated_rows(artifact) for made in row.completions)
    assert Counter(ByLength.systems) == {"Be brief.": named["brevity"], "Be witty.": named["wit"]}
    assert set(named) == {"brevity", "wit"}
    assert all(message.role != "system" for row in rated_rows(artifact) for message in row.messages)
    own.write_text("brevity: Be brief.\nwit: Be wittier.\n")
    again = perform(run, collect.FeedbackStage(asking(1, 2, feedback__principles=str(own)))).artifact
    assert again.manifest.metrics["calls"] == named["wit"]


def test_what_changes_no_result_does_not_make_the_stage_run_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    perform(run, collect.FeedbackStage(asking(1)))
    values: dict[str, Any] = {"feedback__concurrency": 3, "feedback__failed_share": 0.5}
    values["feedback__rater"] = {"name": "by-length", "limits": {"concurrency": 1, "attempts": 2}}
    assert not perform(run, collect.FeedbackStage(asking(1, **values), max_usd=5)).is_new
    assert perform(run, collect.FeedbackStage(asking(1, feedback__asks=3))).is_new


def test_more_prompts_repay_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:12])
    perform(run, collect.FeedbackStage(asking(1, 2)))
    built(run, PROMPTS)
    artifact = perform(run, collect.FeedbackStage(asking(1, 2))).artifact
    assert artifact.manifest.metrics["calls"] == 2 * 8
    assert len(ByLength.asked) == 2 * 20


def test_a_pilot_writes_no_artifact_and_the_full_run_repays_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with serve() as chat:
        recipe = asking(1, 2, feedback__rater=rater(chat))
        told = pilot.run_pilot(run, collect.FeedbackStage(recipe), 6, Silence())
        assert run.artifact("feedback") is None
        assert (told["pilot"]["prompts"], told["pilot"]["calls"], len(chat.calls)) == (6, 6 * 6, 6 * 4)
        rest = told["rest"]
        assert (rest["prompts"], rest["prompts_settled"]) == (20, 6)
        assert rest["calls"]["low"] >= 14 * 6
        assert rest["usd"] is None and "asked-for" in rest["no_price"]
        text = "\n".join(pilot.lines(told))
        assert "pilot: 6 prompts" in text and "for 14 of 20 prompts" in text
        again = pilot.run_pilot(run, collect.FeedbackStage(recipe), 6, Silence())
        assert again["pilot"]["calls"] == 0
        artifact = perform(run, collect.FeedbackStage(recipe)).artifact
        assert artifact.manifest.metrics["calls"] == 14 * 6
        assert len(chat.calls) == 20 * 4


def test_a_budget_stops_the_stage_before_it_is_passed_and_keeps_what_was_paid(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    built(run, PROMPTS)
    own = tmp_path / "prices.yaml"
    own.write_text("models: {asked-for: {input: 100, output: 100}, 'by-length:1': {input: 0, output: 0}}\n")
    with serve() as chat:
        recipe = asking(1, feedback__rater=rater(chat, concurrency=1), prices=str(own))
        with pytest.raises(ZephyrError, match="the budget is used up"):
            perform(run, collect.FeedbackStage(recipe, max_usd=0.5))
        paid = len(chat.calls)
        assert 0 < paid < 80
        with CallLog(run.path, "feedback") as ledger:
            assert 0 < ledger.spent_usd() <= 0.5
        costs = forecast(run, collect.FeedbackStage(recipe))["costs"]
        assert sum(part["settled"] for part in costs["parts"] if part["work"] == "ratings") == paid
        artifact = perform(run, collect.FeedbackStage(recipe)).artifact
        assert len(chat.calls) == 80
        assert artifact.manifest.cost_usd == pytest.approx(sum(map(usd, chat.calls)))


def usd(call: Call) -> float:
    """What a rating call costs at 100 dollars a million tokens: words stand for tokens."""
    return len(f"{call.text} {by_rules(call)}".split()) * 100 / 1e6


def test_a_dry_run_counts_what_is_settled_and_leaves_no_trace(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    built(run, PROMPTS)
    recipe = asking(1, 2)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    costs = forecast(run, collect.FeedbackStage(recipe))["costs"]
    assert {(part["work"], part["due"], part["settled"]) for part in costs["parts"]} == {
        ("answers", 20, 0),
        ("answers", 20, 0),
        ("ratings", 80, 0),
    }
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert ByLength.asked == []
    perform(run, collect.FeedbackStage(recipe))
    assert "costs" not in forecast(run, collect.FeedbackStage(recipe)), "nothing is run again, so nothing is paid"
    changed = forecast(run, collect.FeedbackStage(asking(1, 2, feedback__repeats=2)))["costs"]
    assert {(part["work"], part["due"]) for part in changed["parts"]} == {("answers", 0), ("ratings", 160)}


def test_the_offline_teachers_rate_apart_what_differs_in_quality(tmp_path: Path) -> None:
    run = Run(tmp_path)
    from zephyrctl.data import build

    recipe = tiny(build__source__dialogues=1, build__source__prompts=60)
    perform(run, build.BuildStage(recipe))
    artifact = perform(run, collect.FeedbackStage(recipe)).artifact
    means: dict[str, list[float]] = {}
    for row in rated_rows(artifact):
        for answer in row.completions:
            means.setdefault(answer.model, []).append(answer.mean_rating() or 0)
    average = {model: sum(values) / len(values) for model, values in means.items()}
    assert set(average) == {f"offline:{leaning}" for leaning in ("careful", "short", "hedging", "guessing")}
    assert max(average, key=lambda model: average[model]) == "offline:careful"
    assert any("rules" in note for note in artifact.manifest.notes)


@pytest.mark.parametrize(
    ("values", "problem", "remedy"),
    [
        ({"feedback.completers": []}, "no completer is chosen", "feedback.completers"),
        ({"feedback.aspects": ["honesty"] * 2}, "names 'honesty' twice", "once"),
        (
            {"binarize.score": "weights", "binarize.weights": {"honesty": 1, "wit": 2}},
            "binarize.weights has a weight for 'wit', which feedback.aspects does not rate",
            "feedback.aspects",
        ),
        ({"feedback.aspects": ["wit"]}, "no rules for the aspect 'wit'", "feedback.aspects"),
        ({"feedback.principles": "nowhere.yaml"}, "there is no file nowhere.yaml", "check the path"),
        ({"feedback.rater": {"name": "offlin"}}, "there is no teacher 'offlin'", "did you mean 'offline'?"),
        (
            {"feedback.rater": {"name": "offline", "options": {"moood": 1}}},
            "wrong options for",
            "zephyrctl plugins",
        ),
    ],
)
def test_a_recipe_that_names_nobody_to_ask_is_refused(
    tmp_path: Path, values: dict[str, Any], problem: str, remedy: str
) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:2])
    with pytest.raises(ZephyrError, match=problem) as caught:
        perform(run, collect.FeedbackStage(tiny(**values)))
    assert remedy in caught.value.remedy


def test_the_command_takes_a_file_for_each_model_and_says_what_is_wrong(zephyrctl: Command, tmp_path: Path) -> None:
    for model in ("one", "two"):
        rows = [{"instruction": f"Why {n}?", "output": f"{model} {n}", "generator": model} for n in range(3)]
        write_jsonl(tmp_path / f"{model}.jsonl", rows)
    files = ["--answers", "one.jsonl", "--answers", "two.jsonl"]
    feedback = ("data", "feedback", "--json")
    dry = zephyrctl(*feedback, *files, "--dry-run").json["dry_run"][0]
    assert dry["costs"]["calls"]["low"] == 12
    done = zephyrctl(*feedback, *files)
    assert done.json["metrics"]["completions"] == 6, done.err
    assert zephyrctl(*feedback, *files, "--set", "feedback.concurrency=2", "--max-usd", "1").json["unchanged"]
    for arguments, code, problem in (
        (files[:2], 2, "one.jsonl alone leaves nothing to compare"),
        ([*files, "--input", "one.jsonl"], 2, "--input and --answers both say what to read"),
        ([*files, *files], 2, "names a file twice"),
        ([*files, "--dry-run", "--pilot", "3"], 2, "--dry-run makes no calls"),
        ([*files, "--set", "feedback.rater=null"], 1, "no teacher is chosen to rate"),
        (["--answers", "one.jsonl", "--answers", "three.jsonl"], 1, "there is no file three.jsonl"),
    ):
        outcome = zephyrctl(*feedback, *arguments)
        assert (outcome.code, problem in outcome.err) == (code, True), outcome.err
    told = zephyrctl(*feedback, *files, "--pilot", "2", "--fresh").json
    assert told["pilot"]["prompts"] == 2
    assert "pilot: 2 prompts" in zephyrctl("data", "feedback", *files, "--pilot", "2").out
