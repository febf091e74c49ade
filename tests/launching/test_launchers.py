"""Which launcher is chosen, its command, what would fail, and that every launcher trains the same."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from tests.training import jobs_made
from zephyrctl.errors import ZephyrError
from zephyrctl.launching import launchers, slurm
from zephyrctl.launching.launchers import Launcher
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.processes import free_port
from zephyrctl.recipe.schema import Launch

NOWHERE: dict[str, str] = {"PATH": ""}
"""An environment without SLURM, pdsh or an address."""
PAPER = Layout(
    nodes=2,
    processes=8,
    on_cpu=False,
    global_batch=512,
    micro_batch=16,
    accumulation=2,
    zero_stage=3,
    gradient_checkpointing=True,
)
TWO_CPUS = jobs_made.layout()
ONE_CPU = jobs_made.layout(processes=1, zero_stage=None)
ONE_GPU = ONE_CPU.model_copy(update={"on_cpu": False})
LAYOUTS = [PAPER, TWO_CPUS, ONE_CPU, ONE_GPU, PAPER.model_copy(update={"nodes": 1, "global_batch": 256})]


def executable(folder: Path, name: str) -> dict[str, str]:
    """An environment whose PATH holds one program of that name."""
    (folder / name).touch(mode=0o755)
    return {"PATH": str(folder)}


def refusal(do: Callable[..., Any], *arguments: Any) -> str:
    """The problem and the remedy of what is refused."""
    with pytest.raises(ZephyrError) as raised:
        do(*arguments)
    return f"{raised.value.problem}: {raised.value.remedy}"


@pytest.fixture
def taken_port() -> Iterator[str]:
    """A port of this machine that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield str(listener.getsockname()[1])


def test_the_launcher_that_suits() -> None:
    assert launchers.choose_launcher(Launch(), ONE_CPU, NOWHERE) == "single"
    assert launchers.choose_launcher(Launch(), TWO_CPUS, NOWHERE) == "accelerate"
    assert launchers.choose_launcher(Launch(launcher="torchrun"), TWO_CPUS, NOWHERE) == "torchrun"


def test_several_machines_are_started_by_slurm_where_there_is_one(tmp_path: Path) -> None:
    assert launchers.choose_launcher(Launch(), PAPER, executable(tmp_path, "sbatch")) == "slurm"
    inside = {"PATH": "", "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"}
    assert launchers.choose_launcher(Launch(), PAPER, inside) == "slurm"
    assert "this SLURM allocation has 1 machine" in refusal(
        launchers.choose_launcher, Launch(), PAPER, {**inside, "SLURM_JOB_NUM_NODES": "1"}
    )


def test_several_machines_are_started_by_deepspeed_where_they_are_listed(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# ours\none slots=8\ntwo slots=8\n\nthree slots=4\n")
    launch = Launch(hostfile=str(hosts))
    assert launchers.choose_launcher(launch, PAPER, executable(tmp_path, "pdsh")) == "deepspeed"
    assert "pdsh" in refusal(launchers.choose_launcher, launch, PAPER, NOWHERE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one slots=8\n", "starts with one slots=8"),
        ("one slots=8\ntwo slots=4\n", "two slots=4"),
        ("one slots=8\none slots=8\n", "hosts:2: 'one slots=8' names a machine for the second time"),
        ("one slots=8\ntwo\n", "hosts:2: 'two' is not of the form"),
        ("", "starts with no machine"),
        (None, "does not exist"),
    ],
)
def test_a_list_of_machines_that_does_not_serve(tmp_path: Path, text: str | None, words: str) -> None:
    hosts = tmp_path / "hosts"
    if text is not None:
        hosts.write_text(text)
    launch = Launch(hostfile=str(hosts), launcher="deepspeed")
    assert words in refusal(launchers.choose_launcher, launch, PAPER, executable(tmp_path, "pdsh"))


@pytest.mark.parametrize(
    ("launch", "layout", "words"),
    [
        (Launch(), PAPER, "launch.launcher=torchrun"),
        (Launch(launcher="single"), TWO_CPUS, "the plan needs 2: --set launch.launcher=auto"),
        (Launch(launcher="slurm"), PAPER, "sbatch is not on the PATH"),
        (Launch(launcher="deepspeed"), PAPER, "--set launch.hostfile=FILE"),
    ],
)
def test_a_launcher_that_cannot_serve_says_what_to_do(launch: Launch, layout: Layout, words: str) -> None:
    assert words in refusal(launchers.choose_launcher, launch, layout, NOWHERE)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.nodes}x{layout.processes}")
