"""The guards of the training workers: half-written checkpoints, metrics after a resume."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zephyrctl.runs import COMPLETE

pytestmark = pytest.mark.slow


def test_only_a_marked_checkpoint_is_whole(tmp_path: Path) -> None:
    from zephyrctl.workers import training

    folder = tmp_path / "checkpoints"
    for step in (1, 2, 10, 11):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    for step in (1, 2, 10):
        (folder / f"checkpoint-{step}" / COMPLETE).touch()
    assert training.last_whole_checkpoint(folder) == folder / "checkpoint-10"
    training.forget_half_checkpoints(SimpleNamespace(scratch=tmp_path))  # type: ignore[arg-type]
    assert {path.name for path in folder.iterdir()} == {"checkpoint-1", "checkpoint-2", "checkpoint-10"}


def test_metrics_of_steps_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    from zephyrctl.workers import training

    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)))
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    training.trim_metrics(path, 2, trainer)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
