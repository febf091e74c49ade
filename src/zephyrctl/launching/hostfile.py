"""DeepSpeed's hostfile: reading it, checking it against a layout, and writing one to fill in."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from zephyrctl.errors import ZephyrError
from zephyrctl.launching.parallelism import Layout
from zephyrctl.recipe.schema import Launch


def check_hostfile(launch: Launch, layout: Layout, environment: Mapping[str, str]) -> None:
    """Raise ZephyrError if DeepSpeed's launcher cannot start the machines of the layout."""
    if not launch.hostfile:
        if layout.nodes > 1:
            raise ZephyrError("launch.launcher=deepspeed needs a list of machines", "--set launch.hostfile=FILE")
        return
    hosts = list(read_hostfile(Path(launch.hostfile)).items())[: layout.nodes]
    if len(hosts) < layout.nodes or min(slots for _, slots in hosts) < layout.processes:
        listed = ", ".join(f"{name} slots={slots}" for name, slots in hosts) or "no machine"
        raise ZephyrError(
            f"the plan needs {layout.nodes} x {layout.processes} processes, and {launch.hostfile} starts with {listed}",
            "fix the list, or plan for the machines in it: --set hardware.nodes=N --set hardware.gpus=N",
        )
    if not shutil.which("pdsh", path=environment.get("PATH")):
        raise ZephyrError(
            "DeepSpeed starts other machines through pdsh, and pdsh is not installed",
            "install it (apt-get install pdsh), or start the machines by hand: --set launch.launcher=torchrun",
        )


def read_hostfile(path: Path) -> dict[str, int]:
    """The number of processes for each machine, by name, in the order of the file.

    Raises ZephyrError if the file is missing, or with the number of the line that is wrong.
    """
    if not path.is_file():
        raise ZephyrError(f"launch.hostfile: {path} does not exist", "write it, one line 'name slots=8' per machine")
    slots: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, path.read_text().splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        match = re.match(r"(\S+)\s+slots=(\d+)", line)
        if not match:
            raise ZephyrError(f"{path}:{number}: {line!r} is not of the form 'name slots=8'", "fix that line")
        if match[1] in slots:
            raise ZephyrError(f"{path}:{number}: {line!r} names a machine for the second time", "remove that line")
        slots[match[1]] = int(match[2])
    return slots


def hostfile_text(layout: Layout, launch: Launch) -> str:
    """The recipe's hostfile, or a template with as many machines as the layout has."""
    if launch.hostfile and Path(launch.hostfile).is_file():
        return Path(launch.hostfile).read_text()
    names = ["localhost"] if layout.nodes == 1 else [f"machine-{number + 1}" for number in range(layout.nodes)]
    return "".join(f"{name} slots={layout.processes}\n" for name in names)
