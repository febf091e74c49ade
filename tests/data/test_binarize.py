"""Whether every prompt becomes a pair or a counted loss, and whether no order or company changes a pair."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.data.rows_made import rated, tiny, ultrafeedback_row, write_jsonl
from zephyrctl import plugins
from zephyrctl.contracts import Binarizer
from zephyrctl.data import binarize
from zephyrctl.errors import ZephyrError
from zephyrctl.recipe import Recipe
from zephyrctl.records import PreferencePair, RatedPrompt
from zephyrctl.runs import SPLITS, Artifact, Plan, Run
from zephyrctl.stages import perform

STRATEGIES = ("random-rejected", "highest-lowest", "notus")
ODD = [
    rated("all tied", ("a", 3), ("b", 3)),
    rated("nobody rated", ("a", None), ("b", None)),
    rated("one rated", ("a", 3), ("b", None)),
    rated("no answers"),
    rated("empty chosen", ("  ", 5), ("b", 1)),
    rated("empty rejected", ("a", 5), ("", 1)),
    rated("identical", ("a", 5), ("a", 1)),
]
"""Prompts that show no preference, one for each cause."""


def rows(count: int = 200) -> list[RatedPrompt]:
    """Prompts of four answers with random marks, some missing."""
    rng = Random(0)
    marks = [None, 1, 2, 2.5, 3, 4, 5]
    return [rated(f"prompt {n}", *((f"answer {k} to {n}", rng.choice(marks)) for k in range(4))) for n in range(count)]


def strategy(name: str) -> Binarizer:
    """A built-in strategy."""
    return plugins.load().binarizer(name, {})


def pairs(prompts: list[RatedPrompt], name: str, seed: int = 0) -> tuple[list[PreferencePair], Counter[str]]:
    """The pairs and the losses."""
    lost: Counter[str] = Counter()
    return list(binarize.binarize(prompts, strategy(name), seed, lost)), lost


def feedback(run: Run, prompts: list[RatedPrompt]) -> None:
    """A finished feedback artifact of these prompts."""
    with run.draft(Plan(name="feedback", stage="feedback", settings={}, inputs={}), {}, {}) as draft:
        for place, split in enumerate(SPLITS):
            draft.write("rated", split, prompts[place::2], RatedPrompt)
        draft.finish()


def binarized(run: Run, recipe: Recipe, input_file: Path | None = None) -> Artifact:
    """The artifact of the step."""
    return perform(run, binarize.step(recipe, input_file)).artifact


def read(artifact: Artifact) -> dict[str, PreferencePair]:
    """Its pairs by id."""
    return {pair.id: pair for split in SPLITS for pair in artifact.read("pairs", split, PreferencePair)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_prompt_is_a_pair_or_a_loss(name: str) -> None:
    prompts = [*rows(), *ODD]
    made, lost = pairs(prompts, name)
    assert len(made) + lost.total() == len(prompts)
    assert {"identical answers", "empty chosen answer", "empty rejected answer", "fewer than two rated answers"} <= set(
        lost
    )
    assert not {pair.id for pair in made} & {prompt.id for prompt in ODD}


@pytest.mark.parametrize("name", STRATEGIES)
def test_chosen_outscores_rejected_and_both_are_answers_of_the_prompt(name: str) -> None:
    prompts = {prompt.id: prompt for prompt in rows()}
    made, _ = pairs(list(prompts.values()), name)
    assert len(made) > 100
    for pair in made:
        assert pair.score_chosen is not None and pair.score_rejected is not None
        assert pair.score_chosen > pair.score_rejected
        means = {answer.text: answer.mean_rating() for answer in prompts[pair.id].completions}
        assert (means[pair.chosen], means[pair.rejected]) == (pair.score_chosen, pair.score_rejected)
        assert pair.score_chosen == max(mean for mean in means.values() if mean is not None)
        assert pair.messages == prompts[pair.id].messages


@pytest.mark.parametrize("name", STRATEGIES)
def test_neither_order_nor_company_changes_a_pair(name: str) -> None:
    prompts = rows()
    made = {pair.id: pair for pair in pairs(prompts, name)[0]}
    shuffled = Random(1).sample(prompts, len(prompts))
    assert {pair.id: pair for pair in pairs(shuffled, name)[0]} == made
    half = {pair.id: pair for pair in pairs(prompts[::2], name)[0]}
    assert half.items() <= made.items()


def test_another_seed_draws_other_rejected_answers() -> None:
    first, second = (pairs(rows(), "random-rejected", seed)[0] for seed in (0, 1))
    assert [pair.id for pair in first] == [pair.id for pair in second]
    assert sum(a.rejected != b.rejected for a, b in zip(first, second, strict=True)) > 20


def test_random_rejected_reaches_every_place() -> None:
    """The published set re-seeded its generator in every row: of four distinct answers, place 0 or 2 was rejected."""
    prompts = [rated(f"p{n}", *((f"answer {k}", mark) for k, mark in enumerate((1, 2, 3, 5)))) for n in range(300)]
    counts = Counter(pair.rejected for pair in pairs(prompts, "random-rejected")[0])
    assert set(counts) == {"answer 0", "answer 1", "answer 2"}
    assert min(counts.values()) > 60


def test_the_step_accounts_for_every_rated_prompt(tmp_path: Path) -> None:
    run = Run(tmp_path)
    prompts = [*rows(60), *ODD]
    feedback(run, prompts)
    artifact = binarized(run, tiny())
    metrics = artifact.manifest.metrics
    assert metrics["prompts"] == len(prompts)
    assert metrics["pairs"] + sum(artifact.manifest.losses.values()) == len(prompts)
    assert metrics["pairs"] == sum(artifact.count("pairs", split) for split in SPLITS) == len(read(artifact))
    missing = sum(mark.value is None for row in prompts for answer in row.completions for mark in answer.ratings)
    assert metrics["ratings_missing"] == missing
    sides = {split: {pair.id for pair in artifact.read("pairs", split, PreferencePair)} for split in SPLITS}
    for place, split in enumerate(SPLITS):
        assert sides[split] <= {prompt.id for prompt in prompts[place::2]}


@pytest.mark.parametrize("as_list", [False, True], ids=["object", "list"])
@pytest.mark.parametrize("marks", [("5", "N/A", "2", "best"), (5, None, 2.0, "7.5")], ids=["texts", "numbers"])
def test_a_file_in_ultrafeedbacks_form_is_binarized(tmp_path: Path, as_list: bool, marks: tuple[Any, ...]) -> None:
    answers = dict(zip(("good", "unknown", "bad", "odd"), marks, strict=True))
    file = write_jsonl(tmp_path / "rows.jsonl", [ultrafeedback_row(f"Why {n}?", answers, as_list) for n in range(40)])
    artifact = binarized(Run(tmp_path / "run"), tiny(build__test_share=0.3), file)
    made = read(artifact)
    assert len(made) == 40
    assert {(pair.chosen, pair.rejected) for pair in made.values()} == {("good", "bad")}
    assert {(pair.score_chosen, pair.score_rejected) for pair in made.values()} == {(5.0, 2.0)}
    assert artifact.manifest.losses == {}
    assert artifact.manifest.metrics["ratings_missing"] == 40 * 2 * 4
    assert artifact.count("pairs", "test") > 0


def test_a_file_without_ratings_is_refused_with_the_remedy(tmp_path: Path) -> None:
    row = ultrafeedback_row("Why?", {"good": "5", "bad": "1"})
    for completion in row["completions"]:
        del completion["annotations"]
    file = write_jsonl(tmp_path / "rows.jsonl", [row, row])
    run = Run(tmp_path / "run")
    with pytest.raises(ZephyrError) as caught:
        binarized(run, tiny(), file)
    assert caught.value.problem == "no prompt of 2 shows a preference (2 x fewer than two rated answers)"
    assert "zephyrctl data feedback" in caught.value.remedy
    assert run.artifact("binarize") is None


def test_rows_of_a_file_that_cannot_be_used_stop_or_are_counted(tmp_path: Path) -> None:
    good = [ultrafeedback_row(f"Why {n}?", {"good": "5", "bad": "1"}) for n in range(5)]
    bad = [{"instruction": "Why?"}, {**good[0], "instruction": " "}, {**good[0], "completions": [{"response": None}]}]
    file = write_jsonl(tmp_path / "rows.jsonl", [*good, *bad])
    with pytest.raises(ZephyrError, match=r"rows\.jsonl:6: ") as caught:
        binarized(Run(tmp_path / "run"), tiny(), file)
    assert "--skip-bad-rows" in caught.value.remedy
    manifest = binarized(Run(tmp_path / "run"), tiny(skip_bad_rows=True), file).manifest
    assert sum(manifest.losses.values()) == len(manifest.losses) == len(bad)
    assert manifest.metrics["pairs"] == len(good)
    write_jsonl(file, bad)
    with pytest.raises(ZephyrError, match="1 x an empty instruction"):
        binarized(Run(tmp_path / "run"), tiny(skip_bad_rows=True), file)


def test_an_unknown_strategy_names_the_nearest_before_anything_starts(tmp_path: Path) -> None:
    run = Run(tmp_path)
    feedback(run, rows(4))
    with pytest.raises(ZephyrError) as caught:
        binarized(run, tiny(binarize__strategy="random-reject"))
    assert caught.value.problem == "there is no binarizer 'random-reject'"
    assert caught.value.remedy == "did you mean 'random-rejected'?"
    assert not (run.path / ".binarize.unfinished").exists()


def test_without_feedback_the_error_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError) as caught:
        binarized(Run(tmp_path / "run"), tiny())
    assert caught.value.problem.endswith("has no finished 'feedback'")
    assert caught.value.remedy.startswith("zephyrctl data feedback")


def test_another_strategy_or_seed_is_made_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    feedback(run, rows(20))
    binarized(run, tiny())
    for recipe, is_new in ((tiny(), False), (tiny(binarize__strategy="notus"), True), (tiny(seed=9), True)):
        assert perform(run, binarize.step(recipe)).is_new is is_new
