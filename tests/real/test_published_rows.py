"""Whether files that others published are read whole, with every row kept or counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import tiny
from zephyrctl.data import binarize, build
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback import collect
from zephyrctl.records import ASPECTS, Dialogue, PreferencePair, RatedPrompt, prompt_id
from zephyrctl.rows.files import read_rows
from zephyrctl.rows.published_rows import row_formats
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform
from zephyrctl.training.usable_rows import usable_pairs

pytestmark = pytest.mark.real


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, read here and not by what is tested."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_rows_become_dialogues(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "instructions" / "alpaca_en_demo.json"
    rows = json.loads(path.read_text())
    empty = sum(not row["output"].strip() or not row["instruction"].strip() for row in rows)
    asked = {row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "") for row in rows}
    source = {"kind": "files", "paths": [str(path)]}
    manifest = perform(
        Run(tmp_path), build.BuildStage(tiny(build__source=source, skip_bad_rows=True))
    ).artifact.manifest
    artifact = Run(tmp_path).artifact("build")
    assert artifact
    kept = [row for split in SPLITS for row in artifact.read("dialogues", split, Dialogue)]
    repeated = manifest.dropped.pop("duplicate prompts", 0)
    assert len(rows) == 999
    different = {(row["instruction"], row["input"], row["output"]) for row in rows}
    assert len(kept) == manifest.metrics["dialogues"] == len(different) - empty
    assert manifest.dropped["exact duplicates"] == len(rows) - len(different)
    assert sum(manifest.dropped.values()) == len(rows) - len(kept)
    assert {row.id for row in kept} == {prompt_id(text) for text in asked}
    assert manifest.metrics["prompts"] + repeated == len(kept)
    sides = {split: {row.id for row in artifact.read("dialogues", split, Dialogue)} for split in SPLITS}
    assert not sides["train"] & sides["test"]
    assert 0.1 < len(sides["test"]) / len(asked) < 0.2


def test_preference_conversations_become_pairs(real_data: Path) -> None:
    path = real_data / "instructions" / "dpo_en_demo.json"
    rows = json.loads(path.read_text())
    pairs = [row_formats().preference_pair(row, where) for where, row in read_rows(path)]
    assert len(pairs) == len(rows) == 300
    for row, pair in zip(rows, pairs, strict=True):
        assert [turn["value"] for turn in row["conversations"]] == [message.content for message in pair.messages]
        assert (pair.chosen, pair.rejected) == (row["chosen"]["value"], row["rejected"]["value"])
        assert pair.messages[-1].role == "user"
    assert {message.role for pair in pairs for message in pair.messages} == {"system", "user", "assistant"}


@pytest.mark.parametrize(
    ("name", "count", "ties", "identical", "empty"), [("train", 1000, 111, 4, (1, 1)), ("test", 200, 25, 1, (0, 0))]
)
def test_pairs_that_teach_nothing_are_found_and_every_row_is_accounted_for(
    tmp_path: Path, real_data: Path, name: str, count: int, ties: int, identical: int, empty: tuple[int, int]
) -> None:
    path = real_data / "ultrafeedback_binarized" / f"{name}.jsonl"
    rows = lines(path)
    tied = [row["metadata"]["score_chosen"] == row["metadata"]["score_rejected"] for row in rows]
    same = [row["chosen"] == row["rejected"] for row in rows]
    silent = [not row["chosen"].strip() or not row["rejected"].strip() for row in rows]
    assert (len(rows), sum(tied), sum(same)) == (count, ties, identical)

    pairs = [row_formats().preference_pair(row, where) for where, row in read_rows(path)]
    assert sum(pair.score_chosen == pair.score_rejected for pair in pairs) == ties
    with Run(tmp_path).draft(Plan(name="dpo", stage="dpo", settings={}, inputs={}), {}, {}) as draft:
        kept = list(usable_pairs(pairs, draft))
        lost = draft.dropped
    assert len(kept) + sum(lost.values()) == count
    assert len(kept) == sum(not any(faults) for faults in zip(tied, same, silent, strict=True))
    assert (lost.get("empty chosen answer", 0), lost.get("empty rejected answer", 0)) == empty
    assert lost["identical answers"] == sum(one and not other for one, other in zip(same, silent, strict=True))
    only_tied = zip(tied, same, silent, strict=True)
    assert lost["tied scores"] == sum(one and not two and not three for one, two, three in only_tied)
    assert all(pair.score_chosen and pair.score_rejected and pair.score_chosen > pair.score_rejected for pair in kept)


def test_answers_that_are_there_are_rated_and_their_prompts_paired(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "ultrafeedback_binarized" / "ultrafeedback_shaped_10.json"
    rows = json.loads(path.read_text())
    run = Run(tmp_path)
    rated = perform(run, collect.FeedbackStage(tiny(), path)).artifact
    read = {row.id: row for split in SPLITS for row in rated.read("rated", split, RatedPrompt)}
    assert len(read) == len(rows) == 10
    for row in rows:
        answers = read[prompt_id(row["instruction"])].completions
        assert [answer.text for answer in answers] == [entry["response"] for entry in row["completions"]]
        assert [answer.model for answer in answers] == row["models"]
        assert all([mark.aspect for mark in answer.ratings] == list(ASPECTS) for answer in answers)
    assert rated.manifest.metrics["ratings"] == 10 * 4 * 4
    assert any("not a language model's" in note for note in rated.manifest.notes)
    paired = perform(run, binarize.BinarizeStage(tiny())).artifact
    pairs = [pair for split in SPLITS for pair in paired.read("pairs", split, PreferencePair)]
    assert len(pairs) + sum(paired.manifest.dropped.values()) == 10


def test_answers_that_nobody_rated_make_no_pair_and_the_error_says_what_to_do(tmp_path: Path, real_data: Path) -> None:
    path = real_data / "ultrafeedback_binarized" / "ultrafeedback_shaped_10.json"
    with pytest.raises(ZephyrError) as caught:
        perform(Run(tmp_path), binarize.BinarizeStage(tiny(), path))
    assert caught.value.problem == "no prompt of 10 shows a preference (10 x fewer than two rated answers)"
    assert "zephyrctl data feedback" in caught.value.remedy


@pytest.mark.parametrize("name", ["seed_tasks.jsonl", "user_oriented_instructions.jsonl"])
def test_published_seed_tasks_are_seeds(tmp_path: Path, real_data: Path, name: str) -> None:
    path = real_data / "self_instruct" / name
    count = len(lines(path))
    values = {"build__source__seeds": str(path), "build__source__dialogues": count, "build__source__prompts": 0}
    values |= {"build__source__refined_share": 0, "build__source__two_turn_share": 0}
    artifact = perform(Run(tmp_path), build.BuildStage(tiny(**values))).artifact
    assert artifact.manifest.metrics["dialogues"] + sum(artifact.manifest.dropped.values()) == count
