"""What a process settles before it trains: whether it is one of the job's, and what TRL finds in its environment."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training import jobs_made
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.job import SftJob
from zephyrctl.launching.parallelism import Layout
from zephyrctl.workers import distributed

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", *distributed.DEEPSPEED)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that no launcher started; what joining changes is taken back."""
    kept = dict(os.environ)
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["worker", "job.json"])
    yield monkeypatch
    for name in LAUNCHED:
        os.environ.pop(name, None)
    os.environ.update({name: kept[name] for name in LAUNCHED if name in kept})


def job(folder: Path, layout: Layout) -> SftJob:
    """A job of that layout."""
    return SftJob.model_validate_json(jobs_made.make_job(folder, layout).read_bytes())


def test_a_plain_process_joins_nobody_and_forgets_another_deepspeed(
    started: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    started.setattr(sys, "argv", ["worker", "--local_rank=0", "job.json"])
    distributed.join(job(tmp_path, jobs_made.layout(processes=1, zero_stage=None)))
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
    assert sys.argv == ["worker", "job.json"]


def test_a_process_of_another_world_is_refused(started: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two = job(tmp_path, jobs_made.layout())
    with pytest.raises(ZephyrError, match=r"2 processes \(1 x 2\), and this one was started as one of 1"):
        distributed.join(two)
    started.setenv("WORLD_SIZE", "3")
    with pytest.raises(ZephyrError, match="one of 3"):
        distributed.join(two)


def test_a_process_without_a_gpu_of_its_own_is_refused(started: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started.setenv("LOCAL_RANK", "99")
    one = job(tmp_path, jobs_made.layout(processes=1, zero_stage=None))
    with pytest.raises(ZephyrError, match="process 99 of this machine has no GPU"):
        distributed.join(one.model_copy(update={"layout": one.layout.model_copy(update={"on_cpu": False})}))


def test_a_port_that_is_taken_is_named_and_deepspeeds_configuration_is_the_jobs(
    started: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The place to meet is asked for after DeepSpeed's environment is settled, so one failure shows both."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", **place}.items():
            started.setenv(name, value)
        two = job(tmp_path, jobs_made.layout(zero_stage=3))
        with pytest.raises(ZephyrError, match=f"127.0.0.1:{port}: another program listens"):
            distributed.join(two)
    assert json.loads(os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"]) == two.deepspeed
    assert os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "true"
    assert json.loads((tmp_path / "deepspeed.json").read_text()) == two.deepspeed
