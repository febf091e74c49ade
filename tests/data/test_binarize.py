"""Whether every prompt becomes a pair or a counted loss, and whether no order or company changes a pair."""

from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.data.rows_made import rated, tiny, ultrafeedback_row, write_jsonl
from zephyrctl import plugins
from zephyrctl.contracts import Answers, Binarizer, Picked
from zephyrctl.data import binarize
from zephyrctl.data.answer_scores import scores_of
from zephyrctl.data.chunks import file_chunks
from zephyrctl.data.rated_columns import RatedBatch, RatingColumns
from zephyrctl.errors import ZephyrError
from zephyrctl.plugins import Offer
from zephyrctl.recipe.schema import Binarize, Recipe
from zephyrctl.records import ASPECTS, Completion, Message, PreferencePair, RatedPrompt, Rating
from zephyrctl.runs.artifacts import SPLITS, Artifact
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run
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


def pairs(
    prompts: list[RatedPrompt], name: str, seed: int = 0, **rules: str
) -> tuple[list[PreferencePair], Counter[str]]:
    """The pairs and the losses."""
    counts, policies = binarize.PairingCounts(), Binarize.model_validate(rules)
    return made_of(prompts, strategy(name), policies, seed, counts), counts.dropped


def made_of(
    prompts: list[RatedPrompt], strategy: Binarizer, rules: Binarize, seed: int, counts: binarize.PairingCounts
) -> list[PreferencePair]:
    """The pairs as records."""
    table = binarize.pairs_of(RatedBatch.of(prompts), strategy, rules, seed, counts)
    return [PreferencePair.model_validate(pair) for pair in table.to_pylist()]


def feedback(run: Run, prompts: list[RatedPrompt]) -> None:
    """A finished feedback artifact of these prompts."""
    with run.draft(Plan(name="feedback", stage="feedback", settings={}, inputs={}), {}, {}) as draft:
        for place, split in enumerate(SPLITS):
            draft.write("rated", split, prompts[place::2], RatedPrompt)
        draft.finish()


def binarized(run: Run, recipe: Recipe, input_file: Path | None = None) -> Artifact:
    """The artifact of the step."""
    return perform(run, binarize.BinarizeStage(recipe, input_file)).artifact


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
    assert metrics["pairs"] + sum(artifact.manifest.dropped.values()) == len(prompts)
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
    assert artifact.manifest.dropped == {}
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
    assert sum(manifest.dropped.values()) == len(manifest.dropped) == len(bad)
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
        assert perform(run, binarize.BinarizeStage(recipe)).is_new is is_new


def test_identical_and_empty_texts_are_kept_where_the_recipe_says_so() -> None:
    kept, lost = pairs(ODD, "random-rejected", identical="keep", empty="keep")
    assert {pair.messages[0].content for pair in kept} == {"empty chosen", "empty rejected", "identical"}
    assert lost == {"all answers tied": 1, "fewer than two rated answers": 3}


def test_pairs_left_out_beside_others_are_counted_by_themselves(tmp_path: Path) -> None:
    run = Run(tmp_path)
    feedback(run, [rated("Why?", ("a", 5), ("", 3), ("a", 1), ("b", 2)), rated("Who?", ("a", 5), ("b", 1))])
    artifact = binarized(run, tiny(binarize__strategy="all-pairs"))
    assert artifact.manifest.metrics["prompts_paired"] == 2
    assert artifact.manifest.metrics["pairs"] == 2 + 1
    assert artifact.manifest.metrics["pairs_left_out"] == 4
    assert artifact.manifest.dropped == {}
    assert artifact.manifest.notes == [
        "dropped pairs of prompts that have other pairs: "
        "2 x empty chosen answer, 1 x empty rejected answer, 1 x identical answers"
    ]
    texts = [(pair.chosen, pair.rejected) for split in SPLITS for pair in artifact.read("pairs", split, PreferencePair)]
    assert all(chosen and rejected and chosen != rejected for chosen, rejected in texts)


