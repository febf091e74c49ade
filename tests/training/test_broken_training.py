"""Training that is killed, stopped or spoilt half-way: what goes on is the training that was never broken."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.training.jobs_made import events, layout, losses, make_job
from zephyrctl import token_contract
from zephyrctl.errors import Interrupted, ZephyrError
from zephyrctl.launching import launchers, processes
from zephyrctl.launching.job import SftJob
from zephyrctl.recipe.schema import Launch
from zephyrctl.runs.artifacts import COMPLETE
from zephyrctl.runs.manifest import hash_folder

pytestmark = pytest.mark.slow

STEPS = 24
SAVED_EVERY = 3
"""No multiple of an epoch's two steps: half of the checkpoints lie in the middle of one."""


def job_in(folder: Path, **changed: Any) -> Path:
    """A job of two ZeRO-2 processes in fp32."""
    path = make_job(folder, layout(processes=2, zero_stage=2), steps=STEPS)
    job = SftJob.model_validate_json(path.read_bytes())
    settings = job.settings.model_copy(update={"save_every": SAVED_EVERY, **changed})
    path.write_text(job.model_copy(update={"settings": settings}).model_dump_json())
    return path


def train(path: Path, follow: Callable[[processes.Event], None] = lambda event: None) -> None:
    """Run the job through the launcher for two processes of this machine."""
    job = SftJob.model_validate_json(path.read_bytes())
    launch = launchers.launch_command("accelerate", "sft", path, job.layout, Launch(precision="fp32", threads=1))
    for name, text in launch.files.items():
        (path.parent / name).write_text(text)
    environment = processes.worker_environment(2, 1)
    processes.Work("sft", launch.command, path.parent, environment=environment).do(follow)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that ran from its first step to its last."""
    path = job_in(tmp_path_factory.mktemp("unbroken"))
    train(path)
    return path.parent


def ranks(folder: Path) -> dict[int, int]:
    """rank: process id of the workers of a job that runs now."""
    found: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"zephyrctl.workers.sft" in words and str(folder / "job.json").encode() in words:
                environment = (process / "environ").read_bytes().split(b"\0")
                rank = [int(entry.split(b"=")[1]) for entry in environment if entry.startswith(b"RANK=")]
                found |= {number: int(process.name) for number in rank}
    return found


def kill(folder: Path, rank: int, number: int) -> None:
    """Send a signal to one worker of a job that runs now."""
    os.kill(ranks(folder)[rank], number)


def check_goes_on(folder: Path, unbroken: Path) -> None:
    """Resume the job, and compare what it learnt with the unbroken run."""
    train(folder / "job.json")
    mine, theirs = losses(folder), losses(unbroken)
    assert len(mine) == len(theirs) == STEPS
    assert mine == pytest.approx(theirs, abs=1e-5)
    assert events(folder)[-1]["event"] == "result"


def once_at(step: int, do: Callable[[], None]) -> Callable[[processes.Event], None]:
    """Do something when the worker tells of that step, or of a later one, for the first time."""
    done: list[bool] = []

    def follow(event: processes.Event) -> None:
        if event["event"] == "step" and event["step"] >= step and not done:
            done.append(True)
            do()

    return follow


def whole_checkpoints(folder: Path) -> list[int]:
    """The steps of the checkpoints that are whole."""
    found = [path for path in folder.glob("checkpoints/*") if (path / COMPLETE).exists()]
    assert all(token_contract.read(path) for path in found)
    return sorted(int(path.name.split("-")[1]) for path in found)


def test_either_rank_is_killed_a_signal_and_ctrl_c_and_training_goes_on(tmp_path: Path, unbroken: Path) -> None:
    """One training, broken four times. SIGTERM is told to one process alone, as by a cluster; all save at one step."""
    path = job_in(tmp_path / "job")
    folder = path.parent
    with pytest.raises(ZephyrError, match="SIGKILL"):
        train(path, once_at(5, partial(kill, folder, 0, signal.SIGKILL)))
    assert ranks(folder) == {}
    kept = whole_checkpoints(folder)
    assert kept
    assert kept[-1] % SAVED_EVERY == 0
    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        train(path, once_at(kept[-1] + 1, partial(kill, folder, 1, signal.SIGTERM)))
    assert ranks(folder) == {}
    (*_, asked) = whole_checkpoints(folder)
    assert events(folder)[-1] == {"event": "stopped", "step": asked}
    assert kept[-1] < asked < STEPS
    assert not (folder / "model").exists()

    def press() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(path, once_at(asked + 1, press))
    assert ranks(folder) == {}
    (*_, pressed) = whole_checkpoints(folder)
    assert events(folder)[-1] == {"event": "stopped", "step": pressed}
    assert asked < pressed < STEPS
    with pytest.raises(ZephyrError, match="SIGKILL"):
        train(path, once_at(pressed + 1, partial(kill, folder, 1, signal.SIGKILL)))
    (*_, last) = whole_checkpoints(folder)
    half = folder / "checkpoints" / f"checkpoint-{STEPS + 1}"
    shutil.copytree(folder / "checkpoints" / f"checkpoint-{last}", half)
    (half / COMPLETE).unlink()
    check_goes_on(folder, unbroken)
    assert not half.exists()


def test_a_gradient_without_a_value_stops_before_anything_is_saved_of_it(tmp_path: Path) -> None:
    """A weight that is no number from the start: the first step already has no gradient."""
    import torch
    from safetensors.torch import load_file, save_file

    path = job_in(tmp_path / "job", save_every=1)
    job = SftJob.model_validate_json(path.read_bytes())
    spoilt = tmp_path / "model"
    shutil.copytree(job.model, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    next(iter(weights.values())).view(-1)[:] = torch.nan
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    path.write_text(job.model_copy(update={"model": str(spoilt)}).model_dump_json())
    with pytest.raises(ZephyrError, match="the gradient of step 1 is not finite"):
        train(path)
    assert not list(path.parent.glob("checkpoints/*"))
    assert json.loads((path.parent / "job.json").read_text())["model"] == str(spoilt)


def test_a_training_killed_after_its_last_step_is_only_saved(tmp_path: Path) -> None:
    """Three steps end in the middle of the second epoch; metrics are logged every second one and before each save."""
    path = make_job(tmp_path, layout(processes=1, zero_stage=None), steps=3)
    job = SftJob.model_validate_json(path.read_bytes())
    settings = job.settings.model_copy(update={"log_every": 2, "save_every": 1})
    path.write_text(job.model_copy(update={"settings": settings}).model_dump_json())

    def what_it_made() -> dict[str, Any]:
        work = processes.Work(
            "sft", processes.worker("sft", path), tmp_path, environment=processes.worker_environment(1, 1)
        )
        work.do(lambda event: None)
        return {**events(tmp_path)[-1], "losses": losses(tmp_path), "model": hash_folder(tmp_path / "model")}

    whole = what_it_made()
    assert len(whole["losses"]) == 3
    assert whole["train_loss"] == pytest.approx(sum(whole["losses"]) / 3)
    shutil.rmtree(tmp_path / "model")
    assert what_it_made() == whole
