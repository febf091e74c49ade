"""What the training workers share: half-written checkpoints, metrics after a resume, trackers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.jobs_made import layout, losses, make_job
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import SftJob
from zephyrctl.recipe.schema import Launch
from zephyrctl.runs.artifacts import COMPLETE

pytestmark = pytest.mark.slow


def test_only_a_marked_checkpoint_is_whole(tmp_path: Path) -> None:
    from zephyrctl.workers import trainer_setup

    folder = tmp_path / "checkpoints"
    for step in (1, 2, 10, 11):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
    for step in (1, 2, 10):
        (folder / f"checkpoint-{step}" / COMPLETE).touch()
    assert trainer_setup.last_complete_checkpoint(folder) == folder / "checkpoint-10"
    trainer_setup.remove_partial_checkpoints(SimpleNamespace(scratch=tmp_path))  # type: ignore[arg-type]
    assert {path.name for path in folder.iterdir()} == {"checkpoint-1", "checkpoint-2", "checkpoint-10"}


def test_metrics_of_steps_that_are_trained_again_are_dropped(tmp_path: Path) -> None:
    from zephyrctl.workers import trainer_setup

    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3, 4)))
    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=True))
    trainer_setup.trim_metrics(path, 2, trainer)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


OWN = """\
from transformers import MistralConfig, MistralForCausalLM

class OwnConfig(MistralConfig):
    model_type = "own-mistral"

class OwnMistral(MistralForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_only_where_it_was_named(tmp_path: Path) -> None:
    from zephyrctl.workers import generate, trainer_setup

    path = make_job(tmp_path / "job", layout(processes=1, zero_stage=None))
    job = SftJob.model_validate_json(path.read_bytes())
    folder = tmp_path / "model"
    shutil.copytree(job.model, folder)
    (folder / "own.py").write_text(OWN)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnMistral"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own-mistral", "auto_map": classes}))
    job = job.model_copy(update={"model": str(folder)})
    with pytest.raises(ZephyrError, match="Python code that comes with it") as caught:
        trainer_setup.load_model(job)
    assert caught.value.remedy.endswith(f"--set base.options.trust_remote_code={folder}")
    with pytest.raises(ZephyrError, match="Python code that comes with it"):
        generate.Generator(str(folder), None, job.chat_template)
    trusted = trainer_setup.load_model(job.model_copy(update={"trusts_code": True}))
    assert type(trusted).__name__ == "OwnMistral"


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from zephyrctl.workers import sft

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # what the worker sets goes when the test is over
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR")
    launch = Launch(precision="fp32", threads=1, trackers=["tensorboard"])
    sft.work(make_job(tmp_path / "job", layout(processes=1, zero_stage=None), launch))
    written = EventAccumulator(str(tmp_path / "job" / "tensorboard")).Reload()
    assert [round(event.value, 4) for event in written.Scalars("train/loss")] == [
        round(loss, 4) for loss in losses(tmp_path / "job")
    ]
