"""`zephyrctl plan` as a person types it: numbers that add up, remedies that work, a script for each launcher."""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from tests.conftest import Command

PAPER = ["--recipe", "zephyr-7b-beta", "--nodes", "2", "--gpus", "8", "--gpu-type", "a100-80gb"]


def test_the_papers_plan_has_the_papers_batches(zephyrctl: Command) -> None:
    outcome = zephyrctl("plan", *PAPER, "--json")
    assert outcome.code == 0
    told = outcome.json
    expected = {"sft": (16, 2, 16, 512, 3), "dpo": (2, 1, 16, 32, 3)}
    keys = ("micro_batch", "accumulation", "world", "global_batch", "zero_stage")
    assert {stage: tuple(told[stage][key] for key in keys) for stage in expected} == expected
    assert told["sft"]["peak_gb"] == pytest.approx(34, abs=1)
    assert 1.7 <= told["sft"]["hours"] <= 2.35
    assert 2.0 <= told["dpo"]["hours"] <= 3.8
    for part in (told["sft"], told["dpo"]):
        assert sum(part["memory_gb"].values()) == pytest.approx(part["peak_gb"], abs=0.1)
    assert all(sentence.startswith(("sft: ", "dpo: ")) for sentence in told["why"])


def test_the_output_for_people_is_a_table_and_reasons(zephyrctl: Command) -> None:
    outcome = zephyrctl("plan", *PAPER)
    assert outcome.code == 0
    for words in ("16 x 2 x 16 = 512", "DeepSpeed ZeRO-3", "peak memory", "why:", "next best:", "2 x 8 a100-80gb"):
        assert words in outcome.out


def test_what_cannot_fit_exits_1_with_a_remedy_that_works(zephyrctl: Command) -> None:
    small = ["plan", "--recipe", "zephyr-7b-beta", "--gpu-type", "a10g", "--gpus", "1", "--nodes", "1"]
    refused = zephyrctl(*small)
    assert refused.code == 1
    assert "116 GB" in refused.err
    remedy = refused.err.split("try: ")[1].split(" (")[0]
    assert remedy.startswith("--set sft.")
    mended = zephyrctl(*small, *shlex.split(remedy), *shlex.split(remedy.replace("sft.", "dpo.")), "--json")
    assert mended.code == 0, mended.err
    assert mended.json["sft"]["peak_gb"] <= mended.json["sft"]["limit_gb"]


def test_a_misspelt_gpu_names_the_nearest(zephyrctl: Command) -> None:
    outcome = zephyrctl("plan", "--recipe", "zephyr-7b-beta", "--gpu-type", "a100-80g")
    assert outcome.code == 1
    assert "did you mean 'a100-80gb'?" in outcome.err


def test_the_tiny_recipe_is_planned_for_this_machine(zephyrctl: Command) -> None:
    outcome = zephyrctl("plan", "--gpus", "0", "--json")
    assert outcome.code == 0
    assert set(outcome.json) == {"sft", "dpo", "why", "machine"}
    assert outcome.json["sft"]["hours"] is None
    assert "CPU" in outcome.json["machine"]


def test_scripts_are_written_for_every_launcher(zephyrctl: Command, tmp_path: Path) -> None:
    outcome = zephyrctl("plan", *PAPER, "--write", "launches", "--json")
    assert outcome.code == 0
    assert set(outcome.json["written"]["sft"]) == {"accelerate", "torchrun", "deepspeed", "slurm"}
    folder = tmp_path / "launches" / "sft"
    config = json.loads((folder / "deepspeed.json").read_text())
    assert config["train_batch_size"] == 512
    assert yaml.safe_load((folder / "accelerate.yaml").read_text())["num_processes"] == 16
    script = (folder / "train.sbatch").read_text()
    assert "--nodes=2" in script
    assert "--gpus-per-node=8" in script


def test_a_profile_changes_the_plan(zephyrctl: Command) -> None:
    paper, fast = (zephyrctl("plan", *PAPER, "--profile", profile, "--json").json for profile in ("paper", "fast"))
    assert (paper["dpo"]["engine"], fast["dpo"]["engine"]) == ("trl", "prefix-shared")
    assert fast["dpo"]["hours"] < paper["dpo"]["hours"]
