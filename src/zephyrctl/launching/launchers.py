"""The doors through which a training job starts: what is typed at each, with the same job file behind all of them."""

import errno
import os
import re
import shlex
import shutil
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
from zephyrctl.launching.parallelism import Layout
from zephyrctl.launching.processes import free_port
from zephyrctl.recipe.schema import Launch

Door = Literal["single", "accelerate", "torchrun", "deepspeed", "slurm"]
LOCAL = frozenset[Door]({"single", "accelerate", "torchrun"})
"""Doors that start processes on the machine where the command is typed."""
PORT = "29500"
"""Where machines meet, unless MASTER_PORT says otherwise."""
REMOTE = "deepspeed.env"
"""What DeepSpeed's launcher exports on other machines, which do not get our environment."""
HUB = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT")
"""Variables that say where models lie, and hold no secret."""
CORES_A_GPU = 8


@dataclass(frozen=True)
class Opened:
    """One door, ready: the command, and the files that it wants beside the job file.

    `cancel` ends work that does not die with the command; `say` is what the user has to do on other machines.
    """

    command: list[str]
    files: dict[str, str] = field(default_factory=dict)
    cancel: list[str] | None = None
    say: str | None = None


@dataclass(frozen=True)
class Written:
    """All doors as files of a folder that also holds `job.json`.

    `lines` is what to type there at each door, `closed` why a door cannot serve.
    """

    files: dict[str, str]
    lines: dict[Door, str]
    closed: dict[Door, str]


@dataclass(frozen=True)
class _Words:
    """What differs between a command that is run at once and a line of a script."""

    python: str
    beside: Callable[[str], str]
    address: str = "127.0.0.1"
    port: str = "0"
    rank: str = "0"

    def work(self, worker: str) -> list[str]:
        """The worker and its job file: the same behind every door."""
        return [f"zephyrctl.workers.{worker}", self.beside("job.json")]


def choose(launch: Launch, layout: Layout, environment: Mapping[str, str] | None = None) -> Door:
    """The door that the recipe names, or else the one that fits the layout and this machine.

    Raises ZephyrError where that door cannot serve, with what to do instead.
    """
    environment = os.environ if environment is None else environment
    door = _fitting(launch, layout, environment) if launch.door == "auto" else launch.door
    if reason := why_closed(door, layout):
        raise ZephyrError(f"launch.door={door} cannot serve: {reason}", "--set launch.door=auto")
    if door == "slurm":
        slurm.check(layout, environment)
    if door == "deepspeed":
        _check_hosts(launch, layout, environment)
    return door


def open_door(
    door: Door, worker: str, job: Path, layout: Layout, launch: Launch, environment: Mapping[str, str] | None = None
) -> Opened:
    """How this process starts a job through a door that `choose` allows.

    Raises ZephyrError where machines that are started by hand have nowhere to meet.
    """
    environment = os.environ if environment is None else environment
    words = _Words(sys.executable, lambda name: str(job.parent / name))
    if door == "single":
        return Opened(_single(worker, words, layout, environment))
    if door == "slurm":
        return _through_slurm(worker, job, layout, launch, environment)
    if door == "deepspeed":
        return _through_deepspeed(worker, words, layout, launch, environment)
    return _by_hand(door, worker, words, layout, launch, environment)


def every(worker: str, layout: Layout, launch: Launch) -> Written:
    """All doors to a job, for a folder from which others will start it."""
    closed: dict[Door, str] = {door: reason for door in get_args(Door) if (reason := why_closed(door, layout))}
    files: dict[str, str] = {}
    lines: dict[Door, str] = {}
    if "single" not in closed:
        lines["single"] = shlex.join(_single(worker, _Words("python", str), layout, {}))
    for door in get_args(Door)[1:-1]:
        files |= _files(door, worker, "python", layout, launch)
        lines[door] = _line(door, layout)
    files[slurm.SCRIPT] = slurm.script(worker, "job.json", "python", settings(layout, launch), layout, launch)
    return Written(files, {**lines, "slurm": f"sbatch {slurm.SCRIPT}"}, closed)


