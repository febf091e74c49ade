"""A probe really trains, says how fast that was, and plans of the same layout go by it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from zephyrctl.launching.weights import model_base
from zephyrctl.planning import plan, probe
from zephyrctl.progress import Silence
from zephyrctl.recipe.loading import load
from zephyrctl.recipe.schema import Recipe
from zephyrctl.runs.run import Run


def recipe(*assignments: str) -> Recipe:
    """The recipe `tiny` on the CPU, with short rows."""
    short = ["hardware.gpus=0", "sft.max_length=48", "dpo.max_length=48", "sft.micro_batch=2", "dpo.micro_batch=2"]
    return load("tiny", {}, [*short, *assignments]).recipe


def made_up(stage: str, folder: Path, *assignments: str) -> list[dict[str, Any]]:
    """The rows of a probe."""
    chosen = recipe(*assignments)
    solution = plan.solve(chosen, stage, model_base(chosen))
    probe.write_rows(folder / "rows.parquet", stage, solution, 50)
    rows: list[dict[str, Any]] = pq.read_table(folder / "rows.parquet").to_pylist()
    return rows


def test_made_up_rows_are_as_long_as_rows_may_be(tmp_path: Path) -> None:
    for row in made_up("dpo", tmp_path):
        assert len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 48
        assert min(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"])) >= 1
    loose = made_up("sft", tmp_path)
    assert len({row["length"] for row in loose}) > 5
    assert all(len(row["input_ids"]) == row["length"] <= 48 for row in loose)
    assert {row["length"] for row in made_up("sft", tmp_path, "sft.packing=wrapped")} == {48}


@pytest.mark.slow
def test_what_a_probe_measures_takes_the_place_of_the_table(tmp_path: Path) -> None:
    chosen, run = recipe(), Run(tmp_path / "run")
    base = model_base(chosen)
    planned = plan.solve(chosen, "dpo", base)
    assert probe.known(run, "dpo", planned) is None
    measured = probe.measure(run, chosen, "dpo", base, Silence())
    assert measured.tokens_per_second > 0
    assert 0.1 < measured.memory_gb < 20
    assert probe.known(run, "dpo", planned) == measured
    again = plan.solve(chosen, "dpo", base, mfu=measured.mfu)
    assert again.tokens_per_second == pytest.approx(measured.tokens_per_second, rel=0.05)
    assert again.as_json()["mfu_from"] == "probe"
    other = recipe("dpo.engine=trl")
    assert probe.known(run, "dpo", plan.solve(other, "dpo", base)) is None
    assert {path.name for path in run.path.iterdir()} == {plan.PROBE_FILE}
