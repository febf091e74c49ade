"""Whether dialogues and prompts are built whole, split for good, the same again, and with every lost row counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.rows_made import tiny, write_jsonl
from zephyrctl.data import build
from zephyrctl.errors import BadRow, ZephyrError
from zephyrctl.recipe.schema import Recipe
from zephyrctl.records import Dialogue, Prompt, Split, split_of
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.run import Run
from zephyrctl.stages import forecast, perform

SPLITS: tuple[Split, ...] = ("train", "test")


def over_files(*paths: Path, skip_bad_rows: bool = False, test_share: float = 0.3) -> Recipe:
    """A recipe that reads files."""
    source = {"kind": "files", "paths": [str(path) for path in paths]}
    return tiny(build__source=source, build__test_share=test_share, skip_bad_rows=skip_bad_rows)


def self_instruct(dialogues: int = 40, prompts: int = 30, **values: Any) -> Recipe:
    """A recipe whose offline teacher makes so many conversations."""
    values = {"build__source__dialogues": dialogues, "build__source__prompts": prompts, **values}
    return tiny(**values)


def made(folder: Path, recipe: Recipe) -> Artifact:
    """The artifact of the build step in a run of its own."""
    return perform(Run(folder), build.BuildStage(recipe)).artifact


def dialogues(artifact: Artifact, split: Split) -> list[Dialogue]:
    """The dialogues of one side."""
    return list(artifact.read("dialogues", split, Dialogue))


def prompts(artifact: Artifact, split: Split) -> list[Prompt]:
    """The prompts of one side."""
    return list(artifact.read("prompts", split, Prompt))


def asked(number: int, answer: str = "Yes.") -> dict[str, Any]:
    """An instruction row."""
    return {"instruction": f"Question {number}?", "output": f"{answer} {number}"}


def test_every_row_of_the_files_is_on_one_side(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", map(asked, range(60)))
    second = tmp_path / "second.json"
    second.write_text(json.dumps([{"data": ["Hi?", "Hello.", f"{n}?", "Yes."]} for n in range(3)]))
    artifact = made(tmp_path / "run", over_files(first, second))
    rows = [*dialogues(artifact, "train"), *dialogues(artifact, "test")]
    assert len(rows) == artifact.manifest.metrics["dialogues"] == 63
    assert {row.source for row in rows} == {"first.jsonl", "second.json"}
    assert sum(artifact.count("dialogues", split) for split in SPLITS) == 63
    assert artifact.count("dialogues", "test") > 0
    for split in SPLITS:
        assert all(split_of(row.id, 0.3) == split for row in dialogues(artifact, split))


def test_prompts_are_the_first_user_turns_each_once(tmp_path: Path) -> None:
    rows = [*map(asked, range(40)), *(asked(number, "No.") for number in range(10))]
    artifact = made(tmp_path / "run", over_files(write_jsonl(tmp_path / "rows.jsonl", rows)))
    for split in SPLITS:
        kept = [prompt.id for prompt in prompts(artifact, split)]
        assert len(kept) == len(set(kept))
        assert set(kept) == {row.id for row in dialogues(artifact, split)}
        assert all(len(prompt.messages) == 1 for prompt in prompts(artifact, split))
    assert sum(artifact.count("dialogues", split) for split in SPLITS) == 50
    assert sum(artifact.count("prompts", split) for split in SPLITS) == 40
    assert artifact.manifest.dropped == {"duplicate prompts": 10}


def test_adding_data_moves_no_prompt_to_the_other_side(tmp_path: Path) -> None:
    few = made(tmp_path / "few", over_files(write_jsonl(tmp_path / "few.jsonl", map(asked, range(50)))))
    many_rows = [*({"data": [f"New {number}?", "Yes."]} for number in range(50)), *map(asked, reversed(range(50)))]
    many = made(tmp_path / "many", over_files(write_jsonl(tmp_path / "many.jsonl", many_rows)))
    for split in SPLITS:
        assert {row.id for row in prompts(few, split)} < {row.id for row in prompts(many, split)}


def test_the_first_bad_row_stops_the_stage_by_file_and_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [asked(1), asked(2), {"instruction": "Why?"}, asked(3)])
    run = Run(tmp_path / "run")
    with pytest.raises(BadRow) as caught:
        perform(run, build.BuildStage(over_files(path)))
    assert caught.value.problem == f"{path}:3: no answer to the last user turn"
    assert "--skip-bad-rows" in caught.value.remedy
    assert run.artifact("build") is None
    write_jsonl(path, map(asked, range(9)))
    assert perform(run, build.BuildStage(over_files(path))).is_new


def test_bad_rows_that_are_skipped_are_counted_by_cause(tmp_path: Path) -> None:
    rows: list[Any] = [
        asked(1),
        {"instruction": "Why?"},
        {"instruction": "Why not?"},
        {"messages": []},
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
        {"data": ["Hi?", " "]},
        {"data": ["Hi?", "Hello.", "And?"]},
        {"data": []},
        {"conversations": [{"from": "human", "value": None}]},
        asked(2),
    ]
    artifact = made(tmp_path / "run", over_files(write_jsonl(tmp_path / "rows.jsonl", rows), skip_bad_rows=True))
    assert artifact.manifest.dropped == {
        "no answer to the last user turn": 2,
        "no turns": 2,
        "roles out of order": 1,
        "an empty assistant turn": 1,
        "turns that are not role and text": 1,
        "last user turns without an answer, cut": 1,
    }
    kept = artifact.manifest.metrics["dialogues"]
    cut = artifact.manifest.dropped["last user turns without an answer, cut"]
    assert kept + sum(artifact.manifest.dropped.values()) - cut == len(rows)


def test_files_without_one_sound_row_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"instruction": "Why?"}, {"messages": []}])
    with pytest.raises(ZephyrError, match="no dialogue is left"):
        made(tmp_path / "run", over_files(path, skip_bad_rows=True))


def test_a_missing_file_is_told_before_anything_starts(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    step = build.BuildStage(over_files(tmp_path / "gone.jsonl"))
    assert forecast(run, step)["missing"] == [str(tmp_path / "gone.jsonl")]
    with pytest.raises(ZephyrError, match=r"there is no file .*gone\.jsonl"):
        perform(run, step)
    assert not run.path.exists()


def test_self_instruct_is_the_same_again_and_another_with_another_seed(tmp_path: Path) -> None:
    first, again = (made(tmp_path / name, self_instruct()) for name in ("first", "again"))
    assert first.content_hash == again.content_hash
    other = made(tmp_path / "other", self_instruct(seed=1))
    assert not {row.id for row in dialogues(first, "train")} >= {row.id for row in dialogues(other, "train")}


def test_test_prompts_are_never_in_training_dialogues(tmp_path: Path) -> None:
    for seed in range(3):
        artifact = made(tmp_path / str(seed), self_instruct(dialogues=200, prompts=100, seed=seed))
        trained = {row.messages[0].content for row in dialogues(artifact, "train")}
        held_out = {row.messages[0].content for row in prompts(artifact, "test")}
        assert held_out
        assert not trained & held_out


def test_nothing_is_built_again_that_did_not_change(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    path = write_jsonl(tmp_path / "rows.jsonl", map(asked, range(9)))
    assert perform(run, build.BuildStage(over_files(path))).is_new
    assert not perform(run, build.BuildStage(over_files(path))).is_new
    assert perform(run, build.BuildStage(over_files(path, test_share=0.4))).is_new
    write_jsonl(path, map(asked, range(10)))
    assert perform(run, build.BuildStage(over_files(path, test_share=0.4))).is_new
