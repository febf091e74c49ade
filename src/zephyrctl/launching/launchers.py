"""The launchers that start a training job: which one to use, its command, and scripts to start it by hand.

Every launcher starts the same worker with the same job file.
"""

import errno
import os
import shlex
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import yaml

from zephyrctl import plugin_files
from zephyrctl.errors import ZephyrError
from zephyrctl.launching import slurm
from zephyrctl.launching.deepspeed_config import accelerate_config
from zephyrctl.launching.hostfile import check_hostfile, hostfile_text
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.processes import free_port
from zephyrctl.recipe.schema import Launch

Launcher = Literal["single", "accelerate", "torchrun", "deepspeed", "slurm"]
LOCAL = frozenset[Launcher]({"single", "accelerate", "torchrun"})
"""Launchers that start processes on this machine."""
SCRIPTED: tuple[Launcher, ...] = ("accelerate", "torchrun", "deepspeed")
"""Launchers that are started by a shell script; SLURM has a batch script, and a single process needs none."""
DEFAULT_PORT = "29500"
"""Port of the first machine at which all processes meet, unless MASTER_PORT is set; torchrun's own default."""
DEEPSPEED_ENV = "deepspeed.env"
"""File with the variables that DeepSpeed's launcher exports on other machines, which do not get our environment."""
HUB_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
"""Variables that say where models are; none of them is secret."""
CORES_PER_GPU = 8


@dataclass(frozen=True)
class LaunchCommand:
    """The command that starts a job, and the files that it reads beside the job file."""

    command: list[str]
    files: dict[str, str] = field(default_factory=dict)
    """Text by file name."""
    cancel: list[str] | None = None
    """A command that ends the job, if it outlives the first command."""
    instructions: str | None = None
    """What the user has to do on the other machines."""


@dataclass(frozen=True)
class LaunchScripts:
    """Scripts for every launcher, to be written into a folder that also has `job.json`."""

    files: dict[str, str]
    """Text by file name."""
    commands: dict[Launcher, str]
    """What to type in that folder."""
    unusable: dict[Launcher, str]
    """Why a launcher cannot start this layout."""


@dataclass(frozen=True)
class _Context:
    """The words that differ between a command that is run now and the same command in a script."""

    python: str
    path_of: Callable[[str], str]
    """The path of a file beside the job file, by its name."""
    address: str = "127.0.0.1"
    port: str = "0"
    rank: str = "0"

    def worker(self, name: str) -> list[str]:
        """The worker's module and its job file, which come last in the command of every launcher."""
        return [f"zephyrctl.workers.{name}", self.path_of("job.json")]


def choose_launcher(launch: Launch, layout: Layout, environment: Mapping[str, str] | None = None) -> Launcher:
    """The launcher that the recipe names; with `auto`, the one that suits the layout and this machine.

    Raises ZephyrError if that launcher cannot start the layout, with what to do instead.
    """
    environment = os.environ if environment is None else environment
    launcher = _suitable_launcher(launch, layout, environment) if launch.launcher == "auto" else launch.launcher
    if reason := why_unusable(launcher, layout):
        raise ZephyrError(f"launch.launcher={launcher} cannot be used: {reason}", "--set launch.launcher=auto")
    if launcher == "slurm":
        slurm.check(layout, environment)
    if launcher == "deepspeed":
        check_hostfile(launch, layout, environment)
    return launcher


def launch_command(
    launcher: Launcher,
    worker: str,
    job: Path,
    layout: Layout,
    launch: Launch,
    environment: Mapping[str, str] | None = None,
) -> LaunchCommand:
    """The command by which this process starts a job file, for a launcher that `choose_launcher` returned.

    Raises ZephyrError if machines are started by hand and MASTER_ADDR does not say where they meet.
    """
    environment = os.environ if environment is None else environment
    context = _Context(sys.executable, lambda name: str(job.parent / name))
    if launcher == "single":
        return LaunchCommand(_single(worker, context, layout, environment))
    if launcher == "slurm":
        return _slurm_launch(worker, job, layout, launch, environment)
    if launcher == "deepspeed":
        return _deepspeed_launch(worker, context, layout, launch, environment)
    return _per_machine_launch(launcher, worker, context, layout, launch, environment)


