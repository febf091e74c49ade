"""A whole run, small but real: every stage, the object that `--json` prints, and nothing done twice."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import shell
from tests.publishing.hub_server import TOKEN, serve
from zephyrctl.recipe import loading
from zephyrctl.runs.run import Run

pytestmark = pytest.mark.slow

STAGES = ["build", "feedback", "binarize", "sft", "dpo", "eval"]


def test_run_prints_one_object_with_stages_scores_and_dpo(small_run: Path) -> None:
    outcome = json.loads((small_run / "outcome.json").read_text())
    assert list(outcome["stages"]) == STAGES
    assert all(seconds > 0 for seconds in outcome["stages"].values())
    for name in ("base", "sft", "dpo", "dpo_minus_sft"):
        score = outcome["scores"][name]
        assert score["low"] <= score["mean"] <= score["high"]
    assert abs(outcome["dpo"]["first_loss"] - math.log(2)) < 2e-3
    assert 0 <= outcome["dpo"]["reward_accuracy"] <= 1
    assert (small_run / outcome["report"]).is_file()


def test_a_second_run_does_nothing_again(small_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_run.rglob("manifest.json")}
    outcome = shell(["run", "--json"], small_run)
    assert outcome.code == 0, outcome.err
    assert outcome.json["unchanged"] == STAGES
    assert {path: path.stat().st_mtime_ns for path in small_run.rglob("manifest.json")} == before
    assert outcome.json["scores"] == json.loads((small_run / "outcome.json").read_text())["scores"]


def test_every_row_is_accounted_for(small_run: Path) -> None:
    run = Run(small_run / "runs" / "small")
    feedback, binarize = run.artifact("feedback"), run.artifact("binarize")
    assert feedback and binarize
    rated = sum(feedback.count("rated", split) for split in ("train", "test"))
    pairs = sum(binarize.count("pairs", split) for split in ("train", "test"))
    assert rated == pairs + sum(binarize.manifest.dropped.values())


def test_no_prompt_is_on_both_sides(small_run: Path) -> None:
    import pyarrow.parquet as pq

    build = small_run / "runs" / "small" / "build"
    trained = set(pq.read_table(build / "dialogues" / "train.parquet")["id"].to_pylist())
    trained |= set(pq.read_table(build / "prompts" / "train.parquet")["id"].to_pylist())
    held_out = set(pq.read_table(build / "prompts" / "test.parquet")["id"].to_pylist())
    asked = pq.read_table(small_run / "runs" / "small" / "eval" / "answers" / "test.parquet")["question"].to_pylist()
    assert held_out and not trained & held_out
    assert set(asked) <= held_out


def test_checkpoints_are_safetensors_and_nothing_is_pickled(small_run: Path) -> None:
    for name in ("sft", "dpo"):
        files = {path.name for path in (small_run / "runs" / "small" / name).rglob("*")}
        assert "model.safetensors" in files and "chat_template.jinja" in files
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth", ".pkl"))]


def test_the_three_lines_work_bare_in_a_folder_with_a_recipe(small_run: Path, tmp_path: Path) -> None:
    """`data binarize --strategy random-rejected`, `dpo --beta 0.1 --epochs 3`, `push --hub ORG/NAME`."""
    folder = tmp_path / "a folder"
    shutil.copytree(small_run, folder)
    assert shell(["recipe", "init", "tiny", "--force"], folder).code == 0
    recipe = (small_run / "zephyrctl.yaml").read_text()
    (folder / "zephyrctl.yaml").write_text(recipe)
    assert shell(["data", "binarize", "--strategy", "random-rejected"], folder).code == 0
    trained = shell(["dpo", "--beta", "0.1", "--epochs", "3", "--set", "dpo.max_steps=null", "--json"], folder)
    assert trained.code == 0, trained.err
    rows, steps = trained.json["metrics"]["rows"], trained.json["metrics"]["steps"]
    global_batch = loading.load(str(folder / "zephyrctl.yaml"), {}).recipe.dpo.global_batch
    assert steps == 3 * math.ceil(rows / global_batch)
    with serve() as hub:
        pushed = shell(["push", "--hub", "an-org/a-model", "--json"], folder, HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
        assert pushed.code == 0, pushed.err
        assert pushed.json["visibility"] == "private"
        assert "model.safetensors" in {file["path"] for file in pushed.json["files"]}
        assert TOKEN not in pushed.out + pushed.err


def test_push_dry_run_lists_every_file_and_sends_nothing(small_run: Path) -> None:
    outcome = shell(
        ["push", "--hub", "an-org/a-model", "--dry-run", "--json"], small_run, HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert outcome.code == 0, outcome.err
    paths = {file["path"] for file in outcome.json["files"]}
    assert {"README.md", "model.safetensors", "config.json", "zephyrctl/dpo/manifest.json"} <= paths


def test_a_changed_setting_makes_the_stage_again_and_says_what_changed(small_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(small_run, folder)
    outcome = shell(["data", "binarize", "--strategy", "highest-lowest"], folder)
    assert outcome.code == 0, outcome.err
    assert "strategy: random-rejected -> highest-lowest" in outcome.err
    forecast = shell(["run", "--dry-run", "--json", "--set", "binarize.strategy=highest-lowest"], folder).json[
        "dry_run"
    ]
    assert {step["name"]: step["unchanged"] for step in forecast} == {
        "build": True,
        "feedback": True,
        "binarize": True,
        "sft": True,
        "dpo": False,
        "eval": False,
    }


def test_the_evaluation_says_whose_answers_were_cut_off(small_run: Path) -> None:
    """A few steps teach no model to end within 16 tokens."""
    manifest = json.loads((small_run / "runs" / "small" / "eval" / "manifest.json").read_text())
    metrics = manifest["metrics"]
    assert set(metrics["cut_off"]) == {"base", "sft", "dpo"}
    told = f"{metrics['cut_off']['base']} of {metrics['answers'] // 3} answers of base were cut off at 16 tokens"
    assert told in manifest["notes"]
