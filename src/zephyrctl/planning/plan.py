"""Plan a recipe's training on the hardware that it names, or on this machine, and check that it can start here."""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from zephyrctl.contracts import ModelBase
from zephyrctl.disk import write_whole
from zephyrctl.errors import ZephyrError
from zephyrctl.planning import hardware, solver
from zephyrctl.planning.hardware import Machine
from zephyrctl.planning.solver import Solution
from zephyrctl.recipe.schema import Expected, Launch, Recipe, Training
from zephyrctl.training.kinds import training_kind

PROBE_FILE = "probe.json"
"""The file of a run with a probe's measurements; named here, because a plan reads it without importing pyarrow."""

if TYPE_CHECKING:
    from zephyrctl.training.results import RowReport


def settings_of(recipe: Recipe, stage: str) -> Training:
    """The settings of a stage."""
    return recipe.training_section(stage)


def machine(recipe: Recipe) -> Machine:
    """The hardware that the recipe names; what it leaves open is this machine's."""
    return hardware.machine(recipe.hardware, recipe.launch)


def solve(
    recipe: Recipe, stage: str, base: ModelBase, expected: Expected | None = None, mfu: float | None = None
) -> Solution:
    """The layout of a stage with its memory and time; `mfu` is what a probe measured.

    Raises ZephyrError if nothing fits.
    """
    settings, expected = settings_of(recipe, stage), expected or recipe.expected
    return solver.solve(settings, recipe.launch, machine(recipe), base.sizes(), stage, expected, mfu)


def solve_with(recipe: Recipe, stage: str, base: ModelBase, report: "RowReport") -> Solution:
    """The layout of a stage whose rows are prepared, so that their number and lengths are known."""
    return solve(recipe, stage, base, counted_rows(stage, report))


def counted_rows(stage: str, report: "RowReport") -> Expected:
    """The number of prepared rows and their mean lengths in tokens, in place of the recipe's expectation."""
    if training_kind(stage).rows == "dialogues":
        return Expected(dialogues=report.rows_kept, dialogue_tokens=report.tokens_kept / report.rows_kept)
    answers = report.learnt_tokens / 2 / report.rows_kept
    prompts = (report.tokens_kept - report.learnt_tokens) / report.rows_kept
    return Expected(pairs=report.rows_kept, prompt_tokens=prompts, answer_tokens=answers)


def write_launches(recipe: Recipe, solutions: Mapping[str, Solution], folder: Path) -> dict[str, dict[str, str]]:
    """Write DeepSpeed's and accelerate's configurations and a script for every launcher, one folder per stage.

    Returns what to type in each stage's folder, by launcher. The job file that all of them start comes from the stage:
    `runs/NAME/.STAGE.unfinished/.scratch/job.json`.
    """
    from zephyrctl.launching import launchers
    from zephyrctl.launching.deepspeed_config import deepspeed_config

    commands: dict[str, dict[str, str]] = {}
    for stage, solution in solutions.items():
        stage_folder = folder / stage
        stage_folder.mkdir(parents=True, exist_ok=True)
        scripts = launchers.launch_scripts(stage, solution.layout, recipe.launch)
        config = deepspeed_config(settings_of(recipe, stage), recipe.launch, solution.layout)
        files = scripts.files | ({"deepspeed.json": json.dumps(config, indent=2) + "\n"} if config else {})
        for name, text in files.items():
            write_whole(stage_folder / name, text)
        commands[stage] = {str(launcher): command for launcher, command in scripts.commands.items()}
    return commands


def check_here(recipe: Recipe, stage: str, base: ModelBase) -> None:
    """Raise ZephyrError if nothing fits, if no launcher reaches the machines, or if this machine lacks something."""
    from zephyrctl.launching import launchers
    from zephyrctl.launching.processes import gpus

    solution = solve(recipe, stage, base)
    layout = solution.layout
    gpus_here = gpus()
    if not layout.on_cpu and not gpus_here and not _has_remote_launcher(recipe.launch):
        raise ZephyrError(
            f"{recipe.name} trains {recipe.base.name} on {solution.workload.machine} "
            f"({solution.peak_gb:.0f} GB per GPU), and this machine has no GPU",
            "run it on such machines, or see the whole recipe work here: zephyrctl run --recipe tiny",
        )
    launcher = launchers.choose_launcher(recipe.launch, layout)
    if launcher in launchers.LOCAL and not layout.on_cpu and gpus_here < layout.processes:
        raise ZephyrError(
            f"{recipe.name} trains {recipe.base.name} on {solution.workload.machine}, "
            f"and this machine has {gpus_here} GPU{'' if gpus_here == 1 else 's'}",
            f"plan for this machine: --nodes 1 --gpus {gpus_here}",
        )
    if launcher in launchers.LOCAL:
        check_installed(recipe, stage, layout.on_cpu)


def _has_remote_launcher(launch: Launch) -> bool:
    """True if the launcher can start processes on other machines."""
    from zephyrctl.launching import slurm

    if launch.launcher in ("slurm", "deepspeed") or launch.hostfile is not None:
        return True
    return launch.launcher == "auto" and slurm.is_available(os.environ)


def check_installed(recipe: Recipe, stage: str, on_cpu: bool) -> None:
    """Raise ZephyrError if the recipe needs an optional package that is not installed."""
    adapter = settings_of(recipe, stage).adapter
    needed: list[tuple[str, str, str]]
    needed = [(tracker, "trackers", f"launch.trackers needs {tracker}") for tracker in recipe.launch.trackers]
    if adapter and adapter.quantize:
        needed.append(("bitsandbytes", "qlora", f"{stage}.adapter.quantize needs bitsandbytes"))
    if recipe.launch.attention == "flash_attention_2":
        if on_cpu:
            raise ZephyrError(
                "launch.attention: flash_attention_2 needs a GPU, and the plan is for CPUs",
                "--set launch.attention=sdpa",
            )
        needed.append(("flash_attn", "gpu", "launch.attention needs FlashAttention"))
    for package, extra, why in needed:
        if find_spec(package) is None:
            raise ZephyrError(f"{why}, which is not installed", f"pip install 'zephyrctl[{extra}]'")


def describe(recipe: Recipe, stage: str, base: ModelBase) -> str:
    """The layout in a few words, or why there is none."""
    try:
        return str(solve(recipe, stage, base).layout)
    except ZephyrError as error:
        return f"cannot be planned: {error.problem}"