def launch_scripts(worker: str, layout: Layout, launch: Launch) -> LaunchScripts:
    """Scripts for every launcher, for a folder from which somebody will start the job later."""
    unusable: dict[Launcher, str] = {}
    for launcher in get_args(Launcher):
        if reason := why_unusable(launcher, layout):
            unusable[launcher] = reason
    files: dict[str, str] = {}
    commands: dict[Launcher, str] = {}
    if "single" not in unusable:
        commands["single"] = shlex.join(_single(worker, _Context("python", str), layout, {}))
    for launcher in SCRIPTED:
        files |= _launcher_files(launcher, worker, "python", layout, launch)
        commands[launcher] = _script_command(launcher, layout)
    variables = worker_variables(layout, launch)
    files[slurm.SCRIPT] = slurm.script(worker, "job.json", "python", variables, layout, launch)
    commands["slurm"] = f"sbatch {slurm.SCRIPT}"
    return LaunchScripts(files, commands, unusable)


def why_unusable(launcher: Launcher, layout: Layout) -> str | None:
    """Why a launcher cannot start this layout on any machine; None if it can."""
    if launcher == "single" and layout.world > 1:
        return f"it starts one process, and the plan needs {layout.world}"
    return None


def worker_variables(layout: Layout, launch: Launch) -> dict[str, str]:
    """Environment variables of workers on machines that do not get our environment.

    `processes.worker_environment` sets the same ones on this machine, and says why.
    """
    threads = launch.threads or (1 if layout.on_cpu else CORES_PER_GPU)
    return {
        "OMP_NUM_THREADS": f"{threads}",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if layout.on_cpu else {}),
    }


def _suitable_launcher(launch: Launch, layout: Layout, environment: Mapping[str, str]) -> Launcher:
    if layout.nodes == 1:
        return "single" if layout.world == 1 else "accelerate"
    if slurm.is_available(environment):
        return "slurm"
    if launch.hostfile:
        return "deepspeed"
    raise ZephyrError(
        f"nothing can start {layout.nodes} machines: there is no SLURM here, and launch.hostfile is not set",
        "list the machines: --set launch.hostfile=FILE; or start each by hand: --set launch.launcher=torchrun; "
        "`zephyrctl plan --write DIR` writes a script for every launcher",
    )


def _single(worker: str, context: _Context, layout: Layout, environment: Mapping[str, str]) -> list[str]:
    """One process. In plain torch it may see one GPU only: transformers would use `DataParallel` over all of them."""
    visible = environment.get("CUDA_VISIBLE_DEVICES") or "0"
    is_plain = layout.zero_stage is None and not layout.on_cpu
    one_gpu = ["env", f"CUDA_VISIBLE_DEVICES={visible.partition(',')[0]}"] if is_plain else []
    return [*one_gpu, context.python, "-m", *context.worker(worker)]


def _accelerate(worker: str, context: _Context, layout: Layout) -> list[str]:
    # "standard" lets accelerate start only the processes of its own machine; its default for DeepSpeed is pdsh
    several = ["--deepspeed_multinode_launcher", "standard", "--machine_rank", context.rank]
    several += ["--main_process_ip", context.address]
    rendezvous = [*(several if layout.nodes > 1 else []), "--main_process_port", context.port]  # port 0: any free one
    config = ["--config_file", context.path_of("accelerate.yaml")]
    return [context.python, "-m", "accelerate.commands.launch", *config, *rendezvous, "-m", *context.worker(worker)]


def _torchrun(worker: str, context: _Context, layout: Layout) -> list[str]:
    # several machines meet at a fixed address, not by the c10d backend, which waits silently if the port is taken
    one = ["--standalone", "--local-addr", context.address]
    several = ["--nnodes", f"{layout.nodes}", "--node-rank", context.rank]
    several += ["--master-addr", context.address, "--master-port", context.port]
    rendezvous = [*(several if layout.nodes > 1 else one), "--nproc-per-node", f"{layout.processes}"]
    return [context.python, "-m", "torch.distributed.run", *rendezvous, "-m", *context.worker(worker)]


