"""Commands on real files, read in place."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import shell

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_dpo_on_real_pairs_trains_and_accounts_for_every_pair(small_run: Path, tmp_path: Path, real_data: Path) -> None:
    """1,000 pairs: 111 ties (the 4 identical ones among them are counted as identical), one empty on either side."""
    folder = tmp_path / "copy"
    shutil.copytree(small_run, folder)
    pairs = real_data / "ultrafeedback_binarized" / "train.jsonl"
    arguments = ["--set", "dpo.max_steps=2", "--set", "dpo.max_length=128", "--set", "dpo.loss_budget=1"]
    outcome = shell(["dpo", "--beta", "0.1", "--epochs", "3", "--pairs", pairs, *arguments, "--json"], folder)
    assert outcome.code == 0, outcome.err
    losses, metrics = outcome.json["dropped"], outcome.json["metrics"]
    assert losses["identical answers"] == 4
    assert losses["empty chosen answer"] == 1 and losses["empty rejected answer"] == 1
    assert losses["tied scores"] + losses["identical answers"] >= 111
    lost = sum(rows for cause, rows in losses.items() if "tokens" not in cause)
    assert metrics["rows"] + lost == 1000
    assert metrics["first_loss"] == pytest.approx(0.693147, abs=1e-4)
