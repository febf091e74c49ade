"""Can this machine train this model? A refusal before anything starts, with the reason and the remedy."""

import os
from pathlib import Path

from zephyrctl.contracts import Sizes
from zephyrctl.errors import ZephyrError
from zephyrctl.launch import gpus
from zephyrctl.recipe import Recipe

STATE_BYTES = 16
"""Bytes a parameter of weights, gradients, fp32 masters and AdamW's two moments."""


def check_machine(recipe: Recipe, sizes: Sizes) -> None:
    """Raise ZephyrError where the recipe wants GPUs that are not here, or where the states exceed the memory.

    All processes start on this machine, one a GPU where it has GPUs.
    """
    wanted, present = recipe.hardware.gpus, gpus()
    wanted_type = recipe.hardware.gpu_type or "GPU"
    states = STATE_BYTES * sizes.parameters / 1e9
    if wanted and present < wanted:
        raise ZephyrError(
            f"{recipe.name} trains {recipe.base.name} ({sizes.parameters / 1e9:.2f} B parameters, {states:.0f} GB of "
            f"weights, gradients and optimizer) on {recipe.hardware.nodes} x {wanted} {wanted_type}; "
            f"this machine has {present} GPU{'' if present == 1 else 's'} and {_memory_gb():.0f} GB of memory",
            "run it on such machines, or see the whole recipe work here: zephyrctl run --recipe tiny",
        )
    if present and recipe.launch.processes > present:
        raise ZephyrError(
            f"{recipe.name} starts {recipe.launch.processes} processes, one a GPU, and this machine has {present}; "
            "training over several machines is not started from here",
            f"--set launch.processes={present}: the global batch stays what it is",
        )
    if not present and states > _memory_gb():
        raise ZephyrError(
            f"training {recipe.base.name} takes {states:.0f} GB for weights, gradients and optimizer; "
            f"this machine has no GPU and {_memory_gb():.0f} GB of memory",
            "choose a smaller base, or a machine with GPUs",
        )


def _memory_gb() -> float:
    """This machine's memory in GB; a control group's limit counts where it is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 1e9
