"""Whether the history of a row agrees with the tables: its source, its ratings, and why it was chosen."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command
from tests.data.rows_made import tiny, ultrafeedback_row, write_jsonl
from zephyrctl.cli.app import main
from zephyrctl.data import binarize, build
from zephyrctl.data.explain import RowHistory, RunRecords, explain, find, search
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback import collect
from zephyrctl.records import Judgment, PreferencePair, RatedPrompt, prompt_id, split_of
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.run import Run
from zephyrctl.stages import Stage, perform

SHARE = 0.3
BENCHMARK = "Name the towers that were built of wood."
LOWER = "what is the third letter of willow? i forgot it."
MENDED = "What is the third letter of willow? I forgot it."
HEDGED = "Are you well today?"
FIRST = "Tell me the bigger number: 3 or 9."
PLAIN = [f"Tell me the bigger number: {n} or {n + 7}." for n in range(4, 34)]


def turns(asked: str, answer: str) -> dict[str, Any]:
    """A dialogue of one round."""
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def recipe(folder: Path, **values: Any) -> Any:
    """The recipe of the run: files with every kind of defect, rated twice an aspect."""
    clean = {"truecase": True, "openings": {"feelings": "I do not have emotions"}}
    return tiny(
        build__source={"kind": "files", "paths": [str(folder / "rows.jsonl")]},
        build__clean=clean,
        build__test_share=SHARE,
        decontaminate={"against": [str(folder / "benchmark.jsonl")], "ngram": 0},
        **{"feedback__repeats": 2, **values},
    )


def do(run: Run, *steps: Stage) -> Run:
    """Perform some steps."""
    for step in steps:
        perform(run, step)
    return run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose build, feedback and binarize are finished; read it, do not change it."""
    folder = tmp_path_factory.mktemp("told")
    assert split_of(prompt_id(BENCHMARK), SHARE) == "train", "a match in the test split does not count"
    rows = [turns(LOWER, "it is an l."), turns(HEDGED, "I do not have emotions."), turns(BENCHMARK, "None.")]
    rows += [turns(FIRST, "It is 9."), turns(FIRST, "It is 9."), *(turns(text, "The second.") for text in PLAIN)]
    write_jsonl(folder / "rows.jsonl", rows)
    write_jsonl(folder / "benchmark.jsonl", [{"question": BENCHMARK}])
    made = recipe(folder)
    do(Run(folder / "run"), build.BuildStage(made), collect.FeedbackStage(made), binarize.BinarizeStage(made))
    return folder


def history(folder: Path, text: str) -> RowHistory:
    """The history of the prompt of that text."""
    return explain(RunRecords.of(Run(folder / "run")), prompt_id(text))


def paired(folder: Path) -> PreferencePair:
    """The first pair of the run."""
    return next(Run(folder / "run").require("binarize", "").read("pairs", "train", PreferencePair))


def rated(run: Run) -> list[RatedPrompt]:
    """Every rated prompt."""
    artifact = run.require("feedback", "")
    return [row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)]


@pytest.mark.parametrize(
    "rules",
    [
        {"strategy": "random-rejected"},
        {"strategy": "all-pairs"},
        {"strategy": "notus", "ties": "drop"},
        {"strategy": "margin", "options": {"at_least": 2.0}},
        {"score": "weights", "weights": {"honesty": 2.0}},
        {"compat": "zephyr-fixed"},
    ],
    ids=str,
)
def test_the_rule_applied_again_says_what_the_tables_say(told: Path, tmp_path: Path, rules: dict[str, Any]) -> None:
    shutil.copytree(told / "run", tmp_path / "run")
    critique = {"feedback__critique": True} if "compat" in rules else {}
    made = recipe(told, binarize=rules, **critique)
    run = do(Run(tmp_path / "run"), collect.FeedbackStage(made), binarize.BinarizeStage(made))
    records, causes, pairs = RunRecords.of(run), list[str](), 0
    for prompt in rated(run):
        one = explain(records, prompt.id)
        assert one.notes == []
        assert [answer["text"] for answer in one.answers] == [completion.text for completion in prompt.completions]
        assert bool(one.pairs) != bool(one.cause)
        causes += [one.cause] if one.cause else []
        pairs += len(one.pairs)
        for pair in one.pairs:
            for side in ("chosen", "rejected"):
                answer = one.answers[pair[f"{side}_place"]]
                assert (answer["text"], answer["score"]) == (pair[side], pair[f"score_{side}"])
    manifest = run.require("binarize", "").manifest
    assert pairs == manifest.metrics["pairs"]
    assert {cause: causes.count(cause) for cause in causes} == manifest.dropped


def test_a_story_has_every_call_of_the_rater_and_every_mark(told: Path) -> None:
    run = Run(told / "run")
    judgments = [row for split in SPLITS for row in run.require("feedback", "").read("judgments", split, Judgment)]
    one = history(told, FIRST)
    mine = [row for row in judgments if row.prompt_id == one.id]
    assert [Judgment(**{k: v for k, v in call.items() if k != "split"}) for call in one.judgments] == mine
    assert {(call["aspect"], call["repeat"]) for call in one.judgments} == {
        (rating["aspect"], repeat) for rating in one.answers[0]["ratings"] for repeat in (0, 1)
    }
    assert one.answers[0]["mean_rating"] == pytest.approx(sum(r["value"] for r in one.answers[0]["ratings"]) / 4)


