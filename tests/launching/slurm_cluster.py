"""A SLURM cluster of two machines that are both this one, for as long as a test needs it."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue", "slurmctld", "slurmd", "munged")
SBIN = "/usr/sbin:/sbin"
INSTALL_SECONDS = 240
START_SECONDS = 60
NAMES = ("first", "second")

CONFIGURATION = """\
ClusterName=one-machine
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=first,second Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` makes the commands of SLURM find it."""

    environment: dict[str, str]

    def ask(self, *command: str) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout + done.stderr


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster whose daemons, files and keys are all in a folder; everything is stopped afterwards.

    Skips the test where SLURM is not installed and cannot be.
    """
    _install()
    folder.mkdir(mode=0o755)
    configuration = folder / "slurm.conf"
    user, host = getpass.getuser(), socket.gethostname().partition(".")[0]
    configuration.write_text(CONFIGURATION.format(host=host, user=user, folder=folder, ports=_free_ports(3)))
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{SBIN}", "SLURM_CONF": str(configuration)}
    for name in ("state", *(f"spool-{name}" for name in NAMES)):
        (folder / name).mkdir()
    here = Cluster(environment)
    with contextlib.ExitStack() as running:
        for command in _daemons(folder):
            running.enter_context(_daemon(command, folder, environment))
            if command[0] == "munged" and not _comes(lambda: (folder / "munge.socket").exists()):
                pytest.skip(f"munged does not run here: {_last_words(folder)}")
        if not _comes(lambda: here.ask("sinfo", "-h", "-o", "%T %D").strip() == "idle 2"):
            pytest.skip(f"SLURM does not run here: {_last_words(folder)}")
        try:
            yield here
        finally:
            here.ask("scancel", f"--user={user}")
            _comes(lambda: not here.ask("squeue", "-h").strip())


def _install() -> None:
    """Have SLURM from Debian; skip where that cannot be."""
    if not _missing():
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip(f"SLURM is not installed ({', '.join(_missing())}), and only root of a Debian can install it here")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                ["apt-get", "-q", *command], env=environment, capture_output=True, timeout=INSTALL_SECONDS, check=False
            )
    if missing := _missing():
        pytest.skip(f"SLURM could not be installed from Debian: no {', '.join(missing)}")


def _missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")]


def _daemons(folder: Path) -> list[list[str]]:
    """The commands of the daemons, each of which stays in the foreground."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    files = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")]
    files += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    munged = ["munged", "--foreground", "--force", *files]
    return [munged, ["slurmctld", "-D", "-c"], *(["slurmd", "-D", "-N", name] for name in NAMES)]


@contextlib.contextmanager
def _daemon(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A daemon under way; it is ended by its own process id."""
    with (folder / f"{command[0]}.out.log").open("ab") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _comes(is_so: Callable[[], bool]) -> bool:
    """True as soon as something is so, False where that takes too long."""
    end = time.monotonic() + START_SECONDS
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _last_words(folder: Path) -> str:
    return " | ".join(f"{log.name}: {log.read_text(errors='replace')[-300:].strip()}" for log in folder.glob("*.log"))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
