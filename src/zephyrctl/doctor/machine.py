"""Check cores, memory, disk, shared memory, limits and SLURM."""

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from zephyrctl.doctor.finding import GB, Finding, note, ok, problem
from zephyrctl.launching import slurm
from zephyrctl.planning.hardware import memory_bytes

LEAST_MEMORY = 2 * GB
"""The recipe `tiny` needs 1.7 GB at its peak."""
LEAST_DISK = 1 * GB
MUCH_DISK = 101 * GB
"""One resumable checkpoint of a model with 7.24e9 parameters: 14 bytes each, with optimizer states."""
LEAST_SHARED = 1 * GB
"""Docker's default is 64 MB, with which NCCL fails between several GPUs."""
LEAST_FILES = 1024


def machine(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Findings that need no library. `folder` contains the runs."""
    cores = available_cores()
    yield ok("cores", f"{cores} of {os.cpu_count()} cores for this process")
    yield threads(cores, environment)
    yield memory(memory_bytes(), psutil.virtual_memory().available)
    yield disk(folder)
    yield shared_memory(Path("/dev/shm"))
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield ok("slurm", "jobs can be submitted" if slurm.is_available(environment) else "not installed")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(cores: int, environment: Mapping[str, str]) -> Finding:
    """How many threads a process uses. More threads than cores make training several times slower."""
    given = environment.get("OMP_NUM_THREADS")
    if given is None:
        return ok("threads", "OMP_NUM_THREADS is not set: the cores are shared among the workers")
    if not given.isdigit() or not int(given):
        return note("threads", f"OMP_NUM_THREADS={given} is not a number", "unset OMP_NUM_THREADS")
    if int(given) > cores:
        return note("threads", f"OMP_NUM_THREADS={given}, but there are {cores} cores", "unset OMP_NUM_THREADS")
    return ok("threads", f"OMP_NUM_THREADS={given}")


def memory(total: float, available: float) -> Finding:
    """Free memory in bytes; a lower limit of a control group counts."""
    free = min(total, available)
    what = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < LEAST_MEMORY:
        return problem("memory", what, f"close other programs: the recipe tiny needs {LEAST_MEMORY / GB:.0f} GB")
    return ok("memory", what)


def disk(folder: Path) -> Finding:
    """Free space and permissions where runs are written."""
    parent_folder = folder.absolute()
    while not parent_folder.exists():
        parent_folder = parent_folder.parent
    if not (parent_folder.is_dir() and os.access(parent_folder, os.W_OK | os.X_OK)):
        return problem("disk", f"{parent_folder} is not writable", "fix its permissions, or work in another folder")
    free = shutil.disk_usage(parent_folder).free
    what = f"{free / GB:.0f} GB free for {folder}"
    if free < LEAST_DISK:
        return problem("disk", what, "free some space, or use a --run on another disk")
    if free < MUCH_DISK:
        remedy = f"a resumable checkpoint of a 7B model needs {MUCH_DISK / GB:.0f} GB: use a --run on a larger disk"
        return note("disk", what, remedy)
    return ok("disk", what)


def shared_memory(folder: Path) -> Finding:
    """The memory through which processes on several GPUs exchange data."""
    if not folder.is_dir():
        return ok("shared memory", f"there is no {folder}, as on macOS")
    size = shutil.disk_usage(folder).total
    what = f"{size / GB:.2f} GB in {folder}"
    if size < LEAST_SHARED:
        return note("shared memory", what, "several GPUs need more: docker run --shm-size=8g, or --ipc=host")
    return ok("shared memory", what)


def open_files(limit: int) -> Finding:
    """How many files a process may open."""
    if limit == resource.RLIM_INFINITY:
        return ok("open files", "no limit")
    if limit < LEAST_FILES:
        return note("open files", f"at most {limit}", f"ulimit -n {4 * LEAST_FILES}")
    return ok("open files", f"at most {limit:,}")