def test_a_changed_row_has_both_texts_and_its_place(told: Path) -> None:
    one = history(told, MENDED)
    (change,) = [change for change in one.changes if change["turn"] == 0]
    assert (change["rule"], change["before"], change["after"], change["row"]) == ("truecase", LOWER, MENDED, 0)
    (dialogue,) = [row for row in one.rows if row["kind"] == "dialogues"]
    assert dialogue["row"] == 0
    assert one.split == dialogue["split"] == split_of(one.id, SHARE)


def test_a_dropped_row_says_why(told: Path) -> None:
    (repeated,) = history(told, FIRST).dropped
    assert (repeated["rule"], repeated["row"]) == ("duplicates.exact", 4)
    assert repeated["like"].endswith("rows.jsonl:4")
    hedged = history(told, HEDGED)
    assert [row["rule"] for row in hedged.dropped] == ["openings.feelings"]
    assert hedged.messages[0]["content"] == HEDGED
    assert (hedged.rows, hedged.answers, hedged.pairs) == ([], [], [])
    assert any("has not used this prompt" in note for note in hedged.notes)


def test_a_contaminated_row_has_both_texts(told: Path) -> None:
    one = history(told, BENCHMARK)
    assert [(hit["kind"], hit["text"], hit["benchmark_text"]) for hit in one.contamination] == [
        ("exact", BENCHMARK, BENCHMARK)
    ]
    assert [row["rule"] for row in one.dropped] == ["decontaminate"]


def test_an_id_is_found_by_its_beginning_and_only_by_one_that_is_its_own(told: Path) -> None:
    records = RunRecords.of(Run(told / "run"))
    ids = {prompt_id(text) for text in [FIRST, MENDED, HEDGED, BENCHMARK, *PLAIN]}
    for id in sorted(ids)[::4]:
        own = next(size for size in range(1, 65) if sum(other.startswith(id[:size]) for other in ids) == 1)
        assert find(records, id[:own]) == find(records, id) == id
        if own > 1:
            with pytest.raises(ZephyrError) as caught:
                find(records, id[: own - 1])
            named = caught.value.remedy.removeprefix("give more characters: ").split(", ")
            assert all(any(other.startswith(part) for other in ids) for part in named if part != "...")


def test_an_unknown_id_names_the_nearest(told: Path) -> None:
    id = prompt_id(FIRST)
    with pytest.raises(ZephyrError) as caught:
        find(RunRecords.of(Run(told / "run")), id[:12] + ("0" if id[12] != "0" else "1"))
    assert f"did you mean {id[:13]}" in caught.value.remedy
    with pytest.raises(ZephyrError) as caught:
        find(RunRecords.of(Run(told / "run")), "not an id")
    assert "did you mean" not in caught.value.remedy


def test_what_the_user_says_finds_rows_and_what_the_assistant_says_does_not(told: Path) -> None:
    records = RunRecords.of(Run(told / "run"))
    assert set(search(records, "BIGGER number")) == {prompt_id(text) for text in [FIRST, *PLAIN]}
    assert search(records, "the second.") == {}


def test_what_came_from_a_file_is_told_from_the_file(tmp_path: Path) -> None:
    row = ultrafeedback_row("Why is the sky blue?", {"It scatters.": "5", "Who knows.": "1", "Paint.": "N/A"})
    tie = ultrafeedback_row("Why is the sea blue?", {"As the sky is.": "3", "It is deep.": "3"})
    path = write_jsonl(tmp_path / "rated.jsonl", [tie, row, {"instruction": "\ud800", "completions": []}])
    made = tiny(build__test_share=SHARE, skip_bad_rows=True)
    run = do(Run(tmp_path / "run"), binarize.BinarizeStage(made, path))
    one = history(tmp_path, row["instruction"])
    assert [answer["score"] for answer in one.answers] == [5, 1, None]
    assert [(pair["chosen"], pair["rejected"]) for pair in one.pairs] == [("It scatters.", "Who knows.")]
    tied = history(tmp_path, tie["instruction"])
    assert (tied.cause, tied.pairs, tied.split) == ("all answers tied", [], split_of(tied.id, SHARE))
    assert find(RunRecords.of(run), tied.id[:10]) == tied.id
    assert search(RunRecords.of(run), "the sea") == {tied.id: tie["instruction"]}
    write_jsonl(path, [row])
    changed = history(tmp_path, row["instruction"])
    assert (changed.answers, len(changed.pairs)) == ([], 1)
    assert any("has changed since" in note for note in changed.notes)
    path.unlink()
    assert any("no longer exists" in note for note in history(tmp_path, row["instruction"]).notes)