@pytest.mark.parametrize("launcher", get_args(Launcher))
def test_every_launcher_ends_in_the_same_worker_and_job_file(
    launcher: Launcher, layout: Layout, tmp_path: Path
) -> None:
    if launchers.why_unusable(launcher, layout):
        return
    job = tmp_path / "a folder" / "job.json"
    environment = {"PATH": "", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}"}
    started = launchers.launch_command(launcher, "dpo", job, layout, Launch(), environment)
    told = started.files[slurm.SCRIPT] if launcher == "slurm" else shlex.join(started.command)
    assert told.strip().endswith(f"zephyrctl.workers.dpo {shlex.quote(str(job))}")
    assert sys.executable in told


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.nodes}x{layout.processes}")
def test_what_is_written_names_every_launcher_or_says_why_not(layout: Layout) -> None:
    written = launchers.launch_scripts("sft", layout, Launch())
    assert {*written.commands, *written.unusable} == set(get_args(Launcher))
    assert not {*written.commands} & {*written.unusable}
    for launcher, line in written.commands.items():
        script = line.split()[-1]
        assert launcher == "single" or script in written.files
    for name, text in written.files.items():
        if text.startswith("#!"):
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
            assert not done.returncode, f"{name}: {done.stderr}"


def test_a_plain_process_sees_one_gpu() -> None:
    job = Path("job.json")
    for seen, first in (("", "0"), ("3,5", "3"), ("GPU-8f2a", "GPU-8f2a")):
        started = launchers.launch_command("single", "sft", job, ONE_GPU, Launch(), {"CUDA_VISIBLE_DEVICES": seen})
        assert started.command[:2] == ["env", f"CUDA_VISIBLE_DEVICES={first}"]
    assert "env" not in launchers.launch_command("single", "sft", job, ONE_CPU, Launch(), {}).command


def test_machines_that_are_started_by_hand_are_told_where_to_meet(taken_port: str) -> None:
    job = Path("/data/a run/job.json")
    start = launchers.launch_command
    launch = Launch()
    port = f"{free_port()}"
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = start("torchrun", "sft", job, PAPER, launch, here)
    line = f"MASTER_ADDR=127.0.0.1 MASTER_PORT={port} bash '/data/a run/torchrun.sh'"
    assert started.instructions == f"start the other machines, with NODE_RANK=1: {line}"
    assert "torchrun.sh" in started.files
    assert "MASTER_ADDR=<address" in refusal(start, "torchrun", "sft", job, PAPER, launch, {})
    assert "NODE_RANK" in refusal(start, "torchrun", "sft", job, PAPER, launch, {**here, "NODE_RANK": "1"})
    assert "cannot meet" in refusal(start, "accelerate", "sft", job, PAPER, launch, {"MASTER_ADDR": "192.0.2.1"})
    assert "is not a port" in refusal(start, "torchrun", "sft", job, PAPER, launch, {**here, "MASTER_PORT": "99999"})
    words = refusal(start, "torchrun", "sft", job, PAPER, launch, {**here, "MASTER_PORT": taken_port})
    assert f"port {taken_port} of this machine is used by another program" in words


