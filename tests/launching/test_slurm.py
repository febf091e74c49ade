"""The generated batch script on a real cluster of SLURM: it trains, is asked to stop, resumes and is cancelled."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.launching.slurm_cluster import Cluster, cluster
from tests.training import jobs_made

pytestmark = pytest.mark.slow
ELSEWHERE: dict[str, str] = {}
"""An environment that is inside no allocation."""


@pytest.fixture(scope="module")
def two_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two machines."""
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


def submitted(job: Path, machines: Cluster) -> "AbstractContextManager[Popen[bytes]]":
    """The job, submitted as the command would."""
    launch = jobs_made.prepare_launch("slurm", job, ELSEWHERE)
    return jobs_made.started(launch.command, job, jobs_made.environment(**machines.environment))


def steps(job: Path) -> list[int]:
    """The steps that the job has told of, in order."""
    return [int(str(event["step"])) for event in jobs_made.events(job.parent) if event["event"] == "step"]


def test_the_script_trains_on_two_machines_as_one_process_does(two_machines: Cluster, tmp_path: Path) -> None:
    job = jobs_made.make_job(tmp_path / "of two", jobs_made.layout(nodes=2, processes=1))
    with submitted(job, two_machines) as sbatch:
        jobs_made.finish(sbatch, job)
    assert jobs_made.losses(job.parent) == pytest.approx(jobs_made.losses_alone(), rel=1e-6)
    assert [event["event"] for event in jobs_made.events(job.parent)].count("result") == 1
    assert (job.parent / "model" / "model.safetensors").is_file()


def test_a_signal_saves_a_checkpoint_the_next_job_resumes_and_cancel_ends_it(
    two_machines: Cluster, tmp_path: Path
) -> None:
    """SIGTERM comes to the workers the way that `#SBATCH --signal` sends it: to the steps of the job."""
    job = jobs_made.make_job(tmp_path, jobs_made.layout(nodes=2, processes=1), steps=jobs_made.ENDLESS)
    cancel = jobs_made.prepare_launch("slurm", job, ELSEWHERE).cancel
    assert cancel
    with submitted(job, two_machines) as sbatch:
        jobs_made.until(lambda: steps(job), tmp_path, "a first step")
        two_machines.ask(*cancel, "--signal=TERM")
        sbatch.wait(jobs_made.WAIT_SECONDS)
    last = jobs_made.events(tmp_path)[-1]
    assert last["event"] == "stopped"
    assert (tmp_path / "checkpoints" / f"checkpoint-{last['step']}" / "complete").is_file()

    (tmp_path / "events.jsonl").unlink()
    with submitted(job, two_machines) as sbatch:
        jobs_made.until(lambda: steps(job), tmp_path, "a step after resuming")
        assert steps(job)[0] == int(str(last["step"])) + 1
        assert jobs_made.processes(job)
        two_machines.ask(*cancel)
        assert sbatch.wait(jobs_made.WAIT_SECONDS) != 0
        jobs_made.until(lambda: not jobs_made.processes(job), tmp_path, "the end of every process")
