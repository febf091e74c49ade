"""Cores, memory, disk, shared memory, limits and SLURM of this machine."""

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
"""The recipe `tiny` takes 1.7 GB at its peak."""
LEAST_DISK = 1 * GB
MUCH_DISK = 101 * GB
"""What one checkpoint of a 7.24e9-parameter model takes with its optimizer states, at 14 bytes each."""
LEAST_SHARED = 1 * GB
"""Docker gives 64 MB, and NCCL fails there between several GPUs."""
LEAST_FILES = 1024


def machine(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Everything that no library is asked for; `folder` is where runs are kept."""
    cores = available_cores()
    yield ok("cores", f"{cores} of {os.cpu_count()} cores for this process")
    yield threads(cores, environment)
    yield memory(memory_bytes(), psutil.virtual_memory().available)
    yield disk(folder)
    yield shared_memory(Path("/dev/shm"))
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield ok("slurm", "jobs can be submitted" if slurm.is_here(environment) else "not here")


def available_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(cores: int, environment: Mapping[str, str]) -> Finding:
    """How many threads a process computes with. More than cores make training several times slower."""
    given = environment.get("OMP_NUM_THREADS")
    if given is None:
        return ok("threads", "OMP_NUM_THREADS is not set: every worker gets its share of the cores")
    if not given.isdigit() or not int(given):
        return note("threads", f"OMP_NUM_THREADS={given} is no number", "unset OMP_NUM_THREADS")
    if int(given) > cores:
        return note("threads", f"OMP_NUM_THREADS={given}, and there are {cores} cores", "unset OMP_NUM_THREADS")
    return ok("threads", f"OMP_NUM_THREADS={given}")


def memory(total: float, available: float) -> Finding:
    """Memory in bytes; a control group's limit counts where it is lower."""
    free = min(total, available)
    told = f"{free / GB:.1f} of {total / GB:.1f} GB free"
    if free < LEAST_MEMORY:
        return problem("memory", told, f"end other programs: the recipe tiny takes {LEAST_MEMORY / GB:.0f} GB")
    return ok("memory", told)


def disk(folder: Path) -> Finding:
    """The disk that runs are written to."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        return problem("disk", f"{place} cannot be written", "mend its rights, or go where you can write")
    free = shutil.disk_usage(place).free
    told = f"{free / GB:.0f} GB free for {folder}"
    if free < LEAST_DISK:
        return problem("disk", told, "free some space, or give a --run on another disk")
    if free < MUCH_DISK:
        remedy = (
            f"a checkpoint of a 7B that can be resumed takes {MUCH_DISK / GB:.0f} GB: give a --run on a larger disk"
        )
        return note("disk", told, remedy)
    return ok("disk", told)


def shared_memory(folder: Path) -> Finding:
    """What processes on several GPUs exchange through."""
    if not folder.is_dir():
        return ok("shared memory", f"there is no {folder}, as on macOS")
    size = shutil.disk_usage(folder).total
    told = f"{size / GB:.2f} GB in {folder}"
    if size < LEAST_SHARED:
        return note("shared memory", told, "several GPUs want more: docker run --shm-size=8g, or --ipc=host")
    return ok("shared memory", told)


def open_files(limit: int) -> Finding:
    """How many files a process may hold open."""
    if limit == resource.RLIM_INFINITY:
        return ok("open files", "without a limit")
    if limit < LEAST_FILES:
        return note("open files", f"at most {limit}", f"ulimit -n {4 * LEAST_FILES}")
    return ok("open files", f"at most {limit:,}")