def test_several_processes_make_the_pairs_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups are shared out, and come back in order."""
    monkeypatch.setattr("zephyrctl.runs.parquet.ROWS_PER_GROUP", 16)
    run = Run(tmp_path)
    feedback(run, rows(200))
    monkeypatch.setattr(binarize, "usable_cores", lambda: 1)
    alone = binarized(run, tiny())
    monkeypatch.setattr(binarize, "usable_cores", lambda: 2)
    together = perform(run, binarize.BinarizeStage(tiny()), fresh=True).artifact
    assert together.manifest.metrics == alone.manifest.metrics
    assert together.manifest.dropped == alone.manifest.dropped
    assert together.content_hash == alone.content_hash


def test_a_published_rule_sets_score_strategy_and_policies(tmp_path: Path) -> None:
    """The overall score of 10 that was a 1 is chosen by the published rule, and not by the one that was meant."""
    answers = {"good": "4", "spoilt": "1", "middling": "3"}
    lines = [ultrafeedback_row(f"Why {n}?", answers) for n in range(20)]
    for line in lines:
        for completion, overall in zip(line["completions"], (8, 10, 6), strict=True):
            completion["overall_score"] = overall
    file = write_jsonl(tmp_path / "rows.jsonl", lines)
    published = read(binarized(Run(tmp_path / "v1"), tiny(binarize__compat="zephyr-v1"), file))
    assert {(pair.chosen, pair.rejected, pair.score_chosen) for pair in published.values()} == {("spoilt", "good", 10)}
    meant = binarized(Run(tmp_path / "fixed"), tiny(binarize__compat="zephyr-fixed"), file)
    assert {pair.chosen for pair in read(meant).values()} == {"good"}
    assert {pair.rejected for pair in read(meant).values()} == {"spoilt", "middling"}
    assert meant.manifest.metrics["overall_10_was_1"] == 20


def test_the_published_rule_lets_identical_and_empty_texts_through(tmp_path: Path) -> None:
    """As the published set does, whatever the recipe's policies; the rule as it was meant keeps to them."""
    lines = [
        ultrafeedback_row("Same?", {"a": "5", "b": "4"}),
        ultrafeedback_row("Empty?", {"": "5", "c": "4"}),
        ultrafeedback_row("Fine?", {"d": "5", "e": "4"}),
    ]
    lines[0]["completions"][1]["response"] = "a"
    for line in lines:
        line["completions"][0]["overall_score"] = 9.0
    file = write_jsonl(tmp_path / "rows.jsonl", lines)
    published = binarized(Run(tmp_path / "v1"), tiny(binarize__compat="zephyr-v1"), file)
    assert {(pair.chosen, pair.rejected) for pair in read(published).values()} == {("a", "a"), ("", "c"), ("d", "e")}
    meant = binarized(Run(tmp_path / "fixed"), tiny(binarize__compat="zephyr-fixed"), file)
    assert {(pair.chosen, pair.rejected) for pair in read(meant).values()} == {("d", "e")}
    assert meant.manifest.dropped == {"identical answers": 1, "empty chosen answer": 1}


def test_weights_name_aspects_that_are_rated(tmp_path: Path) -> None:
    run = Run(tmp_path)
    feedback(run, rows(20))
    with pytest.raises(ZephyrError) as caught:
        binarized(run, tiny(binarize__score="weights", binarize__weights={"helpfulness": 1, "wit": 2}))
    assert "wit" in caught.value.problem
    assert "helpfulness" in caught.value.remedy
    with pytest.raises(ZephyrError, match="gives no weight"):
        binarized(run, tiny(binarize__score="weights"))
    assert run.artifact("binarize") is None


ALL = {
    "random-rejected": {},
    "highest-lowest": {},
    "notus": {},
    "margin": {"at_least": 1.5},
    "all-pairs": {"at_least": 0.5},
}
POLICIES = [
    {"score": score, "ties": ties, "missing": missing, "identical": identical, "empty": empty}
    for score in ("mean", "overall", "weights")
    for ties in ("random", "first", "drop")
    for missing in ("skip", "drop-answer", "drop-prompt")
    for identical, empty in (("drop", "drop"), ("keep", "drop"), ("drop", "keep"), ("keep", "keep"))
]


def odd_rows(count: int) -> list[RatedPrompt]:
    """Prompts of up to five answers, some empty, the same, unrated, without a mark or with a wrong overall score."""
    rng = Random(3)
    return [
        RatedPrompt(
            id=f"id {number}",
            messages=[Message(role="user", content=f"Why {number}?")],
            completions=[odd_answer(place, rng) for place in range(rng.randint(0, 5))],
            source="test",
        )
        for number in range(count)
    ]


def odd_answer(place: int, rng: Random) -> Completion:
    """An answer to such a prompt."""
    text = rng.choice(["", " ", "same", "same", *(f"answer {place}" for _ in range(6))])
    marks = {aspect: rng.choice([None, 1, 2, 3, 4, 5]) for aspect in ASPECTS[: rng.randint(2, 4)]}
    ratings = [Rating(aspect=aspect, value=value) for aspect, value in marks.items()]
    overall = rng.choice([None, 1, 4, 7, 10, 10])
    return Completion(model=f"model {place}", text=text, ratings=ratings, overall=overall)


@pytest.mark.parametrize("name", ALL)
def test_under_every_policy_sums_check_out_and_no_order_or_sharding_changes_a_pair(name: str) -> None:
    """Every prompt is paired or lost for a cause; chosen outscores rejected; shards of a shuffle make the same."""
    prompts = odd_rows(60)
    shuffled = Random(1).sample(prompts, len(prompts))
    strategy = plugins.load().binarizer(name, ALL[name])
    some = 0
    for policies in POLICIES:
        rules = Binarize.model_validate({**policies, "weights": {"honesty": 1, "helpfulness": 2}})
        whole, parts = binarize.PairingCounts(), binarize.PairingCounts()
        made = made_of(prompts, strategy, rules, 5, whole)
        sharded = []
        for first in range(3):
            counts = binarize.PairingCounts()
            sharded += made_of(shuffled[first::3], strategy, rules, 5, counts)
            parts.add(counts)
        assert parts == whole
        assert sorted(sharded, key=place_of) == sorted(made, key=place_of)
        check_books(prompts, made, rules, whole)
        some += len(made)
    assert some > 5 * len(POLICIES)