def why_closed(door: Door, layout: Layout) -> str | None:
    """Why a door leads to no such layout on any machine; None where it does."""
    if door == "single" and layout.world > 1:
        return f"it starts one process, and the plan wants {layout.world}"
    return None


def settings(layout: Layout, launch: Launch) -> dict[str, str]:
    """What a worker's environment holds on machines that do not get ours; `launch.worker_environment` says why."""
    threads = launch.threads or (1 if layout.on_cpu else CORES_A_GPU)
    return {
        "OMP_NUM_THREADS": f"{threads}",
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TQDM_DISABLE": "1",
        **({"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""} if layout.on_cpu else {}),
    }


def _fitting(launch: Launch, layout: Layout, environment: Mapping[str, str]) -> Door:
    if layout.nodes == 1:
        return "single" if layout.world == 1 else "accelerate"
    if slurm.is_here(environment):
        return "slurm"
    if launch.hostfile:
        return "deepspeed"
    raise ZephyrError(
        f"training on {layout.nodes} machines needs something that starts them, and there is neither SLURM here nor "
        "launch.hostfile",
        "list the machines: --set launch.hostfile=FILE; or start them by hand: --set launch.door=torchrun; "
        "`zephyrctl plan --write DIR` writes a launch for every door",
    )


def _check_hosts(launch: Launch, layout: Layout, environment: Mapping[str, str]) -> None:
    """Raise ZephyrError where DeepSpeed could not start the machines that the plan wants."""
    if not launch.hostfile:
        if layout.nodes > 1:
            raise ZephyrError("launch.door=deepspeed needs the list of machines", "--set launch.hostfile=FILE")
        return
    slots = list(_slots(Path(launch.hostfile)).items())[: layout.nodes]
    if len(slots) < layout.nodes or min(count for _, count in slots) < layout.processes:
        begins = ", ".join(f"{name} slots={count}" for name, count in slots) or "nothing"
        raise ZephyrError(
            f"the plan wants {layout.nodes} x {layout.processes} processes, and {launch.hostfile} begins with {begins}",
            "mend that list, or plan for what it holds: --set hardware.nodes=N --set hardware.gpus=N",
        )
    if not shutil.which("pdsh", path=environment.get("PATH")):
        raise ZephyrError(
            "DeepSpeed starts other machines through pdsh, which is not here",
            "install it (apt-get install pdsh), or start the machines by hand: --set launch.door=torchrun",
        )


def _slots(hostfile: Path) -> dict[str, int]:
    """How many processes each machine of a DeepSpeed list takes; raises ZephyrError with the line that says none."""
    if not hostfile.is_file():
        raise ZephyrError(f"launch.hostfile: there is no file {hostfile}", "write it: a line 'name slots=8' a machine")
    slots: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, hostfile.read_text().splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", line)
        if not match or match[1] in slots:
            why = "names that machine again" if match else "is not of the form 'name slots=8'"
            raise ZephyrError(f"{hostfile}:{number}: {line!r} {why}", "mend that line")
        slots[match[1]] = int(match[2])
    return slots


def _single(worker: str, words: _Words, layout: Layout, environment: Mapping[str, str]) -> list[str]:
    """One process; of plain torch it may see one GPU only, as transformers would spread it over all that it sees."""
    seen = environment.get("CUDA_VISIBLE_DEVICES") or "0"
    is_plain = layout.zero_stage is None and not layout.on_cpu
    first = ["env", f"CUDA_VISIBLE_DEVICES={seen.partition(',')[0]}"] if is_plain else []
    return [*first, words.python, "-m", *words.work(worker)]


def _accelerate(worker: str, words: _Words, layout: Layout) -> list[str]:
    several = ["--deepspeed_multinode_launcher", "standard", "--machine_rank", words.rank]
    several += ["--main_process_ip", words.address]
    meeting = [*(several if layout.nodes > 1 else []), "--main_process_port", words.port]  # port 0 is any free one
    config = ["--config_file", words.beside("accelerate.yaml")]
    return [words.python, "-m", "accelerate.commands.launch", *config, *meeting, "-m", *words.work(worker)]


def _torchrun(worker: str, words: _Words, layout: Layout) -> list[str]:
    """Several machines meet at a fixed place and not by c10d, which waits in silence where the port is taken."""
    here = ["--standalone", "--local-addr", words.address]
    several = ["--nnodes", f"{layout.nodes}", "--node-rank", words.rank]
    several += ["--master-addr", words.address, "--master-port", words.port]
    meeting = [*(several if layout.nodes > 1 else here), "--nproc-per-node", f"{layout.processes}"]
    return [words.python, "-m", "torch.distributed.run", *meeting, "-m", *words.work(worker)]


def _deepspeed(worker: str, words: _Words, layout: Layout, launch: Launch) -> list[str]:
    size = ["--num_nodes", f"{layout.nodes}", "--num_gpus", f"{layout.processes}", "--master_port", words.port]
    where = ["--no_ssh", "--node_rank", "0"] if _is_here(layout, launch) else ["--force_multi"]
    if words.address:
        where += ["--master_addr", words.address]
    start = [words.python, "-m", "deepspeed.launcher.runner", "--hostfile", words.beside("hostfile"), *size, *where]
    return [*start, "--no_local_rank", "--module", *words.work(worker)]


COMMANDS: dict[Door, Callable[[str, _Words, Layout], list[str]]] = {"accelerate": _accelerate, "torchrun": _torchrun}
"""The doors at which every machine is told the same, but for its rank."""


def _by_hand(
    door: Door, worker: str, words: _Words, layout: Layout, launch: Launch, environment: Mapping[str, str]
) -> Opened:
    """accelerate or torchrun: all of one machine, or the first of several that the user starts alike."""
    files = _files(door, worker, words.python, layout, launch)
    script = f"{door}.sh"
    if layout.nodes == 1:
        del files[script]
        return Opened(COMMANDS[door](worker, words, layout), files)
    address, port = _meeting(layout, environment)
    words = replace(words, address=address, port=port)
    last = f" to NODE_RANK={layout.nodes - 1}" if layout.nodes > 2 else ""
    line = f"MASTER_ADDR={shlex.quote(address)} MASTER_PORT={port} bash {shlex.quote(words.beside(script))}"
    say = f"start the other machines, with NODE_RANK=1{last}: {line}"
    return Opened(COMMANDS[door](worker, words, layout), files, say=say)


def _meeting(layout: Layout, environment: Mapping[str, str]) -> tuple[str, str]:
    """The address and the port of this machine where the others come to; raises ZephyrError where it cannot listen."""
    again = "put MASTER_ADDR=<address of this machine> before the command, and type it on the first machine"
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", PORT)
    if not address:
        raise ZephyrError(f"{layout.nodes} machines are started by hand, and nobody says where they meet", again)
    if environment.get("NODE_RANK", "0") != "0":
        raise ZephyrError("this command is for the first machine, and NODE_RANK says that it is another", again)
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ZephyrError(f"MASTER_PORT={port} is no port", "give a number from 1024 to 65535, or none")
    try:
        family, kind, _, _, place = socket.getaddrinfo(address, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ZephyrError(
                f"another program listens on port {port} of this machine", "choose another: MASTER_PORT=<port>"
            ) from error
        raise ZephyrError(f"the machines cannot meet at {address}:{port} ({error})", again) from error
    return address, port


def _through_deepspeed(
    worker: str, words: _Words, layout: Layout, launch: Launch, environment: Mapping[str, str]
) -> Opened:
    files = _files("deepspeed", worker, words.python, layout, launch)
    del files["deepspeed.sh"]
    if _is_here(layout, launch):
        return Opened(_deepspeed(worker, replace(words, port=f"{free_port()}"), layout, launch), files)
    words = replace(words, address=environment.get("MASTER_ADDR", ""), port=environment.get("MASTER_PORT", PORT))
    files[REMOTE] += "".join(
        f"{name}={environment[name]}\n" for name in (*HUB, plugin_files.VARIABLE) if environment.get(name)
    )
    carried = f"DS_ENV_FILE={Path(words.beside(REMOTE)).absolute()}"
    return Opened(["env", carried, *_deepspeed(worker, words, layout, launch)], files)


def _through_slurm(worker: str, job: Path, layout: Layout, launch: Launch, environment: Mapping[str, str]) -> Opened:
    script = slurm.script(worker, str(job), sys.executable, settings(layout, launch), layout, launch)
    files = {slurm.SCRIPT: script}
    if "SLURM_JOB_ID" in environment:
        return Opened(slurm.inside(job), files)
    return Opened(slurm.submit(worker, job, launch), files, slurm.cancel(worker, job))


def _files(door: Door, worker: str, python: str, layout: Layout, launch: Launch) -> dict[str, str]:
    """What a launcher reads, and a script that starts it beside the job file, wherever that folder lies."""
    words = _Words(python, lambda name: f'"$folder"/{name}')
    if door == "deepspeed":
        words = replace(words, address=words.address if _is_here(layout, launch) else "", port='"$MASTER_PORT"')
        files = {"hostfile": _hosts(layout, launch)}
        if not _is_here(layout, launch):
            files[REMOTE] = "".join(f"{name}={value}\n" for name, value in settings(layout, launch).items())
        return {**files, "deepspeed.sh": _script(door, _deepspeed(worker, words, layout, launch), layout, launch)}
    if layout.nodes > 1:
        words = replace(words, address='"$MASTER_ADDR"', port='"$MASTER_PORT"', rank='"$NODE_RANK"')
    script = {f"{door}.sh": _script(door, COMMANDS[door](worker, words, layout), layout, launch)}
    if door == "accelerate":
        script["accelerate.yaml"] = yaml.safe_dump(accelerate_config(layout, "deepspeed.json"), sort_keys=False)
    return script


def _script(door: Door, command: list[str], layout: Layout, launch: Launch) -> str:
    """A launch as a shell script; words that begin with a quoted variable are the shell's."""
    lines = ["#!/usr/bin/env bash"]
    is_by_hand = door in COMMANDS and layout.nodes > 1
    if is_by_hand:
        lines += [f"# On each of {layout.nodes} machines: {_line(door, layout)}"]
    lines += ["set -euo pipefail", 'folder=$(cd "$(dirname "$0")" && pwd)']
    if is_by_hand:
        lines += [': "${MASTER_ADDR:?is the address of the first machine}"']
        lines += [f': "${{NODE_RANK:?is 0 on the first machine, {layout.nodes - 1} on the last}}"']
    if '"$MASTER_PORT"' in command:
        lines += [f"MASTER_PORT=${{MASTER_PORT:-{PORT}}}"]
    lines += [f"export {name}={value}" for name, value in settings(layout, launch).items()]
    if not _is_here(layout, launch) and door == "deepspeed":
        lines += [f'export DS_ENV_FILE="$folder"/{REMOTE}']
    words = [word if word.startswith('"$') else shlex.quote(word) for word in command]
    return "\n".join([*lines, f"exec {' '.join(words)}", ""])


def _line(door: Door, layout: Layout) -> str:
    """What is typed to start a script."""
    if door in COMMANDS and layout.nodes > 1:
        return f"MASTER_ADDR=... NODE_RANK=... bash {door}.sh"
    return f"bash {door}.sh"


def _hosts(layout: Layout, launch: Launch) -> str:
    """The user's list of machines, or one to fill in."""
    if launch.hostfile and Path(launch.hostfile).is_file():
        return Path(launch.hostfile).read_text()
    names = ["localhost"] if layout.nodes == 1 else [f"machine-{number + 1}" for number in range(layout.nodes)]
    return "".join(f"{name} slots={layout.processes}\n" for name in names)


def _is_here(layout: Layout, launch: Launch) -> bool:
    """True where DeepSpeed's launcher starts this machine only, and so needs no ssh."""
    return layout.nodes == 1 and not launch.hostfile
