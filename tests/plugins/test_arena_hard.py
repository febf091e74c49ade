"""The package `zephyrctl-arena-hard` on real checkpoints: a command, a result, tables and a comparison of its own."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import shell
from tests.plugins.packages import FIRST_PARTY, pip_install, python_path

pytestmark = pytest.mark.slow


def test_checkpoints_are_compared_with_a_baseline_by_the_offline_teacher(small_run: Path, tmp_path: Path) -> None:
    (package,) = [path for path in FIRST_PARTY if path.name == "zephyrctl-arena-hard"]
    path = python_path(pip_install([package], tmp_path / "packages"))
    shutil.copytree(small_run, tmp_path / "work")
    folder = tmp_path / "work"
    prompts = [{"prompt": f"What is the capital of country {number}?", "category": "facts"} for number in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))

    assert "arena-hard" in shell(["eval", "--help"], folder, PYTHONPATH=path).out
    near = shell(["eval", "arena-hrad"], folder, PYTHONPATH=path)
    assert near.code == 2 and "'arena-hard'" in near.err
    short = ["--set", "eval.benchmarks.arena-hard.max_new_tokens=12"]
    asked = ["eval", "arena-hard", "--prompts", "prompts.jsonl", "--baseline", "sft", *short]
    done = shell([*asked, "--json"], folder, PYTHONPATH=path)
    assert done.code == 0, done.err
    metrics = done.json["metrics"]
    assert set(metrics["models"]) == {"dpo"}, "the baseline has no rate against itself"
    rate = metrics["models"]["dpo"]["figures"]["win_rate"]
    assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 100 and rate["n"] == 8
    assert metrics["judge"]["rule_based"] is True
    assert any("win rates against sft" in line for line in metrics["comparability"])
    manifest = json.loads((folder / done.json["path"] / "manifest.json").read_text())
    assert manifest["plugins"]["zephyrctl-arena-hard"] == "0.1.0"
    shown = shell(asked, folder, PYTHONPATH=path)
    assert shown.code == 0 and "Arena-Hard style" in shown.out
    gone = shell(["eval", "compare", "dpo", "dpo", "--benchmark", "arena-hard"], folder)
    assert gone.code == 1 and "there is nothing to compare" in gone.err, "without the package, others still compare"
