"""The launchers that are started by hand on each of two machines: two network namespaces with a cable between them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.training import jobs_made
from zephyrctl.launching.job import SftJob
from zephyrctl.launching.launchers import Launcher, launch_scripts

pytestmark = pytest.mark.slow
ADDRESSES = ("10.213.77.1", "10.213.77.2")
CABLE = "cable"
"""The name of the network interface on both machines."""


@dataclass(frozen=True)
class Machines:
    """Two network namespaces that reach each other at ADDRESSES and nobody else."""

    names: tuple[str, str]

    def typed(
        self, rank: int, job: Path, launcher: Launcher = "torchrun"
    ) -> "AbstractContextManager[subprocess.Popen[bytes]]":
        """Type the command of a launcher on one of the machines."""
        meeting = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29511", "NODE_RANK": f"{rank}"}
        environment = jobs_made.environment(**meeting, GLOO_SOCKET_IFNAME=CABLE)
        command = ["ip", "netns", "exec", self.names[rank], "bash", str(job.parent / f"{launcher}.sh")]
        return jobs_made.started(command, job, environment)


def ip(*words: str) -> bool:
    """True where a command of iproute2 did what it was asked to."""
    try:
        return not subprocess.run(["ip", *words], capture_output=True, timeout=30, check=False).returncode
    except OSError:
        return False


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two machines; skips where this user may not make network namespaces."""
    names = (f"zephyr-{os.getpid()}-0", f"zephyr-{os.getpid()}-1")
    try:
        if not all(ip("netns", "add", name) for name in names):
            pytest.skip("no right to make network namespaces here, or no iproute2")
        peer = ("peer", "name", CABLE, "netns", names[1])
        made = ip("link", "add", CABLE, "netns", names[0], "type", "veth", *peer)
        for name, address in zip(names, ADDRESSES, strict=True):
            made &= ip("-n", name, "addr", "add", f"{address}/30", "dev", CABLE)
            made &= ip("-n", name, "link", "set", CABLE, "up") and ip("-n", name, "link", "set", "lo", "up")
        if not made:
            pytest.skip("no right to lay a cable between network namespaces here")
        yield Machines(names)
    finally:
        for name in names:
            ip("netns", "del", name)


def job_of_two(folder: Path, steps: int = jobs_made.STEPS) -> Path:
    """A job for one process on each of two machines, with the scripts of every launcher beside it."""
    job = jobs_made.make_job(folder, jobs_made.layout(nodes=2, processes=1), steps=steps)
    content = SftJob.model_validate_json(job.read_bytes())
    for name, text in launch_scripts("sft", content.layout, content.launch).files.items():
        (folder / name).write_text(text)
    return job


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_same_line_on_both_machines_trains_as_one_process_does(
    machines: Machines, tmp_path: Path, launcher: Launcher
) -> None:
    job = job_of_two(tmp_path / "of two")
    with machines.typed(1, job, launcher) as second, machines.typed(0, job, launcher) as first:
        jobs_made.finish(first, job)
        jobs_made.finish(second, job)
    assert jobs_made.losses(job.parent) == pytest.approx(jobs_made.losses_alone(), rel=1e-6)


def test_a_process_that_is_killed_on_one_machine_ends_both(machines: Machines, tmp_path: Path) -> None:
    job = job_of_two(tmp_path, steps=jobs_made.ENDLESS)
    with machines.typed(0, job) as first, machines.typed(1, job) as second:
        jobs_made.until(lambda: "step" in [event["event"] for event in jobs_made.events(tmp_path)], tmp_path, "a step")
        there = _processes(machines.names[1])
        workers = [process for process in jobs_made.processes(job) if process in there and _is_worker(process)]
        assert len(workers) == 1
        os.kill(workers[0], signal.SIGKILL)
        assert second.wait(jobs_made.WAIT_SECONDS) != 0
        assert first.wait(jobs_made.WAIT_SECONDS) != 0
        jobs_made.until(lambda: not jobs_made.processes(job), tmp_path, "the end of every process")


def _processes(name: str) -> set[int]:
    """The processes in a network namespace."""
    command = ["ip", "netns", "pids", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    return set(map(int, done.stdout.split()))


def _is_worker(process: int) -> bool:
    """True for the worker itself, False for the torchrun that started it."""
    return b"torch.distributed.run" not in Path(f"/proc/{process}/cmdline").read_bytes()
