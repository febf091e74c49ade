"""Whether a run's data is published with the published sets' splits and columns, and nothing that speaks against it."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.conftest import Command
from tests.publishing import runs_made
from tests.publishing.hub_server import TOKEN, serve
from zephyrctl.errors import GateError, ZephyrError
from zephyrctl.publishing.data_upload import plan_data
from zephyrctl.publishing.push import push, require_checks
from zephyrctl.records import Dialogue, Message, PreferencePair, Prompt, Split, prompt_id
from zephyrctl.runs.manifest import Plan
from zephyrctl.runs.run import Run

SIDES: tuple[tuple[Split, int], ...] = (("train", 5), ("test", 2))
BASE = runs_made.Base("an-org/a-base")


def made(folder: Path, said: str = "Hello") -> Run:
    """A run with dialogues, prompts and pairs on both sides."""
    run = Run(folder)
    with run.draft(
        Plan(name="build", stage="build", settings={"source": {"kind": "files"}}, inputs={}), {}, {}
    ) as draft:
        for split, count in SIDES:
            told = [
                [Message(role="user", content=f"{said} {split} {number}"), Message(role="assistant", content="Yes.")]
                for number in range(count)
            ]
            rows = [Dialogue(id=prompt_id(turns[0].content), messages=turns, source="s") for turns in told]
            draft.write("dialogues", split, rows, Dialogue)
        prompt = [Message(role="user", content="A prompt")]
        draft.write("prompts", "train", [Prompt(id=prompt_id("A prompt"), messages=prompt, source="s")], Prompt)
        draft.drop("exact duplicates", 3)
        draft.finish()
    with run.draft(Plan(name="binarize", stage="binarize", settings={}, inputs={}), {}, {}) as draft:
        pair = PreferencePair(
            id=prompt_id("A prompt"), messages=prompt, chosen="good", rejected="bad", score_chosen=5, score_rejected=2
        )
        draft.write("pairs", "train", [pair], PreferencePair)
        draft.finish()
    return run


def test_splits_and_columns_are_the_published_sets(tmp_path: Path) -> None:
    upload = plan_data(made(tmp_path / "run"), runs_made.make_recipe(), BASE, tmp_path / "scratch")
    assert not upload.failed_checks
    files = {file.path: file for file in upload.files}
    assert {path.split("/")[1].split("-")[0] for path in files if path.startswith("data/")} == {
        "train_sft",
        "test_sft",
        "train_gen",
        "train_prefs",
    }
    pairs = pq.read_table(tmp_path / "scratch/data/train_prefs-00000-of-00001.parquet").to_pylist()
    assert list(pairs[0]) == ["prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"]
    assert (
        pairs[0]["chosen"]
        == pairs[0]["messages"]
        == [
            {"content": "A prompt", "role": "user"},
            {"content": "good", "role": "assistant"},
        ]
    )
    assert pairs[0]["prompt_id"] == prompt_id("A prompt")
    loaded = load_dataset("parquet", data_files={"train_sft": str(tmp_path / "scratch/data/train_sft-*.parquet")})
    assert loaded["train_sft"].num_rows == 5
    card = DatasetCard(upload.card)
    configs = yaml.safe_load(str(card).split("---\n")[1])["configs"]
    assert {one["split"] for one in configs[0]["data_files"]} == {"train_sft", "test_sft", "train_gen", "train_prefs"}
    assert "3 exact duplicates" in card.text


def test_it_goes_to_a_data_set_on_the_hub(tmp_path: Path) -> None:
    upload = plan_data(made(tmp_path / "run"), runs_made.make_recipe(), BASE, tmp_path / "scratch")
    with serve() as hub:
        pushed = push(upload, "an-org/some-data", token=TOKEN, endpoint=hub.endpoint, waits=(0.0,))
        assert pushed.url == f"{hub.endpoint}/datasets/an-org/some-data"
        assert set(hub.repos) == {"datasets/an-org/some-data"}
        assert set(hub.repos["datasets/an-org/some-data"].files) == {file.path for file in upload.files}
        assert hub.repos["datasets/an-org/some-data"].private
        again = push(upload, "an-org/some-data", token=TOKEN, endpoint=hub.endpoint, waits=(0.0,))
        assert again.is_unchanged


def test_a_key_in_a_row_is_refused_by_its_row_and_not_shown(tmp_path: Path) -> None:
    key = "hf_" + "a" * 34
    upload = plan_data(made(tmp_path / "run", said=key), runs_made.make_recipe(), BASE, tmp_path / "scratch")
    assert {one.name for one in upload.failed_checks} == {"secrets"}
    assert not any(key in one.problem for one in upload.failed_checks)
    with pytest.raises(GateError, match="row "):
        require_checks(upload, ())


def test_no_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZephyrError, match="has no data to publish"):
        plan_data(Run(tmp_path), runs_made.make_recipe(), BASE, tmp_path / "scratch")


def test_the_command_lists_what_it_would_send(zephyrctl: Command, tmp_path: Path) -> None:
    made(tmp_path / "runs" / "tiny")
    told = zephyrctl("push", "--hub", "an-org/some-data", "--data", "--dry-run", "--json").json
    assert told["url"].endswith("/datasets/an-org/some-data")
    assert any(file["path"].startswith("data/train_prefs") for file in told["files"])
    shown = zephyrctl("push", "--hub", "an-org/some-data", "--data", "--dry-run")
    assert "# Data of tiny" in shown.out
    typo = zephyrctl("push", "--hub", "an-org/some-data", "--waive", "licens")
    assert typo.code == 2 and "did you mean 'licence'?" in typo.err
