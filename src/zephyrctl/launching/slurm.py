"""A training job as a job of SLURM: the batch script, how it is submitted, and how it is ended."""

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
"""How long before its time is up a job is asked for a checkpoint: the optimizer of a 7B alone writes 87 GB."""
SETTLED = frozenset(
    {"array", "chdir", "error", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "parsable", "wait"}
)
"""Options of sbatch that follow from the job and cannot be set."""

Value = str | int | bool


def is_here(environment: Mapping[str, str]) -> bool:
    """True inside an allocation, and where jobs can be submitted."""
    return "SLURM_JOB_ID" in environment or shutil.which("sbatch", path=environment.get("PATH")) is not None


def check(layout: Layout, environment: Mapping[str, str]) -> None:
    """Raise ZephyrError where there is no SLURM, or where the allocation that this process is in is too small."""
    if not is_here(environment):
        raise ZephyrError(
            "there is no SLURM here: sbatch is not on the PATH",
            "type this on a machine of the cluster, or write its script: zephyrctl plan --write DIR",
        )
    held = int(environment.get("SLURM_JOB_NUM_NODES", layout.nodes))
    if held < layout.nodes:
        raise ZephyrError(
            f"this SLURM allocation has {held} machine{'' if held == 1 else 's'}, and the plan wants {layout.nodes}",
            f"allocate them: salloc --nodes={layout.nodes}; or type this outside of any allocation",
        )


def script(worker: str, job: str, python: str, settings: Mapping[str, str], layout: Layout, launch: Launch) -> str:
    """The batch script; it also runs as it is inside an allocation. Paths are quoted here."""
    here = [python, "--nnodes", f"{layout.nodes}", "--nproc-per-node", f"{layout.processes}"]
    return templates.render(
        f"slurm/{SCRIPT}.jinja",
        options=[_directive(*option) for option in _options(worker, settings, layout, launch).items()],
        meeting=shlex.join(here),
        work=shlex.join(["-m", f"zephyrctl.workers.{worker}", job]),
        settings=settings,
        on_cpu=layout.on_cpu,
        notice=NOTICE_SECONDS,
    )


def submit(worker: str, job: Path, launch: Launch) -> list[str]:
    """The command that submits the script beside a job file and ends with its exit code.

    Two jobs of one folder never run at once: they would write into each other's checkpoints.
    """
    after = [word for word in (str(_asked(launch).get("dependency", "")), "singleton") if word]
    return [
        *("sbatch", "--wait", "--parsable", f"--job-name={name(worker, job)}", f"--dependency={','.join(after)}"),
        f"--output={str(job.parent / 'worker.log').replace('%', '%%')}",
        str(job.parent / SCRIPT),
    ]


def inside(job: Path) -> list[str]:
    """The command that runs the script in the allocation that this process is in."""
    return ["bash", str(job.parent / SCRIPT)]


def cancel(worker: str, job: Path) -> list[str]:
    """The command that ends a submitted job, waiting or running; it does nothing to one that has ended."""
    return ["scancel", f"--user={getpass.getuser()}", f"--name={name(worker, job)}"]


def name(worker: str, job: Path) -> str:
    """What SLURM calls the job: the same for the same job file, another for every other."""
    return f"zephyrctl-{worker}-{hashlib.sha256(str(job.absolute()).encode()).hexdigest()[:8]}"


def _options(worker: str, settings: Mapping[str, str], layout: Layout, launch: Launch) -> dict[str, Value]:
    """The options of the script, the recipe's over ours; True is an option without a value, False none at all."""
    whole = {"exclusive": True, "mem": 0}
    cores = layout.processes * int(settings["OMP_NUM_THREADS"])
    ours: dict[str, Value] = {
        "job-name": f"zephyrctl-{worker}",
        "nodes": layout.nodes,
        "ntasks-per-node": 1,
        **({} if layout.on_cpu else {"gpus-per-node": layout.processes}),
        **(whole if layout.nodes > 1 else {"cpus-per-task": cores}),
        "output": "worker.log",
        "open-mode": "append",
        "requeue": True,
        "signal": f"TERM@{NOTICE_SECONDS}",
    }
    return {key: value for key, value in {**ours, **_asked(launch)}.items() if value is not False}


def _directive(key: str, value: Value) -> str:
    return f"--{key}" if value is True else f"--{key}={shlex.quote(str(value))}"


def _asked(launch: Launch) -> Mapping[str, Value]:
    """The recipe's own options. Raises ZephyrError for one that is settled by the job, or that is no option."""
    asked: Mapping[str, Value] = launch.slurm
    for key, value in asked.items():
        if key in SETTLED:
            raise ZephyrError(f"launch.slurm.{key} follows from the plan", f"leave out launch.slurm.{key}")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or not str(value).isprintable():
            raise ZephyrError(f"launch.slurm.{key}={value!r} is no option of sbatch", "see `man sbatch`")
    return asked