def _deepspeed(worker: str, context: _Context, layout: Layout, launch: Launch) -> list[str]:
    size = ["--num_nodes", f"{layout.nodes}", "--num_gpus", f"{layout.processes}", "--master_port", context.port]
    machines = ["--no_ssh", "--node_rank", "0"] if _is_this_machine_only(layout, launch) else ["--force_multi"]
    if context.address:
        machines += ["--master_addr", context.address]
    hosts = ["--hostfile", context.path_of("hostfile")]
    start = [context.python, "-m", "deepspeed.launcher.runner", *hosts, *size, *machines]
    return [*start, "--no_local_rank", "--module", *context.worker(worker)]


PER_MACHINE: dict[Launcher, Callable[[str, _Context, Layout], list[str]]] = {
    "accelerate": _accelerate,
    "torchrun": _torchrun,
}
"""Launchers that are started once on each machine, with the same command except for the machine's rank."""


def _per_machine_launch(
    launcher: Launcher,
    worker: str,
    context: _Context,
    layout: Layout,
    launch: Launch,
    environment: Mapping[str, str],
) -> LaunchCommand:
    """accelerate or torchrun: all of one machine, or the first of several; the user starts the others by hand."""
    files = _launcher_files(launcher, worker, context.python, layout, launch)
    script = f"{launcher}.sh"
    if layout.nodes == 1:
        del files[script]
        return LaunchCommand(PER_MACHINE[launcher](worker, context, layout), files)
    address, port = _rendezvous(layout, environment)
    context = replace(context, address=address, port=port)
    ranks = "NODE_RANK=1" + (f" to NODE_RANK={layout.nodes - 1}" if layout.nodes > 2 else "")
    line = f"MASTER_ADDR={shlex.quote(address)} MASTER_PORT={port} bash {shlex.quote(context.path_of(script))}"
    instructions = f"start the other machines, with {ranks}: {line}"
    return LaunchCommand(PER_MACHINE[launcher](worker, context, layout), files, instructions=instructions)


def _rendezvous(layout: Layout, environment: Mapping[str, str]) -> tuple[str, str]:
    """The address and port of this machine at which all processes meet.

    Raises ZephyrError if they are not set, or if this machine cannot listen there.
    """
    remedy = "set MASTER_ADDR=<address of this machine>, and run the command on the first machine"
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", DEFAULT_PORT)
    if not address:
        raise ZephyrError(f"{layout.nodes} machines are started by hand, and MASTER_ADDR is not set", remedy)
    if environment.get("NODE_RANK", "0") != "0":
        raise ZephyrError("this command is for the first machine, but NODE_RANK is not 0", remedy)
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ZephyrError(f"MASTER_PORT={port} is not a port", "use a number from 1024 to 65535, or leave it out")
    try:
        family, kind, _, _, endpoint = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(endpoint)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ZephyrError(
                f"port {port} of this machine is used by another program", "choose another: MASTER_PORT=<port>"
            ) from error
        raise ZephyrError(f"the machines cannot meet at {address}:{port} ({error})", remedy) from error
    return address, port


def _deepspeed_launch(
    worker: str, context: _Context, layout: Layout, launch: Launch, environment: Mapping[str, str]
) -> LaunchCommand:
    files = _launcher_files("deepspeed", worker, context.python, layout, launch)
    del files["deepspeed.sh"]
    if _is_this_machine_only(layout, launch):
        return LaunchCommand(_deepspeed(worker, replace(context, port=f"{free_port()}"), layout, launch), files)
    address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", DEFAULT_PORT)
    context = replace(context, address=address, port=port)
    forwarded = [name for name in (*HUB_VARIABLES, plugin_files.VARIABLE) if environment.get(name)]
    files[DEEPSPEED_ENV] += "".join(f"{name}={environment[name]}\n" for name in forwarded)
    env_file = f"DS_ENV_FILE={Path(context.path_of(DEEPSPEED_ENV)).absolute()}"
    return LaunchCommand(["env", env_file, *_deepspeed(worker, context, layout, launch)], files)


