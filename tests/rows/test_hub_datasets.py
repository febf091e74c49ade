"""Whether data sets that `datasets` can load are read as they are, and whether what cannot be reached is said."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.rows_made import tiny, ultrafeedback_row
from zephyrctl.data import build
from zephyrctl.errors import ZephyrError
from zephyrctl.feedback import collect
from zephyrctl.records import Dialogue, RatedPrompt, split_of
from zephyrctl.rows.hub_datasets import load_rows
from zephyrctl.runs.artifacts import SPLITS
from zephyrctl.runs.run import Run
from zephyrctl.stages import perform

pytestmark = pytest.mark.slow


def said(*texts: str) -> dict[str, Any]:
    """A row of ultrachat_200k."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"prompt": texts[0], "prompt_id": "not ours", "messages": messages}


def publish(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    """A data set in a folder, as the Hub holds it: a Parquet file a split."""
    for name, rows in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache and no network outside the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_published_sides_stay_and_a_prompt_of_both_is_held_out(tmp_path: Path) -> None:
    train = [said(f"Question {n}?", "Yes.") for n in range(20)]
    test = [said(f"Question {n}?", "No.") for n in range(18, 25)]
    source = {
        "kind": "hub",
        "dataset": str(publish(tmp_path / "set", train=train, test=test)),
        "splits": {"train": "train", "test": "test"},
    }
    artifact = perform(Run(tmp_path / "run"), build.BuildStage(tiny(build__source=source))).artifact
    sides = {
        split: {row.messages[0].content for row in artifact.read("dialogues", split, Dialogue)} for split in SPLITS
    }
    assert sides["test"] == {f"Question {n}?" for n in range(18, 25)}
    assert sides["train"] == {f"Question {n}?" for n in range(18)}
    assert artifact.manifest.dropped == {"training dialogues whose prompt is held out": 2}
    assert artifact.count("prompts", "test") == 7


def test_a_set_that_is_published_whole_is_split_by_hash(tmp_path: Path) -> None:
    rows = [said(f"Question {n}?", "Yes.") for n in range(60)]
    folder = str(publish(tmp_path / "set", train=rows))
    recipe = tiny(build__source={"kind": "hub", "dataset": folder, "splits": {"train": "train"}}, build__test_share=0.3)
    artifact = perform(Run(tmp_path / "run"), build.BuildStage(recipe)).artifact
    for split in SPLITS:
        sides = {split_of(row.id, 0.3) for row in artifact.read("dialogues", split, Dialogue)}
        assert sides == {split}


def test_bad_rows_of_a_published_set_stop_or_are_counted(tmp_path: Path) -> None:
    rows = [said("a", "b"), said("c"), said("d", "e")]
    folder = str(publish(tmp_path / "set", train=rows))
    source = {"kind": "hub", "dataset": folder, "splits": {"train": "train"}}
    with pytest.raises(ZephyrError, match=r"row 2: no answer to the last user turn"):
        perform(Run(tmp_path / "run"), build.BuildStage(tiny(build__source=source)))
    recipe = tiny(build__source=source, skip_bad_rows=True)
    artifact = perform(Run(tmp_path / "run"), build.BuildStage(recipe)).artifact
    assert artifact.manifest.metrics["dialogues"] == 2
    assert artifact.manifest.dropped == {"no answer to the last user turn": 1}


def test_published_ratings_are_read_without_asking_anybody(tmp_path: Path) -> None:
    rows = [ultrafeedback_row(f"Why {n}?", {"good": "5", "bad": "N/A"}) for n in range(12)]
    recipe = tiny(feedback__published=str(publish(tmp_path / "set", train=rows)), build__test_share=0.3)
    artifact = perform(Run(tmp_path / "run"), collect.FeedbackStage(recipe)).artifact
    read = [row for split in SPLITS for row in artifact.read("rated", split, RatedPrompt)]
    assert len(read) == 12
    assert {tuple(answer.mean_rating() for answer in row.completions) for row in read} == {(5.0, None)}
    assert artifact.manifest.metrics["ratings_missing"] == 12 * 4


def test_a_set_or_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = str(publish(tmp_path / "set", train=[said("a", "b")]))
    with pytest.raises(ZephyrError, match="cannot be loaded"):
        list(load_rows(folder, None, "train_sft"))
    with pytest.raises(ZephyrError) as caught:
        list(load_rows(str(tmp_path / "gone"), None, "train"))
    assert str(tmp_path / "gone") in caught.value.problem
    assert "--input" in caught.value.remedy
