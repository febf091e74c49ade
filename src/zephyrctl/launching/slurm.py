"""Training jobs in SLURM: the batch script, and the commands that submit it and cancel it."""

import getpass
import hashlib
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from zephyrctl import templates
from zephyrctl.errors import ZephyrError
from zephyrctl.launching.parallelism import Layout
from zephyrctl.recipe.schema import Launch

SCRIPT = "train.sbatch"
NOTICE_SECONDS = 300
"""How long before its time limit a job is asked for a checkpoint: the optimizer states of a 7B alone are 87 GB."""
FIXED_OPTIONS = frozenset(
    {"array", "chdir", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "parsable", "wait"}
)
"""Options of sbatch that follow from the job, so a recipe cannot set them."""

OptionValue = str | int | bool


def is_available(environment: Mapping[str, str]) -> bool:
    """True inside a SLURM allocation, or if jobs can be submitted from this machine."""
    return "SLURM_JOB_ID" in environment or shutil.which("sbatch", path=environment.get("PATH")) is not None


def check(layout: Layout, environment: Mapping[str, str]) -> None:
    """Raise ZephyrError if there is no SLURM, or if the allocation of this process is too small."""
    if not is_available(environment):
        raise ZephyrError(
            "there is no SLURM here: sbatch is not on the PATH",
            "run the command on a machine of the cluster, or write its script: zephyrctl plan --write DIR",
        )
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", layout.nodes))
    if nodes < layout.nodes:
        raise ZephyrError(
            f"this SLURM allocation has {nodes} machine{'' if nodes == 1 else 's'}, and the plan needs {layout.nodes}",
            f"allocate them: salloc --nodes={layout.nodes}; or run the command outside an allocation",
        )


def script(worker: str, job: str, python: str, variables: Mapping[str, str], layout: Layout, launch: Launch) -> str:
    """The batch script; inside an allocation it can also be run with bash. Paths are quoted here."""
    torchrun = [python, "--nnodes", f"{layout.nodes}", "--nproc-per-node", f"{layout.processes}"]
    return templates.render(
        f"slurm/{SCRIPT}.jinja",
        options=[_directive(*option) for option in _options(worker, variables, layout, launch).items()],
        torchrun=shlex.join(torchrun),
        worker=shlex.join(["-m", f"zephyrctl.workers.{worker}", job]),
        variables=variables,
        on_cpu=layout.on_cpu,
        notice=NOTICE_SECONDS,
    )


def submit_command(worker: str, job: Path, launch: Launch) -> list[str]:
    """The command that submits the script beside a job file, waits, and exits with the job's exit code.

    Two jobs of one folder never run at the same time, because both would write into its checkpoints.
    """
    dependencies = [word for word in (str(_recipe_options(launch).get("dependency", "")), "singleton") if word]
    return [
        *("sbatch", "--wait", "--parsable", f"--job-name={job_name(worker, job)}"),
        f"--dependency={','.join(dependencies)}",
        f"--output={str(job.parent / 'worker.log').replace('%', '%%')}",
        str(job.parent / SCRIPT),
    ]


def run_command(job: Path) -> list[str]:
    """The command that runs the script in the allocation of this process."""
    return ["bash", str(job.parent / SCRIPT)]


def cancel_command(worker: str, job: Path) -> list[str]:
    """The command that cancels a job, pending or running; it does nothing if the job has ended."""
    return ["scancel", f"--user={getpass.getuser()}", f"--name={job_name(worker, job)}"]


def job_name(worker: str, job: Path) -> str:
    """The name of the job in SLURM: always the same for one job file, and different for every other one."""
    return f"zephyrctl-{worker}-{hashlib.sha256(str(job.absolute()).encode()).hexdigest()[:8]}"


def _options(worker: str, variables: Mapping[str, str], layout: Layout, launch: Launch) -> dict[str, OptionValue]:
    """The options of the script; the recipe's replace ours. True is a flag without a value, False removes an option."""
    # several machines are taken whole; of one machine only the cores that the processes' threads need
    size: dict[str, OptionValue] = {"exclusive": True, "mem": 0}
    if layout.nodes == 1:
        size = {"cpus-per-task": layout.processes * int(variables["OMP_NUM_THREADS"])}
    options: dict[str, OptionValue] = {
        "job-name": f"zephyrctl-{worker}",
        "nodes": layout.nodes,
        "ntasks-per-node": 1,
        **({} if layout.on_cpu else {"gpus-per-node": layout.processes}),
        **size,
        "output": "worker.log",
        "open-mode": "append",
        "requeue": True,
        "signal": f"TERM@{NOTICE_SECONDS}",
    }
    return {key: value for key, value in {**options, **_recipe_options(launch)}.items() if value is not False}


def _directive(key: str, value: OptionValue) -> str:
    return f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"


def _recipe_options(launch: Launch) -> Mapping[str, OptionValue]:
    """The options in `launch.slurm`. Raises ZephyrError for one that the job fixes, or that sbatch cannot have."""
    options: Mapping[str, OptionValue] = launch.slurm
    for key, value in options.items():
        if key in FIXED_OPTIONS:
            raise ZephyrError(f"launch.slurm.{key} follows from the plan", f"remove launch.slurm.{key}")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or not str(value).isprintable():
            raise ZephyrError(f"launch.slurm.{key}={value!r} is not an option of sbatch", "see `man sbatch`")
    return options
