"""One process and two under DeepSpeed ZeRO-3: in fp32 they are the same training."""

import json
import math
import shutil
from pathlib import Path

import pytest

from tests.conftest import shell
from zephyrctl.recipe import loading

pytestmark = pytest.mark.slow


def rows(path: Path) -> list[dict[str, float]]:
    """The training lines of a metrics file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def two_processes(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, trained again by two ZeRO-3 processes."""
    folder = tmp_path_factory.mktemp("two") / "copy"
    shutil.copytree(small_run, folder)
    for stage in ("sft", "dpo"):
        outcome = shell([stage, "--processes", "2", "--set", "launch.zero_stage=3"], folder)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_losses_agree_to_four_digits(small_run: Path, two_processes: Path, stage: str) -> None:
    one = rows(small_run / "runs" / "small" / stage / "metrics.jsonl")
    two = rows(two_processes / "runs" / "small" / stage / "metrics.jsonl")
    assert len(one) == len(two) >= 3
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-3)


def test_the_first_dpo_loss_is_ln_2_under_zero_3(two_processes: Path) -> None:
    manifest = json.loads((two_processes / "runs" / "small" / "dpo" / "manifest.json").read_text())
    assert manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_held_out_accuracy_is_the_same_number_of_pairs(small_run: Path, two_processes: Path) -> None:
    one, two = (
        json.loads((folder / "runs" / "small" / "dpo" / "manifest.json").read_text())["metrics"]
        for folder in (small_run, two_processes)
    )
    assert one["held_out_pairs"] == two["held_out_pairs"]
    assert two["reward_margin"] == pytest.approx(one["reward_margin"], abs=1e-3)


def test_the_whole_model_is_saved(small_run: Path, two_processes: Path) -> None:
    from zephyrctl.builtin.bases import sizes_of_folder

    one, two = (sizes_of_folder(folder / "runs" / "small" / "dpo" / "model") for folder in (small_run, two_processes))
    assert one == two


def test_the_generated_configuration_is_kept_with_the_checkpoint(two_processes: Path) -> None:
    config = json.loads((two_processes / "runs" / "small" / "dpo" / "deepspeed.json").read_text())
    assert config["zero_optimization"]["stage"] == 3
    global_batch = loading.load(str(two_processes / "zephyrctl.yaml"), {}).recipe.dpo.global_batch
    accumulated = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"]
    assert config["train_batch_size"] == global_batch == 2 * accumulated
    assert "auto" not in json.dumps(config)
