"""Whether every prompt gets its answers and its own ratings, and whether nothing finished is asked for twice."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.data.rows_made import Stop, offered, prompt, tiny, ultrafeedback_row, write_jsonl
from zephyrctl.contracts import GREEDY, PluginOptions, Reply, Sampling, Teacher
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback import collect
from zephyrctl.recipe import Recipe
from zephyrctl.records import ASPECTS, Message, Prompt, RatedPrompt, Rating, prompt_id
from zephyrctl.runs import SPLITS, Artifact, Plan, Run
from zephyrctl.stages import perform


class ByLength(Teacher):
    """A teacher that answers with as many words as it is told, and rates an answer by its words."""

    class Options(PluginOptions):
        """Options of `by-length`."""

        words: int = 1
        fails_after: int | None = None

    name = "by-length"
    asked: ClassVar[list[str]] = []
    shown: ClassVar[list[tuple[str, ...]]] = []
    closed: ClassVar[list[str]] = []

    @property
    def label(self) -> str:
        """The name and the words; the model that answered is told by the reply."""
        return f"{self.name}:{self.options.words}"

    async def reply(self, messages: Sequence[Message], sampling: Sampling = GREEDY) -> Reply:
        """So many words."""
        if self.options.fails_after is not None and len(self.asked) >= self.options.fails_after:
            raise ZephyrError("the server refuses", "pay")
        self.asked.append(messages[-1].content)
        await asyncio.sleep(0)
        return Reply(" ".join(["word"] * self.options.words), self.label)

    async def rate(self, messages: Sequence[Message], answers: Sequence[str], aspect: str) -> list[Rating]:
        """As many points as words, at most five; nothing for an empty answer."""
        self.shown.append(tuple(answers))
        counts = [len(answer.split()) for answer in answers]
        return [Rating(aspect=aspect, value=min(count, 5) or None, rationale=f"{count} words") for count in counts]

    async def close(self) -> None:
        """Remember it."""
        self.closed.append(self.label)


@pytest.fixture(autouse=True)
def by_length() -> Any:
    """The teacher of these tests is offered, and remembers nothing of earlier ones."""
    for memory in (ByLength.asked, ByLength.shown, ByLength.closed):
        memory.clear()
    with offered(ByLength):
        yield


def asking(*words: int, fails_after: int | None = None, **values: Any) -> Recipe:
    """A recipe of completers with so many words each."""
    completers = [{"name": "by-length", "options": {"words": count, "fails_after": fails_after}} for count in words]
    return tiny(feedback__completers=completers, feedback__rater={"name": "by-length"}, **values)


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
    artifact = perform(run, collect.step(asking(1, 3, 5, 2))).artifact
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
    }
    assert len(ByLength.asked) == 80
    assert len(ByLength.shown) == 80
    assert len(ByLength.closed) == 5


def test_ratings_come_back_to_their_own_answers_whatever_order_was_shown(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    artifact = perform(run, collect.step(asking(1, 2, 3, 4))).artifact
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
        perform(run, collect.step(asking(1, 2, 3, 4, feedback__concurrency=1)))
        orders.append(sorted(ByLength.shown))
    assert orders[0] == orders[1]


def test_an_answer_without_a_rating_is_missing_and_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:3])
    artifact = perform(run, collect.step(asking(0, 2))).artifact
    assert {answer.mean_rating() for row in rated_rows(artifact) for answer in row.completions} == {None, 2.0}
    assert artifact.manifest.metrics["ratings_missing"] == 3 * 4


def test_answers_that_are_there_are_kept_and_only_rated(tmp_path: Path) -> None:
    rows = [ultrafeedback_row(f"Why {n}?", {"one": "N/A", "one two three": "1"}) for n in range(6)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    artifact = perform(Run(tmp_path / "run"), collect.step(asking(5), file)).artifact
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
    read = rated_rows(perform(Run(tmp_path / "run"), collect.step(asking(2, 3), file)).artifact)
    assert {row.messages[0].content: len(row.completions) for row in read} == {"Who?": 2, "Why?": 1, "Add.\n\n1": 2}


def test_rows_that_cannot_be_used_stop_or_are_counted_and_repeated_prompts_are_counted(tmp_path: Path) -> None:
    rows: list[Any] = [{"prompt": "Who?"}, {"prompt": " "}, {"prompt": "Who?"}, {"instruction": "", "completions": []}]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ZephyrError, match=r"rows\.jsonl:2: an empty prompt"):
        perform(Run(tmp_path / "run"), collect.step(asking(1), file))
    artifact = perform(Run(tmp_path / "run"), collect.step(asking(1, skip_bad_rows=True), file)).artifact
    assert artifact.manifest.losses == {
        "an empty prompt": 1,
        "an empty instruction": 1,
        "prompts given more than once": 1,
    }
    assert len(rated_rows(artifact)) + sum(artifact.manifest.losses.values()) == len(rows)


def test_an_interrupted_collection_goes_on_asks_nothing_twice_and_comes_to_the_same(tmp_path: Path) -> None:
    unbroken, broken = Run(tmp_path / "unbroken"), Run(tmp_path / "broken")
    for run in (unbroken, broken):
        built(run, PROMPTS)
    recipe = asking(1, 2, feedback__concurrency=1)
    whole = perform(unbroken, collect.step(recipe)).artifact
    ByLength.asked.clear()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            perform(broken, collect.step(recipe), Stop(after=4))
    assert perform(broken, collect.step(recipe)).artifact.content_hash == whole.content_hash
    assert sorted(ByLength.asked) == sorted(2 * [row.messages[0].content for row in PROMPTS])


def test_more_calls_at_once_neither_change_nor_discard_what_was_begun(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with pytest.raises(KeyboardInterrupt):
        perform(run, collect.step(asking(1, feedback__concurrency=1)), Stop(after=9))
    done = len(ByLength.asked)
    artifact = perform(run, collect.step(asking(1, feedback__concurrency=8))).artifact
    assert len(ByLength.asked) == 20
    assert done == 10
    assert not perform(run, collect.step(asking(1, feedback__concurrency=2))).is_new
    assert len(rated_rows(artifact)) == 20


def test_a_teacher_that_fails_costs_nothing_that_was_done(tmp_path: Path) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS)
    with pytest.raises(ZephyrError, match="the server refuses"):
        perform(run, collect.step(asking(1, fails_after=12)))
    assert len(ByLength.closed) == 2
    assert run.artifact("feedback") is None
    journal = (run.path / ".feedback.unfinished" / ".scratch" / "rated.journal").read_text().splitlines()
    assert len(journal) == 12
    assert len({json.loads(line)["key"] for line in journal}) == 12


def test_the_offline_teachers_rate_apart_what_differs_in_quality(tmp_path: Path) -> None:
    run = Run(tmp_path)
    from zephyrctl.data import build

    recipe = tiny(build__source__dialogues=1, build__source__prompts=60)
    perform(run, build.step(recipe))
    artifact = perform(run, collect.step(recipe)).artifact
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
        ({"feedback.rater": {"name": "offlin"}}, "there is no teacher 'offlin'", "did you mean 'offline'?"),
        ({"feedback.rater": {"name": "offline", "options": {"moood": 1}}}, "refuses its options", "zephyrctl plugins"),
    ],
)
def test_a_recipe_that_names_nobody_to_ask_is_refused(
    tmp_path: Path, values: dict[str, Any], problem: str, remedy: str
) -> None:
    run = Run(tmp_path)
    built(run, PROMPTS[:2])
    with pytest.raises(ZephyrError, match=problem) as caught:
        perform(run, collect.step(tiny(**values)))
    assert remedy in caught.value.remedy