def place_of(pair: PreferencePair) -> tuple[str, int | None, int | None]:
    """What tells pairs apart."""
    return pair.id, pair.chosen_place, pair.rejected_place


def check_books(
    prompts: list[RatedPrompt], made: list[PreferencePair], rules: Binarize, counts: binarize.PairingCounts
) -> None:
    """Whether the pairs, the losses and the counts fit each other and the rules."""
    paired = {pair.id for pair in made}
    assert counts.noted["prompts"] == len(prompts) == len(paired) + counts.dropped.total()
    assert counts.noted["prompts_paired"] == len(paired)
    assert counts.noted["pairs"] == len(made) == len(set(map(place_of, made)))
    assert rules.identical == "keep" or all(pair.chosen != pair.rejected for pair in made)
    assert rules.empty == "keep" or all(pair.chosen.strip() and pair.rejected.strip() for pair in made)
    scores = {
        row.id: scored
        for row, scored in zip(prompts, scores_of(RatingColumns.of(prompts), rules, Counter()), strict=True)
    }
    for pair in made:
        ends = (pair.chosen_place, pair.score_chosen), (pair.rejected_place, pair.score_rejected)
        for place, score in ends:
            assert place is not None
            assert score == scores[pair.id][place]
        assert (pair.score_chosen or 0) > (pair.score_rejected or 0)


def test_a_strategy_sees_the_whole_of_every_prompt_that_it_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of prompts in several groups and batches, whichever it looks at, with all that judges wrote."""
    monkeypatch.setattr("zephyrctl.runs.parquet.ROWS_PER_GROUP", 64)
    monkeypatch.setattr("zephyrctl.runs.parquet.ROWS_PER_READ", 8)
    seen: dict[str, RatedPrompt] = {}

    class Nosy(Binarizer):
        """Looks at every fifth prompt, and at no prompt of some batches."""

        name = "nosy"

        def pick(self, answers: Answers, rng: Random) -> Picked:
            """The first against the second."""
            if rng.random() < 0.2:
                seen[answers.prompt.id] = answers.prompt
                assert [answer.completion for answer in answers.scored] == answers.prompt.completions
            return Picked(answers.scored[0], answers.scored[1])

    prompts = [rated(f"prompt {number}", ("a", 5), ("b", 1)) for number in range(200)]
    for number, prompt in enumerate(prompts):
        for answer in prompt.completions:
            told = {"rationale": f"so {number}", "rater": "judge", "spread": 0.5}
            answer.ratings[:] = [mark.model_copy(update=told) for mark in answer.ratings]
    run = Run(tmp_path)
    feedback(run, prompts)
    offer = Offer("binarizer", "nosy", "tests", Nosy)
    monkeypatch.setattr(plugins.load(), "added", [*plugins.load().added, offer])
    assert len(read(binarized(run, tiny(binarize__strategy="nosy")))) == len(prompts)
    assert 20 < len(seen) < 80
    assert seen == {prompt.id: prompt for prompt in prompts if prompt.id in seen}


def test_every_blank_text_is_an_empty_answer() -> None:
    """Whatever Python strips: Arrow's own idea of blanks is another one. A control character alone is an answer."""
    blanks = ["", " \t\n", *filter(str.isspace, map(chr, range(0x110000)))]
    assert len(blanks) > 25
    texts = [*blanks, *(f"{blank}a{blank}" for blank in blanks), "\x00", "\u200b"]
    made, lost = pairs([rated(f"p{number}", (text, 5), ("b", 1)) for number, text in enumerate(texts)], "notus")
    assert lost == {"empty chosen answer": len(blanks)}
    assert [pair.chosen for pair in made] == texts[len(blanks) :]


@pytest.mark.slow
def test_several_processes_share_out_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte what one process makes, bad rows counted; the first bad line is named where they are not skipped."""
    monkeypatch.setattr("zephyrctl.data.chunks.file_chunks", partial(file_chunks, chunk_bytes=2000))
    lines = [ultrafeedback_row(f"Why {n}?", {"good": "5", "bad": "1", "worse": "N/A"}) for n in range(40)]
    lines[17] = {**lines[17], "instruction": " "}
    file = write_jsonl(tmp_path / "rows.jsonl", lines)
    made = []
    for count in (1, 3):
        run = Run(tmp_path / f"run {count}")
        made.append(perform(run, binarize.BinarizeStage(tiny(skip_bad_rows=True), file, count)).artifact)
    assert made[0].content_hash == made[1].content_hash
    assert made[0].manifest.metrics == made[1].manifest.metrics
    assert made[0].manifest.dropped == made[1].manifest.dropped == {"an empty instruction": 1}
    assert made[0].manifest.metrics["prompts"] == 39
    with pytest.raises(ZephyrError, match=r"rows\.jsonl:18: an empty instruction"):
        perform(Run(tmp_path / "strict"), binarize.BinarizeStage(tiny(), file, 2))
