"""What a checkpoint's manifest says of its training is read with types, whichever version wrote it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from zephyrctl.errors import ZephyrError
from zephyrctl.runs.artifacts import Artifact
from zephyrctl.runs.manifest import Manifest, Plan
from zephyrctl.training.results import LN_2, RowReport, TrainingResult

BEFORE = {
    "hardware": "2 processes on the CPU",
    "rows": 40,
    "prepared": {
        "rows_in": 42,
        "rows_kept": 40,
        "tokens_in": 4100,
        "tokens_kept": 4000,
        "lost_rows": {"pairs whose prompt fills max_length": 2},
        "lost_tokens": {"completion tokens beyond max_length": 100},
        "rows": 40,
        "learnt_tokens": 2000,
        "cut": 0,
        "padding_share": 0.0,
        "steps_an_epoch": 5,
        "steps": 10,
    },
    "first_loss": 0.693147,
    "reward_accuracy": 0.9,
    "reward_margin": 1.5,
    "held_out_pairs": 8,
    "steps": 10,
    "train_loss": 0.5,
    "layout": {
        "nodes": 1,
        "processes": 2,
        "on_cpu": True,
        "global_batch": 8,
        "micro_batch": 2,
        "accumulation": 2,
        "gradient_checkpointing": False,
        "engine": "prefix-shared",
        "reference": "precomputed",
    },
    "token_contract": "0123456789abcdef",
}
"""The metrics of a dDPO as the version before wrote them: no expected first loss, and no ZeRO stage in the layout."""


def checkpoint(metrics: dict[str, Any], loss: str = "sigmoid") -> Artifact:
    """A checkpoint whose manifest has these metrics, written to JSON and read back as a run's is."""
    manifest = Manifest(
        plan=Plan(name="dpo", stage="dpo", settings={"dpo": {"loss": loss}}, inputs={}),
        input_paths={},
        libraries={},
        files={},
        metrics=metrics,
        finished_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
    )
    return Artifact(Path("runs/mine/dpo"), Manifest.model_validate(json.loads(manifest.model_dump_json())))


def test_a_manifest_of_the_version_before_is_read_whole() -> None:
    result = TrainingResult.of(checkpoint(BEFORE))
    assert (result.steps, result.rows, result.held_out_pairs) == (10, 40, 8)
    assert result.expected_first_loss == LN_2
    assert result.layout is not None
    assert (result.layout.world, result.layout.zero_stage) == (2, None)
    assert result.prepared is not None
    assert result.prepared.dropped() == {
        "pairs whose prompt fills max_length": 2,
        "completion tokens beyond max_length": 100,
    }
    assert isinstance(result.prepared, RowReport)


def test_the_expected_first_loss_is_only_known_of_the_loss_that_it_belongs_to() -> None:
    assert TrainingResult.of(checkpoint(BEFORE, loss="hinge")).expected_first_loss is None
    stated = TrainingResult.of(checkpoint(BEFORE | {"expected_first_loss": 1.0}, loss="hinge"))
    assert stated.expected_first_loss == 1.0


@pytest.mark.parametrize("metrics", [{}, {"train_loss": None}, {"train_loss": math.nan}])
def test_a_figure_that_is_missing_or_not_finite_is_none(metrics: dict[str, Any]) -> None:
    result = TrainingResult.of(checkpoint(metrics))
    assert result.train_loss is None
    assert result.prepared is None


def test_a_figure_of_another_type_names_the_manifest_and_the_key() -> None:
    with pytest.raises(ZephyrError, match=r"runs/mine/dpo/manifest.json: metrics.prepared.rows_in "):
        TrainingResult.of(checkpoint({"prepared": {**BEFORE["prepared"], "rows_in": "many"}}))  # type: ignore[dict-item]