def test_stages_that_read_another_state_are_told_apart(told: Path, tmp_path: Path) -> None:
    shutil.copytree(told / "run", tmp_path / "run")
    do(Run(tmp_path / "run"), collect.FeedbackStage(recipe(told, seed=7)))
    one = history(tmp_path, FIRST)
    assert one.notes == ["feedback was rebuilt after binarize read it: they may contradict each other"]
    assert [answer["score"] for answer in one.answers] == [None] * 4
    shutil.rmtree(tmp_path / "run" / "binarize")
    shutil.rmtree(tmp_path / "run" / "build")
    assert any("`data build` has not been run" in note for note in history(tmp_path, FIRST).notes)
    assert any("`data binarize` has not been run" in note for note in history(tmp_path, FIRST).notes)
    shutil.rmtree(tmp_path / "run" / "feedback")
    with pytest.raises(ZephyrError, match="no finished data stage"):
        RunRecords.of(Run(tmp_path / "run"))


def test_a_strategy_that_is_no_longer_installed_leaves_the_pairs_of_the_table(told: Path, tmp_path: Path) -> None:
    shutil.copytree(told / "run", tmp_path / "run")
    manifest = tmp_path / "run" / "binarize" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("random-rejected", "gone-away"))
    pair = paired(told)
    one = history(tmp_path, pair.messages[0].content)
    assert [(made["chosen"], made["rejected"]) for made in one.pairs] == [(pair.chosen, pair.rejected)]
    assert any("no binarizer 'gone-away'" in note for note in one.notes)


def test_the_command_tells_it_to_people_and_as_json(zephyrctl: Command, told: Path) -> None:
    run = ("--run", told / "run", "--recipe", "tiny")
    for text in (FIRST, MENDED, HEDGED, BENCHMARK):
        shown = zephyrctl("data", "explain", prompt_id(text)[:16], *run)
        assert shown.code == 0, shown.err
        assert prompt_id(text) in shown.out
        as_json = zephyrctl("data", "explain", prompt_id(text), "--json", *run).json
        assert as_json["id"] == prompt_id(text)
        for answer in as_json["answers"]:
            assert answer["text"] in shown.out
    pair = paired(told)
    told_of_pair = zephyrctl("data", "explain", pair.id, *run).out
    assert f"chosen: answer {(pair.chosen_place or 0) + 1}, {pair.chosen_model} (" in told_of_pair
    matches = zephyrctl("data", "explain", "--text", "bigger number", "--json", *run).json["matches"]
    assert {match["id"] for match in matches} == {prompt_id(text) for text in [FIRST, *PLAIN]}
    assert prompt_id(HEDGED) in zephyrctl("data", "explain", "--text", "are you WELL", *run).out


def test_the_command_refuses_what_names_no_row(zephyrctl: Command, told: Path) -> None:
    run = ("--run", told / "run")
    assert zephyrctl("data", "explain", *run).code == 2
    assert zephyrctl("data", "explain", "ab", "--text", "a", *run).code == 2
    nobody = zephyrctl("data", "explain", "--text", "nobody says so", *run)
    assert (nobody.code, "no user turn of this run contains" in nobody.err) == (1, True)
    assert "no finished data stage" in zephyrctl("data", "explain", "ab", "--run", "elsewhere").err


def test_texts_are_cut_unless_asked_for_whole_and_steer_no_terminal(zephyrctl: Command, tmp_path: Path) -> None:
    long = "[bold]word[/bold] \x1b[31m" + "and so on " * 60 + "END"
    path = write_jsonl(tmp_path / "rated.jsonl", [ultrafeedback_row("Why?", {long: "5", "No.": "1"})])
    assert main(["data", "binarize", "--run", "mine", "--input", str(path), "--quiet"]) == 0
    cut = zephyrctl("data", "explain", prompt_id("Why?"), "--run", tmp_path / "runs" / "mine").out
    whole = zephyrctl("data", "explain", prompt_id("Why?"), "--run", tmp_path / "runs" / "mine", "--full").out
    assert "more characters)" in cut
    assert "END" not in cut
    assert "[bold]word[/bold] \\x1b[31mand" in whole
    assert "END" in whole
    assert "\x1b" not in whole


@pytest.mark.slow
def test_who_trained_on_a_row_and_what_eval_asked_is_told(small_run: Path) -> None:
    run = Run(small_run / "runs" / "small")
    records = RunRecords.of(run)
    pairs = {split: list(run.require("binarize", "").read("pairs", split, PreferencePair)) for split in SPLITS}
    trained = explain(records, pairs["train"][0].id)
    (dpo,) = [one for one in trained.training if one["name"] == "dpo"]
    assert (dpo["train"], dpo["test"], dpo["training_rows"]) == (1, 0, len(pairs["train"]))
    held_out = {pair.id: explain(records, pair.id) for pair in pairs["test"]}
    assert {
        (one["train"], one["test"]) for told in held_out.values() for one in told.training if one["name"] == "dpo"
    } == {(0, 1)}
    asked = [told for told in held_out.values() if told.evaluation]
    assert asked
    assert trained.evaluation == []
    assert {answer["model"] for answer in asked[0].evaluation} == {"base", "sft", "dpo"}