def _slurm_launch(
    worker: str, job: Path, layout: Layout, launch: Launch, environment: Mapping[str, str]
) -> LaunchCommand:
    variables = worker_variables(layout, launch)
    files = {slurm.SCRIPT: slurm.script(worker, str(job), sys.executable, variables, layout, launch)}
    if "SLURM_JOB_ID" in environment:
        return LaunchCommand(slurm.run_command(job), files)
    return LaunchCommand(slurm.submit_command(worker, job, launch), files, slurm.cancel_command(worker, job))


def _launcher_files(launcher: Launcher, worker: str, python: str, layout: Layout, launch: Launch) -> dict[str, str]:
    """The files that a launcher reads, and a script that runs it on the job file of its own folder."""
    context = _Context(python, lambda name: f'"$folder"/{name}')
    if launcher == "deepspeed":
        is_local = _is_this_machine_only(layout, launch)
        context = replace(context, address=context.address if is_local else "", port='"$MASTER_PORT"')
        files = {"hostfile": hostfile_text(layout, launch)}
        if not is_local:
            variables = worker_variables(layout, launch)
            files[DEEPSPEED_ENV] = "".join(f"{name}={value}\n" for name, value in variables.items())
        command = _deepspeed(worker, context, layout, launch)
        return {**files, "deepspeed.sh": _shell_script(launcher, command, layout, launch)}
    if layout.nodes > 1:
        context = replace(context, address='"$MASTER_ADDR"', port='"$MASTER_PORT"', rank='"$NODE_RANK"')
    command = PER_MACHINE[launcher](worker, context, layout)
    files = {f"{launcher}.sh": _shell_script(launcher, command, layout, launch)}
    if launcher == "accelerate":
        files["accelerate.yaml"] = yaml.safe_dump(accelerate_config(layout, "deepspeed.json"), sort_keys=False)
    return files


def _shell_script(launcher: Launcher, command: list[str], layout: Layout, launch: Launch) -> str:
    """A launch as a shell script; words that begin with a quoted variable are left to the shell."""
    lines = ["#!/usr/bin/env bash"]
    is_by_hand = launcher in PER_MACHINE and layout.nodes > 1
    if is_by_hand:
        lines += [f"# On each of the {layout.nodes} machines: {_script_command(launcher, layout)}"]
    lines += ["set -euo pipefail", 'folder=$(cd "$(dirname "$0")" && pwd)']
    if is_by_hand:
        lines += [': "${MASTER_ADDR:?must be the address of the first machine}"']
        lines += [f': "${{NODE_RANK:?must be 0 on the first machine, {layout.nodes - 1} on the last}}"']
    if '"$MASTER_PORT"' in command:
        lines += [f"MASTER_PORT=${{MASTER_PORT:-{DEFAULT_PORT}}}"]
    lines += [f"export {name}={value}" for name, value in worker_variables(layout, launch).items()]
    if not _is_this_machine_only(layout, launch) and launcher == "deepspeed":
        lines += [f'export DS_ENV_FILE="$folder"/{DEEPSPEED_ENV}']
    words = [word if word.startswith('"$') else shlex.quote(word) for word in command]
    return "\n".join([*lines, f"exec {' '.join(words)}", ""])


def _script_command(launcher: Launcher, layout: Layout) -> str:
    """What to type to start a launcher's script."""
    if launcher in PER_MACHINE and layout.nodes > 1:
        return f"MASTER_ADDR=... NODE_RANK=... bash {launcher}.sh"
    return f"bash {launcher}.sh"


def _is_this_machine_only(layout: Layout, launch: Launch) -> bool:
    """True if DeepSpeed's launcher starts this machine only, and so needs no ssh."""
    return layout.nodes == 1 and not launch.hostfile