def test_deepspeed_takes_the_settings_to_other_machines_and_no_secret(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=8\ntwo slots=8\n")
    environment = {"HF_HOME": "/models", "HF_TOKEN": "hf_secret"}
    launch = Launch(hostfile=str(hosts))
    started = launchers.launch_command("deepspeed", "sft", tmp_path / "job.json", PAPER, launch, environment)
    carried = started.files["deepspeed.env"]
    assert "HF_HOME=/models\n" in carried
    assert "secret" not in "".join(started.files.values())
    assert all(line.count("=") == 1 for line in carried.splitlines())
    assert started.command[1] == f"DS_ENV_FILE={tmp_path / 'deepspeed.env'}"
    assert started.files["hostfile"] == hosts.read_text()


def test_options_of_slurm_come_from_the_recipe() -> None:
    asked: dict[str, str | int] = {"partition": "gpu", "time": "12:00:00", "account": "project 7"}
    script = launchers.launch_scripts("sft", PAPER, Launch(slurm=asked)).files[slurm.SCRIPT]
    for name, value in asked.items():
        assert f"\n#SBATCH --{name}={shlex.quote(str(value))}\n" in script
    replaced = launchers.launch_scripts("sft", PAPER, Launch(slurm={"mem": "400G"})).files[slurm.SCRIPT]
    assert "--mem=400G" in replaced
    assert "--mem=0" not in replaced


@pytest.mark.parametrize("asked", [{"nodes": 4}, {"job-name": "mine"}, {"time\n#SBATCH --x": 1}, {"comment": "a\nb"}])
def test_options_of_slurm_that_are_not_the_users(asked: dict[str, str | int]) -> None:
    assert "launch.slurm" in refusal(launchers.launch_scripts, "sft", PAPER, Launch(slurm=asked))


def test_a_submitted_job_can_be_ended_and_never_runs_twice_at_once(tmp_path: Path) -> None:
    job = tmp_path / "100% mine" / "job.json"
    started = launchers.launch_command("slurm", "sft", job, PAPER, Launch(slurm={"dependency": "afterok:7"}), {})
    name = slurm.job_name("sft", job)
    assert f"--job-name={name}" in started.command
    assert "--dependency=afterok:7,singleton" in started.command
    assert f"--output={tmp_path}/100%% mine/worker.log" in started.command
    assert started.cancel and f"--name={name}" in started.cancel
    assert slurm.job_name("sft", tmp_path / "another" / "job.json") != name
    inside = launchers.launch_command("slurm", "sft", job, PAPER, Launch(), {"SLURM_JOB_ID": "7"})
    assert inside.command == ["bash", str(job.parent / slurm.SCRIPT)]
    assert inside.cancel is None  # it dies with this process


@pytest.mark.parametrize(("name", "layout"), [("paper-2x8", PAPER), ("cpu-1x2", TWO_CPUS)])
def test_what_is_written_reads_as_it_did(golden: Callable[[str, str], None], name: str, layout: Layout) -> None:
    written = launchers.launch_scripts("sft", layout, Launch())
    for file, text in written.files.items():
        golden(f"launchers/{name}/{file}", text)
    commands = {"commands": dict(written.commands), "unusable": dict(written.unusable)}
    golden(f"launchers/{name}/commands.yaml", yaml.safe_dump(commands, sort_keys=False, width=200))


@pytest.mark.slow
def test_every_launcher_of_one_machine_trains_the_same_job_file_to_the_same_losses(tmp_path: Path) -> None:
    job = jobs_made.make_job(tmp_path / "a job", TWO_CPUS)
    content = job.read_bytes()
    for launcher in ("accelerate", "torchrun", "deepspeed"):
        with jobs_made.started(
            jobs_made.prepare_launch(launcher, job).command, job, jobs_made.environment()
        ) as launched:
            jobs_made.finish(launched, job)
        assert jobs_made.losses(job.parent) == pytest.approx(jobs_made.losses_alone(), rel=1e-6), launcher
        assert list(job.parent.glob("checkpoints/*/global_step*")), f"{launcher}: DeepSpeed saved nothing"
        assert job.read_bytes() == content
        shutil.rmtree(job.parent / "checkpoints")
        (job.parent / "metrics.jsonl").unlink()


@pytest.mark.slow
def test_the_launchers_understand_what_the_papers_machines_are_told(tmp_path: Path) -> None:
    from accelerate.commands.launch import launch_command_parser
    from deepspeed.launcher import runner
    from torch.distributed import run

    hosts = tmp_path / "hosts"
    hosts.write_text("one slots=8\ntwo slots=8\n")
    job = tmp_path / "job.json"
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}"}
    said: dict[Launcher, list[str]] = {}
    for launcher in ("torchrun", "accelerate", "deepspeed"):
        command = launchers.launch_command(launcher, "sft", job, PAPER, Launch(hostfile=str(hosts)), here).command
        said[launcher] = command[command.index("-m") + 2 :]
    torchrun = run.parse_args(said["torchrun"])
    assert (torchrun.nnodes, torchrun.nproc_per_node, torchrun.node_rank) == ("2", "8", 0)
    accelerate = launch_command_parser().parse_args(said["accelerate"])
    assert (accelerate.main_process_ip, accelerate.machine_rank) == ("127.0.0.1", 0)
    deepspeed = runner.parse_args(said["deepspeed"])
    assert (deepspeed.num_nodes, deepspeed.num_gpus, deepspeed.hostfile) == (2, 8, str(tmp_path / "hostfile"))
    for told, arguments in (
        (torchrun, torchrun.training_script_args),
        (accelerate, accelerate.training_script_args),
        (deepspeed, deepspeed.user_args),
    ):
        assert told.module
        assert arguments == [str(job)]


@pytest.mark.slow
def test_a_port_that_is_taken_ends_a_launch_by_hand_at_once(tmp_path: Path, taken_port: str) -> None:
    layout = jobs_made.layout(nodes=2, processes=1)
    (tmp_path / "torchrun.sh").write_text(launchers.launch_scripts("sft", layout, Launch()).files["torchrun.sh"])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken_port, "NODE_RANK": "0"}
    done = subprocess.run(
        ["bash", str(tmp_path / "torchrun.sh")],
        env=jobs_made.environment(**where),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert f"port: {taken_port}" in done.stderr
    assert "EADDRINUSE" in done.stderr


def test_a_script_asks_for_what_only_the_machine_knows(tmp_path: Path) -> None:
    (tmp_path / "torchrun.sh").write_text(launchers.launch_scripts("sft", PAPER, Launch()).files["torchrun.sh"])
    done = subprocess.run(
        ["bash", str(tmp_path / "torchrun.sh")],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "MASTER_ADDR: must be the address of the first machine" in done.stderr
