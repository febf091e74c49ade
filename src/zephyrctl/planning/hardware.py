"""The hardware table, the machine that a recipe names, and detection of this machine."""

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from zephyrctl import templates
from zephyrctl.errors import ZephyrError, did_you_mean
from zephyrctl.recipe.schema import Hardware, Launch

TABLE = "hardware.yaml"
SAME_MEMORY = 0.05
"""Relative difference allowed between the memory that a driver reports and the table's: drivers reserve some."""
SLOWEST = "a10g"
"""The row whose speed is assumed for an unknown GPU: the slowest, so that a plan does not promise too much."""

Precision = Literal["fp32", "bf16"]


class Device(BaseModel):
    """A row of the hardware table: one GPU, or one core of a CPU. Rates are in bytes per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    matches: list[str]
    memory: float = Field(gt=0, description="bytes, as the driver reports them")
    bf16_flops: float = Field(gt=0, description="peak operations per second")
    fp32_flops: float = Field(gt=0, description="peak operations per second")
    utilisation: float = Field(gt=0, le=1, description="share of the peak that training reaches")
    memory_rate: float = Field(gt=0, description="of the device's memory")
    inside_rate: float = Field(gt=0, description="between the GPUs of a machine, per GPU")
    between_rate: float = Field(gt=0, description="between machines, per machine")
    host_rate: float = Field(gt=0, description="between a GPU and its machine's memory")
    host_memory: float = Field(gt=0, description="bytes of the machine's memory for each GPU")

    @property
    def is_cpu(self) -> bool:
        """True for the row of a CPU core."""
        return self.name == "cpu"

    def flops(self, precision: Precision) -> float:
        """Its peak in a precision, in operations per second."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops


class Machine(BaseModel):
    """A number of equal machines, and the processes that training starts on each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: int = Field(ge=1, description="machines")
    processes: int = Field(ge=1, description="processes per machine: one per GPU; on a CPU, as many as the recipe says")
    device: Device
    host_memory: float = Field(gt=0, description="bytes of memory of each machine")
    cores: int = Field(default=1, ge=1, description="cores of each machine; only used without GPUs")

    def __str__(self) -> str:
        """For instance `2 x 8 a100-80gb`."""
        if self.on_cpu:
            cores = f"{self.cores} CPU core{'' if self.cores == 1 else 's'}"
            return f"{self.nodes} x {cores} with {self.host_memory / 1e9:.0f} GB"
        return f"{self.nodes} x {self.processes} {self.device.name}"

    @property
    def on_cpu(self) -> bool:
        """True if there is no GPU."""
        return self.device.is_cpu

    @property
    def world(self) -> int:
        """Processes over all machines."""
        return self.nodes * self.processes

    @property
    def memory(self) -> float:
        """Bytes for one process: the memory of its GPU, or its share of the machine's memory."""
        return self.host_memory / self.processes if self.on_cpu else self.device.memory

    def flops(self, precision: Precision) -> float:
        """Peak operations per second of one process: of its GPU, or of its share of the cores."""
        cores = max(1, self.cores // self.processes) if self.on_cpu else 1
        return self.device.flops(precision) * cores


@cache
def table() -> dict[str, Device]:
    """The rows of the hardware table, by name."""
    rows = yaml.load(templates.read(TABLE), yaml.CSafeLoader)["devices"]
    return {name: Device(name=name, **row) for name, row in rows.items()}


def device(name: str) -> Device:
    """A row of the table. Raises ZephyrError, with the nearest names, if there is none."""
    known, wanted = table(), name.lower()
    if wanted in known:
        return known[wanted]
    # "a100" begins both "a100-40gb" and "a100-80gb": a common beginning says more than the similarity of spellings.
    begun = " or ".join(repr(row) for row in known if wanted and row.startswith(wanted))
    near = f"did you mean {begun}?" if begun else did_you_mean(wanted, known, cutoff=0.4)
    names = f"it is one of {', '.join(known)}"
    raise ZephyrError(f"the hardware table has no {name!r} (hardware.gpu_type)", f"{near} {names}".strip())


def machine(hardware: Hardware, launch: Launch) -> Machine:
    """The machines that a recipe names; what it leaves open is this machine's.

    Raises ZephyrError for a name that is not in the table, and for GPUs without a name if this machine has none.
    """
    if hardware.gpu_type:
        row = device(hardware.gpu_type)
        if row.is_cpu or hardware.gpus == 0:
            return _cpu(hardware.nodes, launch)
        gpus = hardware.gpus or len(_reported()) or 1
        return Machine(nodes=hardware.nodes, processes=gpus, device=row, host_memory=row.host_memory * gpus)
    here = [] if hardware.gpus == 0 else _reported()
    if not here and not hardware.gpus:
        return _cpu(hardware.nodes, launch)
    if not here:
        raise ZephyrError(
            f"hardware.gpus is {hardware.gpus}, but this machine has no GPU and hardware.gpu_type is not set",
            f"set it with --gpu-type: {', '.join(name for name in table() if name != 'cpu')}",
        )
    return Machine(
        nodes=hardware.nodes, processes=hardware.gpus or len(here), device=_weakest(here), host_memory=memory_bytes()
    )


def detect(launch: Launch | None = None) -> Machine:
    """This machine: all its GPUs, or its cores if it has none."""
    return machine(Hardware(), launch or Launch())


def recognise(name: str, memory: float) -> Device:
    """The row of a GPU by the name and the memory that its driver reports.

    A GPU that is not in the table gets a row of its own: as fast as the row of its family, or else as the slowest row.
    """
    # "A100" is in the names of the 40 GB and of the 80 GB card, so the memory decides between rows of one family.
    named = [row for row in table().values() if any(word in name for word in row.matches)]
    nearest = min(named or [table()[SLOWEST]], key=lambda row: abs(row.memory - memory))
    is_known = bool(named) and abs(nearest.memory - memory) <= SAME_MEMORY * nearest.memory
    own_name = nearest.name if is_known else "-".join(name.lower().removeprefix("nvidia ").split())
    return nearest.model_copy(update={"name": own_name, "memory": memory})


def memory_bytes() -> float:
    """This machine's memory in bytes, or a control group's limit if that is lower."""
    # In a container sysconf shows the host's memory, but the kernel kills what exceeds the group's limit (cgroup v2).
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return float(total)


def _cpu(nodes: int, launch: Launch) -> Machine:
    # The cores that this process may use: `taskset`, SLURM and containers allow fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        nodes=nodes,
        processes=launch.processes or 1,
        device=table()["cpu"],
        host_memory=memory_bytes(),
        cores=cores,
    )


def _weakest(devices: list[Device]) -> Device:
    """The GPU with the least memory: every GPU gets an equal part, so it must fit there."""
    return min(devices, key=lambda row: row.memory)


def _reported() -> list[Device]:
    """The GPUs that `nvidia-smi` reports on this machine."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    # A row with "[N/A]" or an error message does not end in MiB: a GPU without a known size cannot be planned for.
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [_row(line) for line in lines if line.strip().endswith("MiB")]


def _row(line: str) -> Device:
    """The row of a line such as `NVIDIA A100-SXM4-80GB, 81920 MiB`."""
    name, _, memory = line.rpartition(",")
    return recognise(name.strip(), float(memory.strip().removesuffix("MiB")) * 2**20)
